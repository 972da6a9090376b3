"""Declares when a job recurs: `@recurring_job` beside `@durable_job`, or alone."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from types import FunctionType
from typing import Any, TypeVar

from durablestack.errors import JobDefinitionError, ScheduleError
from durablestack.scheduling.recurring import Recurrence

Job = TypeVar("Job", bound=Callable[..., Any])

_MARK = "__recurring_job__"


def recurring_job(
    cron: str | None = None,
    *,
    every: timedelta | None = None,
    time_zone: str = "UTC",
    enabled: bool = True,
    allow_concurrent_runs: bool = False,
    args: Any = None,
) -> Callable[[Job], Job]:
    """Declare that a job recurs: at the times of a cron expression, or in an interval. It can be enqueued all the same.

    Each due time, a slot, gets one run, whichever and however many workers there are. What becomes of slots that
    were missed, and who wins when code and database differ, is for the options `recurring.*`.

    Args:
        cron: five fields, `minute hour day-of-month month day-of-week`, or six with seconds first.
        every: instead of `cron`, the time from one slot to the next, one second or more.
        time_zone: the IANA zone in which `cron` is read.
        enabled: whether the schedule makes runs when it is first stored.
        allow_concurrent_runs: whether a slot gets its run while a run of the job is pending or leased. Otherwise
            it waits until there is none.
        args: the arguments of its runs, for a job that takes some.

    Raises:
        JobDefinitionError: at once, if it cannot recur like this.
    """
    if callable(cron):
        raise JobDefinitionError("@recurring_job needs a cron expression or every=, as in @recurring_job('0 2 * * *')")
    recurrence = checked(
        "@recurring_job",
        Recurrence(
            cron=cron,
            every=every,
            time_zone=time_zone,
            enabled=enabled,
            allow_concurrent_runs=allow_concurrent_runs,
            args=args,
        ),
    )

    def declare(job: Job) -> Job:
        if not can_be_job(job):
            raise JobDefinitionError(f"{job!r} cannot recur: a job is a class with a method execute, or a function")
        setattr(job, _MARK, recurrence)
        return job

    return declare


def can_be_job(value: Any) -> bool:
    """Whether it is a class or function, by its type: a lazy proxy that stands in a module is not to be woken."""
    return issubclass(type(value), (type, FunctionType))


def recurrence_of(job: Any) -> Recurrence | None:
    """What `@recurring_job` was told about exactly this class or function; a subclass does not inherit it."""
    if not can_be_job(job):
        return None
    recurrence = vars(job).get(_MARK)
    return recurrence if isinstance(recurrence, Recurrence) else None


def checked(subject: str, recurrence: Recurrence) -> Recurrence:
    try:
        recurrence.check()
    except ScheduleError as error:
        raise JobDefinitionError(f"{subject}: {error}") from None
    return recurrence
