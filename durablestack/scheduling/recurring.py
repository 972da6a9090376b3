"""When a schedule recurs: which slot is due, what becomes of missed ones, and what code and database agree on.

    declared in code --synced--> Schedule, stored --slot_due--> Slot --> a run, and the next slot

Pure functions of a schedule and the store's time. A slot is dealt with once; of those that were missed, SkipMissed
runs the latest, CatchUp each in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Protocol

from msgspec import Struct
from msgspec.structs import replace

from durablestack.errors import ScheduleError
from durablestack.options import CatchUpPolicy, ExistingJobBehavior
from durablestack.schedules import Schedule, Slot

from .cron import CronSchedule
from .intervals import IntervalSchedule
from .time_zones import check_time_zone

_SLOT_RESOLUTION = timedelta(seconds=1)


class Trigger(Protocol):
    def next_after(self, instant: datetime) -> datetime: ...


class Recurrence(Struct, frozen=True, kw_only=True):
    """What `@recurring_job` was told. Exactly one of `cron` and `every` is set."""

    cron: str | None = None
    every: timedelta | None = None
    time_zone: str = "UTC"
    enabled: bool = True
    allow_concurrent_runs: bool = False
    args: Any = None

    def check(self) -> None:
        """Raise ScheduleError unless it recurs."""
        if (self.cron is None) == (self.every is None):
            raise ScheduleError("a recurring job takes a cron expression or every=, one of the two")
        for flag in ("enabled", "allow_concurrent_runs"):
            if not isinstance(getattr(self, flag), bool):
                raise ScheduleError(f"{flag} is {getattr(self, flag)!r}; it must be True or False")
        check_time_zone(self.time_zone)  # an interval has no use for it, but it is stored
        trigger(self.cron, self.every, self.time_zone)


class Declaration(Struct, frozen=True, kw_only=True):
    """A recurring job as an application's code has it."""

    job_name: str
    recurrence: Recurrence
    payload: str | None
    max_attempts: int
    application: str


def trigger(cron_expression: str | None, every: timedelta | None, time_zone: str) -> Trigger:
    """Raises ScheduleError if it cannot be meant."""
    if cron_expression is not None:
        return CronSchedule(cron_expression, time_zone)
    if every is not None:
        return IntervalSchedule(every)
    raise ScheduleError("a schedule needs a cron expression or an interval, and has neither")


def trigger_of(schedule: Schedule) -> Trigger:
    return trigger(schedule.cron_expression, schedule.every, schedule.time_zone)


# --- slots


def slot_due(policy: CatchUpPolicy) -> Callable[[Schedule, datetime], Slot | None]:
    """For a schedule and the store's time, the slot whose run is to be made now; None if none is due.

    Raises:
        ScheduleError: the stored schedule cannot be read.
    """

    def due(schedule: Schedule, now: datetime) -> Slot | None:
        first, recurs = schedule.next_run_at, trigger_of(schedule)
        if first is None or first > now:
            return None
        slot = first if policy is CatchUpPolicy.CATCH_UP else _latest_slot(recurs, first, now)
        if schedule.last_slot is not None and slot <= schedule.last_slot:  # the clock went back, or somebody's hand
            return Slot(None, recurs.next_after(schedule.last_slot))
        return Slot(slot, recurs.next_after(slot))

    return due


def _latest_slot(recurs: Trigger, first: datetime, now: datetime) -> datetime:
    """The latest slot up to now, `first` being one: by halving, so that it does not matter how many were missed."""
    if isinstance(recurs, IntervalSchedule):
        return first + recurs.every * ((now - first) // recurs.every)
    latest, none_after = first, now
    while none_after - latest >= _SLOT_RESOLUTION:
        middle = latest + (none_after - latest) / 2
        following = recurs.next_after(middle)
        if following <= now:
            latest = following
        else:
            none_after = middle
    return latest


# --- changes


def synced(declared: Declaration, behavior: ExistingJobBehavior) -> Callable[[Schedule | None, datetime], Schedule]:
    """What is to be stored for a recurring job in code. When it recurs, and whether, is the database's to say,
    unless `behavior` is UpdateFromCode; how its runs are made is always the code's."""
    recurrence = declared.recurrence

    def change(stored: Schedule | None, now: datetime) -> Schedule:
        if stored is None:
            return rescheduled(_new_schedule(declared, now), None, now)
        changed = replace(
            stored,
            allow_concurrent_runs=recurrence.allow_concurrent_runs,
            payload=declared.payload,
            max_attempts=declared.max_attempts,
            enabled=stored.enabled or stored.orphaned_at is not None,
            orphaned_at=None,
            seen_at=now,
        )
        if behavior is ExistingJobBehavior.UPDATE_FROM_CODE:
            changed = replace(
                changed,
                cron_expression=recurrence.cron,
                every=recurrence.every,
                time_zone=recurrence.time_zone,
                enabled=recurrence.enabled,
                application=declared.application,
            )
        return rescheduled(changed, stored, now)

    return change


def _new_schedule(declared: Declaration, now: datetime) -> Schedule:
    recurrence = declared.recurrence
    return Schedule(
        job_name=declared.job_name,
        cron_expression=recurrence.cron,
        every=recurrence.every,
        time_zone=recurrence.time_zone,
        enabled=recurrence.enabled,
        allow_concurrent_runs=recurrence.allow_concurrent_runs,
        payload=declared.payload,
        max_attempts=declared.max_attempts,
        application=declared.application,
        seen_at=now,
        created_at=now,
        updated_at=now,
    )


def orphaned(application: str, unseen_for: timedelta) -> Callable[[Schedule | None, datetime], Schedule | None]:
    """Disable a schedule of this application that no worker has had in its code for a while.

    Not at once: while a new version is rolled out, workers of the old one do not know what the new one brought.
    """

    def change(stored: Schedule | None, now: datetime) -> Schedule | None:
        if stored is None or not stored.enabled or stored.application != application:
            return None
        if stored.seen_at > now - unseen_for:
            return None
        return rescheduled(replace(stored, enabled=False, orphaned_at=now), stored, now)

    return change


def rescheduled(changed: Schedule, before: Schedule | None, now: datetime) -> Schedule:
    """The schedule with the next slot that follows from what was changed about it: none if it is disabled, one
    from now on if it was enabled or recurs otherwise than before.

    Raises:
        ScheduleError: when it recurs cannot be read.
    """
    if not changed.enabled:
        return replace(changed, next_run_at=None)
    if before is not None and before.enabled and before.next_run_at is not None and _recurs_alike(changed, before):
        return changed
    # a slot that lies ahead was dealt with while the clock was wrong: it must not hold up what is asked for now
    last_slot = changed.last_slot if changed.last_slot is not None and changed.last_slot <= now else None
    return replace(changed, next_run_at=trigger_of(changed).next_after(now), last_slot=last_slot, error_message=None)


def _recurs_alike(one: Schedule, other: Schedule) -> bool:
    return (one.cron_expression, one.every, one.time_zone) == (other.cron_expression, other.every, other.time_zone)
