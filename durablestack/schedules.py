"""A schedule as it is stored: when a job recurs, and what was last made of it.

The definition comes from code (`@recurring_job`), the row belongs to the database: administrators change the row.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from msgspec import Struct


class Schedule(Struct, frozen=True, kw_only=True):
    """The schedule of one job. Instants are aware, in UTC.

    Attributes:
        cron_expression, every: when it recurs; exactly one of them is set.
        time_zone: the IANA zone in which a cron expression is read.
        enabled: whether it makes runs. A disabled schedule has no `next_run_at`.
        allow_concurrent_runs: whether a slot gets its run while an earlier run of the job is pending or leased.
        payload: the arguments of its runs, as JSON text.
        next_run_at: the earliest slot that has no run yet, in the past while it waits for its turn.
        last_slot: the latest slot that was dealt with.
        application: who declared it; nobody else may disable it as orphaned.
        seen_at: when a worker that has it in its code last said so.
        orphaned_at: since when it is disabled because it is in nobody's code any more.
        error_message: why no slot can be computed, if none can.
    """

    job_name: str
    cron_expression: str | None = None
    every: timedelta | None = None
    time_zone: str = "UTC"
    enabled: bool = True
    allow_concurrent_runs: bool = False
    payload: str | None = None
    max_attempts: int = 3
    next_run_at: datetime | None = None
    last_slot: datetime | None = None
    application: str = ""
    seen_at: datetime
    orphaned_at: datetime | None = None
    error_message: str | None = None
    created_at: datetime
    updated_at: datetime

    @property
    def recurs(self) -> str:
        """When it recurs, for people."""
        if self.cron_expression is not None:
            return self.cron_expression
        return f"every {self.every}" if self.every is not None else "never"


class Slot(Struct, frozen=True):
    """An instant at which a schedule is to have a run, and the one after it.

    `at` None: nothing is due any more, and only `next_run_at` is to be set right.
    """

    at: datetime | None
    next_run_at: datetime
