"""Look after schedules while an application runs: list, enable, disable, change, run now."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from uuid import UUID

from msgspec.structs import replace

from durablestack.errors import ScheduleBusy, ScheduleError
from durablestack.schedules import Schedule
from durablestack.scheduling.cron import CronSchedule
from durablestack.scheduling.recurring import rescheduled
from durablestack.stores.contract import Store


class ScheduleAdmin:
    """Works on what is stored, whoever declared it; workers follow within their poll interval.

    All methods raise StoreUnavailable when the database does not answer; those that take a `job_name` raise
    ScheduleError when it has no schedule.
    """

    def __init__(self, store: Store, *, enqueued: Callable[[], None] = lambda: None) -> None:
        self._store = store
        self._enqueued = enqueued

    def list_scheduled_jobs(self, include_disabled: bool = False) -> list[Schedule]:
        """All schedules by the names of their jobs, the disabled ones if asked for."""
        return [schedule for schedule in self._store.list_schedules() if include_disabled or schedule.enabled]

    def get_scheduled_job(self, job_name: str) -> Schedule:
        """The schedule of one job."""
        schedule = self._store.get_schedule(job_name)
        if schedule is None:
            raise self._unknown(job_name)
        return schedule

    def set_scheduled_job_enabled(self, job_name: str, enabled: bool) -> Schedule:
        """Enable a schedule, to go on from now; or disable it, so that it has no next run."""

        def change(schedule: Schedule, now: datetime) -> Schedule:
            return rescheduled(replace(schedule, enabled=enabled, orphaned_at=None), schedule, now)

        return self._change(job_name, change)

    def update_scheduled_job_cron(self, job_name: str, cron_expression: str, time_zone: str | None = None) -> Schedule:
        """Let a schedule recur by another cron expression, from now on, and in another zone if one is given.

        A worker that starts with `recurring.registration_sync.existing_job_behavior = UpdateFromCode` takes it back.

        Raises:
            ScheduleError: also when the expression or the zone cannot be meant; nothing is changed then.
        """

        def change(schedule: Schedule, now: datetime) -> Schedule:
            zone = schedule.time_zone if time_zone is None else time_zone
            CronSchedule(cron_expression, zone)  # a disabled schedule is not computed, and should be right all the same
            changed = replace(schedule, cron_expression=cron_expression, every=None, time_zone=zone, error_message=None)
            return rescheduled(changed, schedule, now)

        return self._change(job_name, change)

    def run_scheduled_job_now(self, job_name: str) -> UUID:
        """Enqueue a run of a scheduled job with its declared arguments, and return its id. The schedule stays as it is.

        Raises:
            ScheduleBusy: its runs may not overlap, and one is pending or leased.
        """
        self.get_scheduled_job(job_name)
        run_id = self._store.run_schedule_now(job_name)
        if run_id is None:
            raise ScheduleBusy(
                f"a run of {job_name!r} is pending or leased, and its schedule does not allow concurrent runs"
            )
        self._enqueued()
        return run_id

    def _change(self, job_name: str, change: Callable[[Schedule, datetime], Schedule]) -> Schedule:
        def change_if_there(stored: Schedule | None, now: datetime) -> Schedule | None:
            if stored is None:
                return None
            try:
                return change(stored, now)
            except ScheduleError as error:
                raise ScheduleError(f"schedule of job {job_name!r}: {error}") from None

        changed = self._store.change_schedule(job_name, change_if_there)
        if changed is None:
            raise self._unknown(job_name)
        return changed

    def _unknown(self, job_name: str) -> ScheduleError:
        known = ", ".join(schedule.job_name for schedule in self._store.list_schedules()) or "none"
        return ScheduleError(f"there is no schedule of a job {job_name!r}; there are: {known}")
