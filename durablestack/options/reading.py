"""Reads one value for one option: its spelling, its type, its range; and names the option when it cannot.

The rules stand at the fields, as `msgspec.Meta`: the range, `description` for "it takes …" in an error, and in
`extra`: `resets` (`<= 0` becomes the default, as the documents have it) and `duration` (a `TimeSpan` is read too).
"""

import difflib
import logging
import math
import re
import types
import typing
from collections.abc import Mapping
from datetime import time, timedelta
from enum import StrEnum
from functools import cache
from typing import Any

import msgspec
from msgspec.structs import FieldInfo, force_setattr

from durablestack.errors import OptionsError

from .secret import Secret, redact
from .sizes import size_in_bytes

log = logging.getLogger("durablestack.options")

DURATION_SECONDS_MAX = 1e9  # about 31 years; more would overflow a timedelta, or a database's interval
_SHOWN_LENGTH_MAX = 80
_TIME_SPAN = re.compile(r"(-)?(?:(\d{1,8})\.)?(\d{1,2}):([0-5]\d):([0-5]\d)(\.\d{1,7})?", re.ASCII)
_TRUE, _FALSE, _NOTHING = {"true", "1", "yes", "on"}, {"false", "0", "no", "off"}, {"", "null", "none"}


class Rule(msgspec.Struct, frozen=True):
    """What a field of a struct of options takes."""

    name: str
    option: str  # as people call it: "retention.enabled"
    kind: type
    optional: bool
    meta: msgspec.Meta
    default: object

    @property
    def group(self) -> type[msgspec.Struct] | None:
        return self.kind if issubclass(self.kind, msgspec.Struct) else None

    @property
    def allowed(self) -> str:
        """The end of the sentence "it takes …"."""
        if issubclass(self.kind, StrEnum):
            return "one of " + ", ".join(self.kind)
        plain: dict[type, str] = {bool: "true or false", str: "text", Secret: "text", timedelta: "a duration"}
        return self.meta.description or plain.get(self.kind, "its own options")

    def extra(self, name: str) -> bool:
        return bool((self.meta.extra or {}).get(name))

    def refuse(self, value: object) -> OptionsError:
        if self.kind is Secret or self.group:  # whatever was given there, it may hold a secret
            return OptionsError(f"{self.option} was given a {type(value).__name__}; it takes {self.allowed}")
        return OptionsError(f"{self.option} = {_shown(value)} cannot be meant; it takes {self.allowed}")


@cache
def rules(options: type[msgspec.Struct]) -> dict[str, Rule]:
    """The rules of a struct of options, by field name. Its `section` is the first half of the options' names."""
    section: str = getattr(options, "section", "")
    return {info.name: _rule(info, f"{section}.{info.name}".lstrip(".")) for info in msgspec.structs.fields(options)}


def simplify(name: str) -> str:
    """The one normaliser of names: `PollIntervalSeconds`, `poll_interval_seconds` and `POLLINTERVALSECONDS` are one."""
    return name.replace("_", "").replace("-", "").casefold()


def settle(options: msgspec.Struct) -> None:
    """Checks and normalises every field of a struct that is being built. Raises `OptionsError`."""
    for name, rule in rules(type(options)).items():
        given = getattr(options, name)
        if given is not msgspec.UNSET:
            force_setattr(options, name, read(rule, given))


def canonical(options: type[msgspec.Struct], given: Mapping[str, Any], *, lenient: bool = False) -> dict[str, Any]:
    """`given` under our names and with our types, groups as dicts. Raises `OptionsError`.

    `lenient` is for sources that know only text: "50" is a number, "false" is no.
    """
    found: dict[str, Any] = {}
    for key, value in given.items():
        rule = _rule_named(options, key)
        if rule.group and isinstance(value, Mapping):
            value = canonical(rule.group, value, lenient=lenient)
        else:
            value = read(rule, value, lenient=lenient)
        if found.setdefault(rule.name, value) != value:
            raise OptionsError(f"{rule.option} is given twice, with different values; the second time as {key!r}")
    return found


def read(rule: Rule, value: Any, *, lenient: bool = False) -> Any:
    """`value` as the field wants it; the default where the documents reset it. Raises `OptionsError`."""
    if lenient and isinstance(value, str):
        value = value.strip()
    if rule.optional and (value is None or (lenient and isinstance(value, str) and value.casefold() in _NOTHING)):
        return None
    try:
        value = _convert(rule, value, lenient=lenient)
        if rule.extra("resets") and value <= 0:
            log.warning("%s = %s is not above 0; its default %s is used", rule.option, value, rule.default)
            return rule.default
        return _within_range(rule, value)
    except (ValueError, TypeError, OverflowError):  # msgspec's ValidationError is a ValueError
        raise rule.refuse(value) from None


