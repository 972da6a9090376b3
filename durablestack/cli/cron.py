"""durablestack cron explain"""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import rich_click as click

from durablestack.scheduling.cron import CronSchedule, Firing
from durablestack.scheduling.time_zones import check_time_zone

from .printing import instant, write, write_table

_COUNT_MAX = 1_000


@click.group()
def cron() -> None:
    """Look at cron expressions."""


@cron.command()
@click.argument("expression", metavar="EXPRESSION")
@click.option("--tz", "time_zone", default="UTC", metavar="ZONE", help="The IANA time zone that it is read in; UTC.")
@click.option("--count", type=click.IntRange(1, _COUNT_MAX), default=10, metavar="N", help="So many times; 10.")
@click.option("--from", "start", metavar="TIME", help="Times after this one, such as 2026-03-07T00:00; now.")
def explain(expression: str, time_zone: str, count: int, start: str | None) -> None:
    """Show when a cron expression fires next, and what it does where the clocks change.

    Quote the expression: it has 5 fields (minute hour day-of-month month day-of-week), or 6 with seconds first. A
    --from without an offset is in the time of --tz.
    """
    schedule, zone = CronSchedule(expression, time_zone), check_time_zone(time_zone)
    after = datetime.now(UTC) if start is None else _moment(start, zone)
    rows = []
    for _ in range(count):
        firing = schedule.firing_after(after)
        after = firing.at
        local = after.astimezone(zone)
        rows.append((f"{local:%a} {local}", instant(after), _note(firing, local, schedule)))
    write_table(("local time", "UTC", "note"), rows)
    write("\n".join(["", *_rules(schedule)]))


def _moment(text: str, zone: ZoneInfo) -> datetime:
    try:
        when = datetime.fromisoformat(text.strip())
    except ValueError:
        raise click.BadParameter(f"{text!r}: it takes a time such as 2026-03-07T00:00", param_hint="--from") from None
    return when if when.tzinfo is not None else when.replace(tzinfo=zone)


def _note(firing: Firing, local: datetime, schedule: CronSchedule) -> str:
    change, wall = firing.change, local.replace(tzinfo=None, fold=0)
    if change is None:
        return ""
    if change.skips and wall == firing.slot:
        return f"the clock skips {_clock(change.before)} to {_clock(change.after)}; the expression goes on with it"
    if change.skips:
        return f"{_missing(firing.slot, local)}; fires at {_clock(wall)}, the first valid instant after the gap"
    twice = f"{_clock(wall)} happens twice"
    if not schedule.fields.is_interval:
        return f"{twice}; a fixed time fires once, in the first pass"
    return f"{twice}; interval expression: fires in both passes, this is the {'second' if local.fold else 'first'}"


def _missing(slot: datetime, local: datetime) -> str:
    if slot.date() == local.date():
        return f"{_clock(slot)} does not exist on this day"
    return f"{slot.date()} {_clock(slot)} does not exist"


def _clock(wall: datetime) -> str:
    return f"{wall:%H:%M:%S}" if wall.second else f"{wall:%H:%M}"


def _rules(schedule: CronSchedule) -> list[str]:
    """The rule about days, if both day fields are set, and the one about clocks."""
    fields, rules = schedule.fields, []
    if fields.either_day:
        rules.append("Day-of-month and day-of-week are both set: a day that matches either of them fires.")
    elif fields.both_days:
        rules.append("Day-of-month and day-of-week are both set, one with a * in front: a day has to match both.")
    if schedule.time_zone == "UTC":
        rules.append("UTC has no clock changes: no time is skipped, none is repeated.")
    elif fields.is_interval:
        rules.append(
            "Interval expression (a *, a range or a step in seconds, minutes or hours): times that the clocks repeat "
            "fire in both passes; "
            + (
                "with every hour named, it goes on with the clock over times that are skipped."
                if fields.every_hour
                else "times that the clocks skip fire once, at the first valid instant after the gap."
            )
        )
    else:
        rules.append(
            "Fixed time: where the clocks repeat it, it fires once, in the first pass; where they skip it, at the "
            "first valid instant after the gap."
        )
    return rules
