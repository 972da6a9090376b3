"""Where options are written down: JSON, TOML, the environment; each as a plain mapping.

Names may be in any casing, with or without underscores. `OptionsError` names the file or the environment.
"""

import logging
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from durablestack.errors import OptionsError

from .choices import StorageProvider
from .reading import simplify

ENVIRONMENT_PREFIX = "durablestack__"
_SECTION = "durablestack"

log = logging.getLogger("durablestack.options")


@contextmanager
def naming(source: str) -> Iterator[None]:
    """Puts the source before what an error inside has to say."""
    try:
        yield
    except OptionsError as error:
        raise OptionsError(f"{source}: {error}") from None


def json_mapping(content: bytes) -> Mapping[str, Any]:
    """The `DurableStack` object of a JSON document, or the document itself where it has none."""
    try:
        document = msgspec.json.decode(content.removeprefix(b"\xef\xbb\xbf"))  # the mark that Visual Studio puts there
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise OptionsError(f"not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise OptionsError("the document must be a JSON object")
    return _section_or_all(document)


def file_mapping(path: Path) -> Mapping[str, Any]:
    """What a `.json` or `.toml` file says; of `pyproject.toml`, its `[tool.durablestack]`, which may be absent."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise OptionsError(f"cannot be read: {error.strerror}") from None
    except ValueError:  # NUL, or what no name of a file can hold
        raise OptionsError("cannot be read: there can be no such file") from None
    if path.suffix.lower() == ".json":
        return json_mapping(content)
    try:
        document = tomllib.loads(content.decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:  # it may quote the line, and its secret
        place = re.search(r"\(at [^)]*\)\Z", str(error))
        raise OptionsError(f"not valid TOML {place[0] if place else ''}".rstrip()) from None
    if path.name == "pyproject.toml":
        return _section(document.get("tool", {})) or {}
    return _section_or_all(document)


def file_in(folder: Path) -> Path | None:
    """`durablestack.toml`, else `pyproject.toml`, else nothing."""
    return next((folder / name for name in ("durablestack.toml", "pyproject.toml") if (folder / name).is_file()), None)


def environment_mapping(environ: Mapping[str, str], option_names: Iterable[str] = ()) -> Mapping[str, Any]:
    """`DURABLESTACK__POSTGRES__CONNECTION_STRING` and its like, nested at each double underscore.

    A variable that would be one of `option_names`, if it only had two underscores, is warned of.
    """
    option_variables = {simplify(f"durablestack_{name}") for name in option_names}
    nested: dict[str, Any] = {}
    for variable in sorted(environ):
        if simplify(variable) in option_variables and not variable.casefold().startswith(ENVIRONMENT_PREFIX):
            log.warning("the variable %s is not read: options have two underscores after DURABLESTACK", variable)
        if variable.casefold().startswith(ENVIRONMENT_PREFIX):
            _put(nested, variable, environ[variable])
    return nested


def tell_overruled(environment: Mapping[str, Any], merged: Mapping[str, Any], prefix: str = ENVIRONMENT_PREFIX) -> None:
    """Warn of each option of the environment that what goes before it has set otherwise. Both have canonical names."""
    for name, value in environment.items():
        in_effect = merged.get(name)
        if isinstance(value, Mapping) and isinstance(in_effect, Mapping):
            tell_overruled(value, in_effect, f"{prefix}{name}__")
        elif value != in_effect:
            log.warning("%s has no effect: the application's code goes before it", f"{prefix}{name}".upper())


def _put(nested: dict[str, Any], variable: str, text: str) -> None:
    """Groups under names of one spelling; the option as it is written, which an error is to show."""
    *groups, option = variable[len(ENVIRONMENT_PREFIX) :].split("__")
    for group in map(simplify, groups):
        if any(simplify(name) == group and isinstance(value, str) for name, value in nested.items()):
            raise OptionsError(f"{variable} names an option inside one that has a value of its own")
        nested = nested.setdefault(group, {})
    if not option or not all(groups):
        raise OptionsError(f"{variable} names no option")
    nested[option] = text


def _section_or_all(document: Mapping[str, Any]) -> Mapping[str, Any]:
    section = _section(document)
    return document if section is None else section


def _section(document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    found = next((value for key, value in document.items() if simplify(key) == _SECTION), None)
    if found is not None and not isinstance(found, Mapping):
        raise OptionsError("its durablestack must hold options, and is a plain value")
    return found


def merged(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """`upper` over `lower`, groups option by option. Both have canonical names."""
    both = dict(_without_displaced(lower, upper))
    for name, value in upper.items():
        below = both.get(name)
        both[name] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return both


def nested(options: msgspec.Struct) -> dict[str, Any]:
    """The fields of options under their names, groups as dicts: what `merged` takes."""
    values = {name: getattr(options, name) for name in options.__struct_fields__}
    return {name: nested(value) if isinstance(value, msgspec.Struct) else value for name, value in values.items()}


def _without_displaced(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> Mapping[str, Any]:
    """A source that chooses the database displaces the choice below it, however that one was written."""
    if upper.get("database_url") is not None:
        return {name: _unconnected(value) for name, value in lower.items() if name != "storage_provider"}
    provider = upper.get("storage_provider")
    if provider is StorageProvider.IN_MEMORY or provider in upper:  # with its group, and so its connection string
        return {name: value for name, value in lower.items() if name != "database_url"}
    return lower


def _unconnected(value: Any) -> Any:
    return {n: v for n, v in value.items() if n != "connection_string"} if isinstance(value, dict) else value
