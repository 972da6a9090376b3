"""Random expressions against a calendar that looks at every day and every minute, and against another library."""

import random
from calendar import monthrange
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim

from durablestack.errors import ScheduleError
from durablestack.scheduling.cron import CronSchedule

MINUTE = timedelta(minutes=1)
MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
WEEKDAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]


# --- random fields, and what they mean


class Field(NamedTuple):
    """The text of a field, and its meaning by the book: values, or a rule for days such as `15W`."""

    text: str
    values: set[int]
    rule: Callable[[date], bool] | None = None

    @property
    def starred(self) -> bool:
        return self.text.startswith(("*", "?"))

    @property
    def says_how_often(self) -> bool:
        return any(
            part.startswith("*") or "/" in part or "-" in part for part in self.text.split(",") if not is_one(part)
        )


def is_one(part: str) -> bool:
    """`7-7`, `7-7/2`"""
    low, dash, high = part.partition("/")[0].partition("-")
    return bool(dash) and low == high


def walked(low: int, high: int, step: int, first: int, last: int) -> set[int]:
    """Every `step`-th value on the way from low to high, going round the field if need be."""
    values, value, number = set(), low, 0
    while True:
        if number % step == 0:
            values.add(value)
        if value == high:
            return values
        value, number = (first if value == last else value + 1), number + 1


def a_part(draw: random.Random, first: int, last: int, *, odd: bool) -> tuple[str, set[int]]:
    """If `odd`, also ranges that wrap, and ranges from a value to itself."""
    low, high = draw.randint(first, last), draw.randint(first, last)
    if not odd:
        low, high = sorted((low, high))
        if low == high:
            return f"{low}", {low}
    step = draw.randint(1, last - first + 1) if draw.random() < 0.3 else draw.randint(1, 7)
    match draw.randrange(8):
        case 0:
            return f"*/{step}", set(range(first, last + 1, step))
        case 1:
            return f"{low}/{step}", set(range(low, last + 1, step))
        case 2:
            return f"{low}-{high}", walked(low, high, 1, first, last)
        case 3:
            return f"{low}-{high}/{step}", walked(low, high, step, first, last)
        case 4 if odd:
            return draw.choice([f"{low}-{low}", f"{low}-{low}/{step}"]), {low}
        case _:
            return f"{low}", {low}


def a_field(draw: random.Random, first: int, last: int, *, star: float, odd: bool = True) -> Field:
    if draw.random() < star:
        return Field("*", set(range(first, last + 1)))
    parts = [a_part(draw, first, last, odd=odd) for _ in range(draw.choice([1, 1, 1, 2, 3]))]
    return Field(",".join(text for text, _ in parts), set().union(*(values for _, values in parts)))


def with_names(draw: random.Random, field: Field, names: list[str], first: int) -> Field:
    """Numbers that are no steps replaced by names, in any case."""

    def name(text: str) -> str:
        low, slash, step = text.partition("/")
        numbers = [names[int(n) - first] if n.isdigit() and draw.random() < 0.5 else n for n in low.split("-")]
        return draw.choice([str.upper, str.title, str.lower])("-".join(numbers)) + slash + step

    return field._replace(text=",".join(map(name, field.text.split(","))))


def sundays_as_7(draw: random.Random, field: Field) -> Field:
    parts = field.text.split(",")
    return field._replace(text=",".join("7" if part == "0" and draw.random() < 0.5 else part for part in parts))


def last_day(day: date) -> int:
    return monthrange(day.year, day.month)[1]


def nearest_weekday(day: date, wanted: int) -> int:
    wanted = min(wanted, last_day(day))
    weekdays = [number for number in range(1, last_day(day) + 1) if day.replace(day=number).weekday() < 5]
    return min(weekdays, key=lambda number: abs(number - wanted))


def special_days(draw: random.Random) -> Field:
    number = draw.randint(1, 31)
    if draw.random() < 0.5:
        return Field("L", set(), lambda day: day.day == last_day(day))
    return Field(f"{number}W", set(), lambda day: day.day == nearest_weekday(day, number))


def special_weekdays(draw: random.Random) -> Field:
    weekday, nth = draw.randint(0, 6), draw.randint(1, 5)
    if draw.random() < 0.5:
        return Field(f"L{weekday}", set(), lambda day: day.isoweekday() % 7 == weekday and day.day + 7 > last_day(day))
    return Field(
        f"{WEEKDAYS[weekday]}#{nth}",
        set(),
        lambda day: day.isoweekday() % 7 == weekday and (day.day + 6) // 7 == nth,
    )


