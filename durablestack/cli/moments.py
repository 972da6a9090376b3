"""When a run is to be due, as people write it: `2026-12-24T18:00+01:00`, or `1h30m` from now."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import rich_click as click

_UNITS = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
_DELAY = re.compile(r"(?:\d{1,9}[dhms])+", re.ASCII)
_PART = re.compile(r"(\d+)([dhms])", re.ASCII)
_DELAY_MAX = timedelta(days=3660)


def moment(text: str) -> datetime:
    """An instant in ISO 8601, with its time zone."""
    try:
        when = datetime.fromisoformat(text.strip())
    except ValueError:
        raise click.BadParameter(
            f"{text!r}: it takes an instant in ISO 8601, such as 2026-12-24T18:00:00+01:00"
        ) from None
    if when.tzinfo is None:
        raise click.BadParameter(f"{text!r} has no time zone; add one, such as Z or +01:00, as in 2026-12-24T18:00:00Z")
    try:
        return when.astimezone(UTC)
    except OverflowError:
        raise click.BadParameter("it lies outside the calendar") from None


def delay(text: str) -> timedelta:
    """A time from now."""
    if not _DELAY.fullmatch(text.strip()):
        raise click.BadParameter(f"{text!r}: it takes a time such as 30s, 10m, 2h, 1d or 1h30m")
    parts = _PART.findall(text)
    try:
        found = sum((timedelta(**{_UNITS[unit]: int(amount)}) for amount, unit in parts), timedelta())
    except OverflowError:
        found = timedelta.max
    if found > _DELAY_MAX:
        raise click.BadParameter("it is more than ten years")
    return found
