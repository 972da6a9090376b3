"""What a cron expression says: its fields read one by one, and refused unless every part is known to be kept.

    "*/20 22-4 * * mon-mon,7"  ──read_cron──>  0,20,40 │ 0,1,2,3,4,22,23 │ * │ * │ 0,1

The values are spelled out here, so that whoever computes dates from them has nothing left to interpret: not the
ranges that wrap, nor those from a value to itself, nor the steps.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from msgspec import Struct

from durablestack.errors import ScheduleError

CRON_LENGTH_MAX = 256

_FIELDS_EXPECTED = "5 fields (minute hour day-of-month month day-of-week), or 6 with seconds first, separated by spaces"
_NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_NO_NAMES: Mapping[str, int] = MappingProxyType({})

# *, */15, 10, 10/15, 10-20, 10-20/2, and names for numbers
_PART = re.compile(r"(?:\*|(?P<low>[0-9a-z]+)(?:-(?P<high>[0-9a-z]+))?)(?:/(?P<step>[0-9]+))?", re.ASCII)
_NEAREST_WEEKDAY = re.compile(r"(?P<day>[0-9]+)w", re.ASCII)
_LAST_OF_WEEKDAY = re.compile(r"l(?P<day>[0-9]+)", re.ASCII)
_NTH_OF_WEEKDAY = re.compile(r"(?P<day>[0-9a-z]+)#(?P<nth>[1-5])", re.ASCII)


class _Field(Struct, frozen=True):
    name: str
    first: int
    last: int
    allowed: str
    names: Mapping[str, int] = _NO_NAMES
    highest: int = 0
    """What may be written, if more than `last`: a 7 for Sunday."""

    @property
    def size(self) -> int:
        return self.last - self.first + 1

    def value(self, text: str) -> int | None:
        """None if it is no value of this field."""
        value = self.names.get(text, int(text) if text.isdigit() else -1)
        return value if self.first <= value <= max(self.last, self.highest) else None

    def wrapped(self, value: int) -> int:
        return self.first + (value - self.first) % self.size


def _numbered(*names: str, first: int) -> Mapping[str, int]:
    return MappingProxyType({name: number for number, name in enumerate(names, first)})


def _of_the_clock(name: str, last: int) -> _Field:
    return _Field(name, 0, last, f"0 to {last}, a range 5-10, a step */5 or 5-20/5, or a list of them")


_SECOND = _of_the_clock("second", 59)
_MINUTE = _of_the_clock("minute", 59)
_HOUR = _of_the_clock("hour", 23)
_DAY_OF_MONTH = _Field(
    "day-of-month",
    1,
    31,
    "1 to 31, a range 1-15, a step */2, L (the last day), a list of them, or alone 15W (the weekday nearest to the "
    "15th; 31W is the last weekday)",
)
_MONTH = _Field(
    "month",
    1,
    12,
    "1 to 12 or jan to dec, a range 4-9, a step */3, or a list of them",
    names=_numbered("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec", first=1),
)
_DAY_OF_WEEK = _Field(
    "day-of-week",
    0,
    6,
    "0 to 7 or sun to sat (0 and 7 are Sunday), a range mon-fri, a step */2, or a list of them, or 5#3 (the third "
    "Friday of the month), L5 (the last Friday), or a list of those",
    names=_numbered("sun", "mon", "tue", "wed", "thu", "fri", "sat", first=0),
    highest=7,
)
_FIELDS = (_SECOND, _MINUTE, _HOUR, _DAY_OF_MONTH, _MONTH, _DAY_OF_WEEK)
_DAY_FIELDS = (_DAY_OF_MONTH, _DAY_OF_WEEK)


class FieldText(Struct, frozen=True):
    """One field, spelled out: `*`, or a sorted list of numbers, or days such as `L`, `15W`, `L5`, `5#3`."""

    text: str
    starred: bool
    """Begins with `*` (or is `?`), which is what the rule about the two day fields asks for."""
    is_interval: bool
    """Has a `*`, a range or a step: it says how often rather than when."""


class CronFields(Struct, frozen=True):
    second: FieldText
    minute: FieldText
    hour: FieldText
    day_of_month: FieldText
    month: FieldText
    day_of_week: FieldText

    @property
    def is_interval(self) -> bool:
        """Fires every so often. Otherwise at fixed times of the day."""
        return self.second.is_interval or self.minute.is_interval or self.hour.is_interval

    @property
    def every_hour(self) -> bool:
        return self.hour.text == "*"

    @property
    def either_day(self) -> bool:
        """Both day fields are set, and it is enough that one of them matches: the rule of Unix."""
        return not self.day_of_month.starred and not self.day_of_week.starred

    @property
    def both_days(self) -> bool:
        """Both day fields are set, and a day has to match both: so it is on Unix if one of them begins with `*`."""
        return not self.either_day and "*" not in (self.day_of_month.text, self.day_of_week.text)


def read_cron(expression: str) -> CronFields:
    """Read an expression of 5 fields, or of 6 with seconds first.

    Raises:
        ScheduleError: anything else, with the field, the part and what it takes.
    """
    _check_text(expression)
    words = expression.split()
    if len(words) not in (5, 6):
        raise ScheduleError(f"cron expression {expression!r} has {len(words)} fields; it takes {_FIELDS_EXPECTED}")
    if len(words) == 5:
        words.insert(0, "0")
    try:
        return CronFields(*(_read_field(word, field) for word, field in zip(words, _FIELDS, strict=True)))
    except ScheduleError as error:
        raise ScheduleError(f"cron expression {expression!r}: {error}") from None


def _check_text(expression: str) -> None:
    if not isinstance(expression, str):
        raise ScheduleError(f"a cron expression is text such as '0 2 * * *', not a {type(expression).__name__}")
    if len(expression) > CRON_LENGTH_MAX:
        raise ScheduleError(
            f"cron expression {expression[:20]!a}… is {len(expression)} characters long; at most "
            f"{CRON_LENGTH_MAX} are allowed"
        )
    if not (expression.isascii() and expression.isprintable()):
        raise ScheduleError(
            f"cron expression {expression!a} has characters that are not allowed; it takes ASCII letters, digits, "
            "* , - / # ? and spaces"
        )
    if expression.strip().startswith("@"):
        instead = _NICKNAMES.get(expression.strip().lower())
        hint = f"write {instead!r}" if instead else f"it takes {_FIELDS_EXPECTED}"
        raise ScheduleError(f"cron expression {expression!r} is a nickname, which is not supported; {hint}")


def _read_field(word: str, field: _Field) -> FieldText:
    if word == "?" and field in _DAY_FIELDS:
        return FieldText("*", starred=True, is_interval=False)
    values: set[int] = set()
    special: set[str] = set()
    is_interval = False
    for part in word.split(","):
        days = _special_days(part, field)
        if days is not None:
            special.add(days)
        else:
            found, several = _values(part, field)
            values.update(found)
            is_interval = is_interval or several
    _check_special(word, field, values, special)
    everything = len(values) == field.size
    text = "*" if everything else ",".join([*map(str, sorted(values)), *sorted(special)])
    return FieldText(text, starred=word.startswith("*"), is_interval=is_interval)


def _values(part: str, field: _Field) -> tuple[list[int], bool]:
    """The values that a part of a list stands for, and whether it is `*`, a range or a step.

    `5-5` and `5-5/3` are no range, but a 5.
    """
    match = _PART.fullmatch(part.lower())
    if match is None:
        raise _refused(part, field)
    low = field.first if match["low"] is None else field.value(match["low"])
    high = low if match["high"] is None else field.value(match["high"])
    if low is None or high is None:
        raise _refused(part, field)
    step = 1 if match["step"] is None else int(match["step"])
    if not 1 <= step <= field.size:
        raise ScheduleError(f"{field.name} {part!r} has a step of {step}; a step is 1 to {field.size}")
    to_the_end = match["low"] is None or (match["high"] is None and match["step"] is not None)
    if to_the_end:
        high = field.last
    # a range that ends before it begins goes on past the end of the field: 22-4, fri-mon
    length = high - low + 1 if high >= low else high - low + 1 + field.size
    return [field.wrapped(low + passed) for passed in range(0, length, step)], to_the_end or low != high


def _special_days(part: str, field: _Field) -> str | None:
    """`L` and `15W` of a month, `L5` and `5#3` of a week, in small letters and with numbers; None if it is neither."""
    if field is _DAY_OF_MONTH:
        if part in ("L", "l"):
            return "l"
        match = _NEAREST_WEEKDAY.fullmatch(part.lower())
        form = "{}w"
    elif field is _DAY_OF_WEEK:
        nth = _NTH_OF_WEEKDAY.fullmatch(part.lower())
        match = nth or _LAST_OF_WEEKDAY.fullmatch(part.lower())
        form = "{}#" + nth["nth"] if nth else "l{}"
    else:
        return None
    if match is None:
        return None
    day = field.value(match["day"])
    if day is None:
        raise _refused(part, field)
    return form.format(field.wrapped(day))


def _check_special(word: str, field: _Field, values: set[int], special: set[str]) -> None:
    if field is _DAY_OF_MONTH and "," in word and any(days.endswith("w") for days in special):
        raise _refused(word, field)
    if field is _DAY_OF_WEEK and values and special:
        raise _refused(word, field)


def _refused(part: str, field: _Field) -> ScheduleError:
    return ScheduleError(f"{field.name} {part!r} is not supported; it takes {field.allowed}")