class Expression(NamedTuple):
    second: Field
    minute: Field
    hour: Field
    day: Field
    month: Field
    weekday: Field

    @property
    def text(self) -> str:
        fields = self if self.second.text else self[1:]
        return " ".join(field.text for field in fields)

    @property
    def is_interval(self) -> bool:
        return any(field.says_how_often for field in self[:3])

    def on(self, day: date) -> bool:
        if day.month not in self.month.values:
            return False
        of_month = self.day.rule(day) if self.day.rule else day.day in self.day.values
        of_week = self.weekday.rule(day) if self.weekday.rule else day.isoweekday() % 7 in self.weekday.values
        if self.day.starred or self.weekday.starred:
            return of_month and of_week
        return of_month or of_week

    def at(self, wall: datetime) -> bool:
        return (
            wall.minute in self.minute.values
            and wall.hour in self.hour.values
            and wall.second in self.second.values
            and self.on(wall.date())
        )


NO_SECONDS = Field("", {0})


def an_expression(draw: random.Random) -> Expression:
    day = special_days(draw) if draw.random() < 0.1 else a_field(draw, 1, 31, star=0.4)
    weekday = special_weekdays(draw) if draw.random() < 0.1 else a_field(draw, 0, 6, star=0.4)
    if weekday.rule is None:
        weekday = sundays_as_7(draw, with_names(draw, weekday, WEEKDAYS, 0))
    return Expression(
        a_field(draw, 0, 59, star=0.1) if draw.random() < 0.4 else NO_SECONDS,
        a_field(draw, 0, 59, star=0.2),
        a_field(draw, 0, 23, star=0.2),
        day,
        with_names(draw, a_field(draw, 1, 12, star=0.5), MONTHS, 1),
        weekday,
    )


# --- without clock changes


YEARS_MAX = 41


def next_by_looking(expression: Expression, start: datetime) -> datetime | None:
    """The next slot: the first matching time of the first matching day."""
    times = [
        time(hour, minute, second)
        for hour in sorted(expression.hour.values)
        for minute in sorted(expression.minute.values)
        for second in (sorted(expression.second.values) if hour == start.hour else [min(expression.second.values)])
    ]
    day = start.date()
    for number in range(366 * YEARS_MAX):
        if expression.on(day):
            for when in times:
                if number or when > start.time():
                    return datetime.combine(day, when)
        day += timedelta(days=1)
    return None


