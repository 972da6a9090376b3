"""Keeps schedules in step with the code, and makes the run of each slot when it is due.

Every worker does this for the jobs that it has registered: the row of a schedule is locked while its slot is dealt
with, so that it does not matter how many of them see it due. One bad schedule stops neither the others nor claiming.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable
from datetime import timedelta

import anyio
from msgspec.structs import replace

from durablestack.errors import DurableStackError, ScheduleError, SchemaError, StoreError, StoreUnavailable
from durablestack.jobs import JobRegistry
from durablestack.options import OrphanedJobBehavior, RecurringOptions
from durablestack.runs import Run
from durablestack.schedules import Schedule
from durablestack.scheduling.recurring import Declaration, orphaned, slot_due, synced
from durablestack.stores.contract import ChangeSchedule, Store

from .door import ask_store
from .leases import boottime

log = logging.getLogger(__name__)

SEEN_EVERY = timedelta(seconds=20)
"""How often a worker says which schedules are in its code."""

ORPHANED_AFTER = timedelta(seconds=60)
"""A schedule that no worker has had in its code for so long is orphaned."""

_LOOK_AGAIN_SECONDS = 1.0
_AT_ONCE_SECONDS = 0.0
_ERROR_MESSAGE_LENGTH_MAX = 500


class Scheduler:
    """`on_enqueued` is called on the event loop whenever there is a new run to claim."""

    def __init__(
        self,
        store: Store,
        jobs: JobRegistry,
        options: RecurringOptions,
        *,
        application: str,
        poll_interval_seconds: float,
        on_enqueued: Callable[[], None],
    ) -> None:
        self.enqueued: Counter[str] = Counter()
        self._store = store
        self._existing_job_behavior = options.registration_sync.existing_job_behavior
        self._orphaned_job_behavior = options.registration_sync.orphaned_job_behavior
        self._application = application
        self._poll_interval_seconds = poll_interval_seconds
        self._on_enqueued = on_enqueued
        self._declarations = {
            job.name: Declaration(
                job_name=job.name,
                recurrence=job.recurrence,
                payload=job.recurring_payload,
                max_attempts=job.max_attempts,
                application=application,
            )
            for job in jobs
            if job.recurrence is not None
        }
        self._slot_due = slot_due(options.catch_up_policy)
        self._woken = anyio.Event()
        self._say_seen_at = 0.0
        self._waiting: set[str] = set()  # the jobs with a slot that was due when we looked
        self._told: dict[str, str] = {}  # schedules that cannot be read, and what was logged about each
        self._unanswered = False

    def run_ended(self, run: Run) -> None:
        """A slot may have waited for it."""
        if run.job_name in self._waiting:
            self._woken.set()

    # --- the actor

    async def run(self) -> None:
        synchronized = False
        while True:
            self._woken = anyio.Event()
            rest_seconds = self._poll_interval_seconds
            try:
                if not synchronized:
                    await self._synchronize()
                    synchronized = True
                await self._keep_seen()
                rest_seconds = await self._materialize_due()
                self._answered()
            except StoreError as error:
                self._failed(error)
            with anyio.move_on_after(min(rest_seconds, SEEN_EVERY.total_seconds())):
                await self._woken.wait()

    async def _materialize_due(self) -> float:
        """Make the runs of the slots that are due; return the seconds until it is worth to look again."""
        if not self._declarations:
            return self._poll_interval_seconds
        within = timedelta(seconds=self._poll_interval_seconds)
        asked_at = boottime()
        now, schedules = await ask_store(self._store.next_schedules, self._declarations, within)
        due_in_seconds = {
            schedule.job_name: (schedule.next_run_at - now).total_seconds()
            for schedule in schedules
            if schedule.next_run_at is not None
        }
        self._waiting = {job_name for job_name, seconds in due_in_seconds.items() if seconds <= 0}
        rest_seconds = self._poll_interval_seconds * random.uniform(0.9, 1.0)
        for job_name, seconds in due_in_seconds.items():
            if seconds > 0:
                return max(0.0, min(rest_seconds, seconds - (boottime() - asked_at)))
            made = await self._materialize(job_name)
            rest_seconds = min(rest_seconds, _AT_ONCE_SECONDS if made else _LOOK_AGAIN_SECONDS)
        return rest_seconds

    async def _materialize(self, job_name: str) -> bool:
        """Make the run of a slot that is due, if nobody else does and it need not wait."""
        try:
            run = await ask_store(self._store.materialize_recurring_run, job_name, self._slot_due)
        except (StoreUnavailable, SchemaError):
            raise
        except (ScheduleError, StoreError) as error:  # of this schedule: it must not hold up the others
            await self._report(job_name, error)
            return False
        self._told.pop(job_name, None)
        if run is None:
            return False
        log.info("recurring run enqueued: run_id=%s job_name=%s slot=%s", run.id, run.job_name, run.slot)
        self.enqueued[job_name] += 1
        self._on_enqueued()
        return True

    # --- what code and database agree on

    async def _synchronize(self) -> None:
        for job_name, declared in self._declarations.items():
            stored = await self._change(job_name, synced(declared, self._existing_job_behavior))
            if stored is not None:
                _tell_difference(stored, declared)

    async def _keep_seen(self) -> None:
        if boottime() < self._say_seen_at:
            return
        self._say_seen_at = boottime() + SEEN_EVERY.total_seconds()
        if self._declarations:
            await ask_store(self._store.keep_schedules_seen, self._declarations, SEEN_EVERY / 2)
        if self._orphaned_job_behavior is OrphanedJobBehavior.DISABLE:
            await self._look_for_orphans()

    async def _look_for_orphans(self) -> None:
        for schedule in await ask_store(self._store.list_schedules):
            declared = self._declarations.get(schedule.job_name)
            if declared is None and schedule.enabled:
                await self._disable_if_orphaned(schedule.job_name)
            if declared is not None and schedule.orphaned_at is not None:  # nobody heard of us for a while
                await self._change(schedule.job_name, synced(declared, self._existing_job_behavior))

    async def _disable_if_orphaned(self, job_name: str) -> None:
        left = await self._change(job_name, orphaned(self._application, ORPHANED_AFTER))
        if left is not None and left.orphaned_at is not None:
            log.warning(
                "schedule disabled, its job is in nobody's code any more: job_name=%s (option "
                "recurring.registration_sync.orphaned_job_behavior)",
                job_name,
            )

    async def _change(self, job_name: str, change: ChangeSchedule) -> Schedule | None:
        try:
            return await ask_store(self._store.change_schedule, job_name, change)
        except (StoreUnavailable, SchemaError):
            raise
        except (ScheduleError, StoreError) as error:
            await self._report(job_name, error)
            return None

    # --- trouble

    async def _report(self, job_name: str, error: DurableStackError) -> None:
        """Tell of a schedule that cannot be read, once for each reason, where it is stored too."""
        text = str(error)[:_ERROR_MESSAGE_LENGTH_MAX]
        if self._told.get(job_name) == text:
            return

        def note(stored: Schedule | None, _: object) -> Schedule | None:
            return None if stored is None else replace(stored, error_message=text)

        try:
            await ask_store(self._store.change_schedule, job_name, note)
        except (StoreUnavailable, SchemaError):
            raise
        except StoreError as refused:
            log.debug("its row takes no note either: %s", refused)
        self._told[job_name] = text
        log.error("schedule cannot be read, it makes no runs: job_name=%s error=%s", job_name, text)

    def _failed(self, error: StoreError) -> None:
        if not self._unanswered:
            log.warning("could not look for due schedules, trying again until it works: %s", error)
        self._unanswered = True

    def _answered(self) -> None:
        if self._unanswered:
            log.info("schedules are looked after again")
        self._unanswered = False


def _tell_difference(stored: Schedule, declared: Declaration) -> None:
    code = declared.recurrence
    if (stored.cron_expression, stored.every, stored.time_zone) != (code.cron, code.every, code.time_zone):
        log.warning(
            "schedule of job_name=%s is %r in %s in the database, other than in the code; the database's is kept "
            "(option recurring.registration_sync.existing_job_behavior)",
            stored.job_name,
            stored.recurs,
            stored.time_zone,
        )