def _convert(rule: Rule, value: Any, *, lenient: bool) -> Any:
    kind = rule.kind
    if kind is timedelta:
        return timedelta(seconds=_seconds(value, lenient=lenient))
    if rule.extra("duration"):
        return _seconds(value, lenient=lenient)
    if rule.extra("size"):
        return size_in_bytes(value)
    if issubclass(kind, StrEnum):
        return {simplify(choice): choice for choice in kind}[_simple_text(value, kind)]
    if kind is Secret:
        return value if isinstance(value, Secret) else Secret(value)
    if kind is bool and lenient and isinstance(value, str):
        return _truth(value)
    if rule.group:
        return value if isinstance(value, rule.group) else rule.group(**canonical(rule.group, _mapping(value)))
    return msgspec.convert(value, kind, strict=not lenient)


def _within_range(rule: Rule, value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError
    if isinstance(value, timedelta) and value < timedelta():
        raise ValueError
    if rule.kind in (int, float, str):
        return msgspec.convert(value, typing.Annotated[rule.kind, rule.meta])
    return value


def _seconds(value: Any, *, lenient: bool) -> float:
    """A duration in seconds: a `timedelta`, a number, or a `TimeSpan` text "[d.]hh:mm:ss[.fffffff]"."""
    if isinstance(value, time):  # what TOML makes of an unquoted 00:00:05
        value = value.isoformat()
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, str) and ":" in value:
        seconds = _time_span_seconds(value)
    else:
        seconds = msgspec.convert(value, float, strict=not lenient)
    if not abs(seconds) <= DURATION_SECONDS_MAX:
        raise ValueError
    return seconds


def _time_span_seconds(text: str) -> float:
    parts = _TIME_SPAN.fullmatch(text.strip())
    if not parts or int(parts[3]) > 23:
        raise ValueError
    whole = timedelta(days=int(parts[2] or 0), hours=int(parts[3]), minutes=int(parts[4]), seconds=int(parts[5]))
    seconds = whole.total_seconds() + float(parts[6] or 0)
    return -seconds if parts[1] else seconds


def _simple_text(value: Any, kind: type[StrEnum]) -> str:
    simple = simplify(value) if isinstance(value, str) else ""
    if simple not in map(simplify, kind):
        raise ValueError
    return simple


def _truth(text: str) -> bool:
    if text.casefold() not in _TRUE | _FALSE:
        raise ValueError
    return text.casefold() in _TRUE


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError
    return value


def _rule_named(options: type[msgspec.Struct], key: object) -> Rule:
    aliases: dict[str, str] = getattr(options, "aliases", {})
    names = {simplify(name): name for name in rules(options)} | {simplify(a): name for a, name in aliases.items()}
    simple = simplify(str(key))
    if simple in names:
        return rules(options)[names[simple]]
    section = getattr(options, "section", "")
    known = names | _names_in_groups(options)
    near = difflib.get_close_matches(simple, known, n=1)
    hint = f"; did you mean {known[near[0]]}?" if near else f"; there are: {', '.join(rules(options))}"
    raise OptionsError(f"unknown option {_shown(key)}{f' in {section}' if section else ''}{hint}")


def _names_in_groups(options: type[msgspec.Struct]) -> dict[str, str]:
    """Of the options in groups, as somebody writes them who forgets the group."""
    groups = {name: rule.group for name, rule in rules(options).items() if rule.group}
    return {simplify(f"{name}{inner}"): f"{name}.{inner}" for name, group in groups.items() for inner in rules(group)}


def _rule(info: FieldInfo, option: str) -> Rule:
    kind, meta, optional = info.type, msgspec.Meta(), False
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        (kind,) = (part for part in typing.get_args(kind) if part is not types.NoneType)
        optional = True
    if typing.get_origin(kind) is typing.Annotated:
        kind, meta = typing.get_args(kind)
    return Rule(name=info.name, option=option, kind=kind, optional=optional, meta=meta, default=info.default)


def _shown(value: object) -> str:
    try:
        shown = redact(repr(value))
    except ValueError:  # an int of more digits than Python writes out
        shown = f"a very large {type(value).__name__}"
    return shown if len(shown) <= _SHOWN_LENGTH_MAX else shown[:_SHOWN_LENGTH_MAX] + "…"