@pytest.mark.parametrize("seed", range(8))
def test_random_expressions_name_the_same_times_as_a_calendar_looked_through(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(400):
        expression = an_expression(draw)
        wall = datetime(2020, 1, 1) + timedelta(seconds=draw.randrange(10 * 366 * 86_400))
        expected = next_by_looking(expression, wall)
        if expected is None:
            with pytest.raises(ScheduleError, match="never fires"):
                CronSchedule(expression.text)
            continue
        schedule = CronSchedule(expression.text)
        for _ in range(3):
            assert expected is not None
            found = schedule.next_after(wall.replace(tzinfo=UTC)).replace(tzinfo=None)
            assert found == expected, (expression.text, wall)
            wall, expected = found, next_by_looking(expression, found)


# --- over clock changes

CHANGES = [
    ("America/New_York", "2025-03-09"),
    ("America/New_York", "2025-11-02"),
    ("Europe/London", "2025-03-30"),
    ("Europe/Dublin", "2025-10-26"),
    ("Africa/Casablanca", "2025-02-23"),
    ("Australia/Lord_Howe", "2025-04-05"),
    ("Australia/Lord_Howe", "2025-10-04"),
    ("America/Sao_Paulo", "2018-02-18"),
    ("America/Sao_Paulo", "2018-11-04"),
    ("America/Havana", "2025-11-02"),
    ("America/Santiago", "2025-09-07"),
    ("Pacific/Apia", "2011-12-30"),
    ("Asia/Pyongyang", "2018-05-04"),
]
# cronsim goes from hour to hour, and loses a part of one where the clocks change by half an hour
BY_WHOLE_HOURS = [change for change in CHANGES if change[0] not in ("Australia/Lord_Howe", "Asia/Pyongyang")]
AROUND = timedelta(hours=20)


def around(date_of_change: str) -> tuple[datetime, datetime]:
    middle = datetime.fromisoformat(date_of_change).replace(hour=10, tzinfo=UTC)
    return middle - AROUND, middle + AROUND


def an_expression_by_night(draw: random.Random, near: datetime, *, odd: bool) -> Expression:
    """Without seconds; mostly in the hours in which clocks are changed, on any day or on one nearby."""
    near = near + timedelta(days=draw.randint(-1, 1))
    hours = {draw.choice([23, 0, 1, 2, 3]) for _ in range(draw.randint(1, 3))}
    by_night = Field(",".join(map(str, sorted(hours))), hours)
    a_day = Field(str(near.day), {near.day})
    a_weekday = Field(str(near.isoweekday() % 7), {near.isoweekday() % 7})
    any_day, any_month = Field("*", set(range(1, 32))), Field("*", set(range(1, 13)))
    any_weekday = Field("*", set(range(7)))
    return Expression(
        NO_SECONDS,
        a_field(draw, 0, 59, star=0.05, odd=odd),
        by_night if draw.random() < 0.5 else a_field(draw, 0, 23, star=0.4, odd=odd),
        a_day if draw.random() < 0.2 else any_day,
        any_month,
        a_weekday if draw.random() < 0.2 else any_weekday,
    )


def fired_by_looking(expression: Expression, zone: ZoneInfo, start: datetime, end: datetime) -> set[datetime]:
    """Every minute is looked at, also those that the clock skips."""
    fired = set()
    minutes = [start + MINUTE * number for number in range((end - start) // MINUTE + 1)]
    for before, instant in pairwise(minutes):
        local = instant.astimezone(zone)
        if expression.at(local) and (expression.is_interval or not local.fold):
            fired.add(instant)
        skipped = before.astimezone(zone).replace(tzinfo=None, fold=0) + MINUTE
        while skipped < local.replace(tzinfo=None, fold=0):
            if expression.at(skipped) and len(expression.hour.values) < 24:
                fired.add(instant)
            skipped += MINUTE
    return fired


def sequence(schedule: CronSchedule, start: datetime, end: datetime) -> Iterator[datetime]:
    instant = start
    while (instant := schedule.next_after(instant)) <= end:
        yield instant


@pytest.mark.parametrize(("zone", "date_of_change"), CHANGES)
def test_random_expressions_fire_over_a_change_as_a_clock_watched_by_the_minute(zone: str, date_of_change: str) -> None:
    draw = random.Random(date_of_change)
    start, end = around(date_of_change)
    for _ in range(60):
        expression = an_expression_by_night(draw, start + AROUND, odd=True)
        found = list(sequence(CronSchedule(expression.text, zone), start, end))
        assert found == sorted(fired_by_looking(expression, ZoneInfo(zone), start, end)), expression.text


@pytest.mark.parametrize(("zone", "date_of_change"), BY_WHOLE_HOURS)
def test_random_expressions_fire_over_a_change_as_cronsim_has_it(zone: str, date_of_change: str) -> None:
    """Where it and we mean to do the same. It goes by Debian: what begins with `*` skips a gap, all else fires once
    in an overlap. We fire after a gap unless every hour is named, and twice whatever has a `*`, a range or a step."""
    draw = random.Random(date_of_change)
    start, end = around(date_of_change)
    for _ in range(60):
        expression = an_expression_by_night(draw, start + AROUND, odd=False)
        local = start.astimezone(ZoneInfo(zone))
        ours = set(sequence(CronSchedule(expression.text, zone), start, end))
        theirs = set()
        for fired in CronSim(expression.text, local):
            if fired > end.astimezone(fired.tzinfo):
                break
            theirs.add(fired.astimezone(UTC))
        goes_with_the_clock = expression.minute.starred or expression.hour.starred
        if goes_with_the_clock:
            assert theirs <= ours, expression.text
            assert all(is_after_a_gap(extra, zone) for extra in ours - theirs), expression.text
            assert ours == theirs or len(expression.hour.values) < 24, expression.text
        else:
            in_second_pass = {fired for fired in ours if fired.astimezone(ZoneInfo(zone)).fold}
            assert expression.is_interval or not in_second_pass, expression.text
            after_a_gap = {fired for fired in theirs - ours if is_after_a_gap(fired, zone)}
            assert not after_a_gap or len(expression.hour.values) == 24, expression.text
            assert ours - in_second_pass == theirs - after_a_gap, expression.text


def is_after_a_gap(instant: datetime, zone: str) -> bool:
    offsets = [moment.astimezone(ZoneInfo(zone)).utcoffset() for moment in (instant - MINUTE, instant)]
    return offsets[0] < offsets[1]
