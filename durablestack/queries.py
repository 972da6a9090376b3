"""Read runs: one, the latest, by status, by job, or those that wait."""

from __future__ import annotations

import time
from collections.abc import Collection
from uuid import UUID

from durablestack.errors import StoreError
from durablestack.runs import Attempt, Run, RunStatus
from durablestack.stores.contract import Store, checked_run_id

TAKE_MAX = 1_000

_LOOK_EVERY_SECONDS = 0.2


class RunQueries:
    """Reads; nothing here changes a run. `take` is how many runs at most, 1 to 1,000.

    All methods raise StoreUnavailable when the database does not answer, and StoreError when a run id, `take` or a
    status cannot be meant.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def get_run(self, run_id: UUID) -> Run | None:
        """The run, or None if there is none, or none any more."""
        return self._store.get_run(checked_run_id(run_id))

    def get_attempts(self, run_id: UUID) -> list[Attempt]:
        """What happened at each attempt, oldest first; empty for a run that succeeded at once."""
        return self._store.get_attempts(checked_run_id(run_id))

    def get_stack(self, run_id: UUID, *, within_seconds: float = 15.0) -> str | None:
        """The Python stack of an executing run, taken twice now: text that says whether it moves.

        It is that of the main thread, in which jobs are executed.

        The worker that executes the run is asked through the database, and looks for such requests once a second.
        It does not disturb the run, and works while C code holds the GIL.

        Returns:
            None if the run is not executing, or its worker does not answer within `within_seconds`.
        """
        give_up_at = time.monotonic() + within_seconds
        if not self._store.request_stack(checked_run_id(run_id)):
            return None
        while (stack := self._store.get_stack(run_id)) is None or stack.taken_at is None:
            run = self._store.get_run(run_id)
            if run is None or run.status is not RunStatus.LEASED or time.monotonic() >= give_up_at:
                return None
            time.sleep(_LOOK_EVERY_SECONDS)
        return stack.text

    def get_recent_runs(self, take: int = 50) -> list[Run]:
        """The latest enqueued runs, latest first."""
        return self._store.list_runs(take=_checked(take))

    def get_runs_by_status(self, status: RunStatus | str, take: int = 50) -> list[Run]:
        """The latest enqueued runs of a status, latest first."""
        return self._store.list_runs(take=_checked(take), status=_status(status))

    def get_runs_by_job_name(self, job_name: str, take: int = 50) -> list[Run]:
        """The latest enqueued runs of a job, latest first."""
        return self._store.list_runs(take=_checked(take), job_name=job_name)

    def get_enqueued_runs(self, take: int = 50) -> list[Run]:
        """The runs that wait to be claimed, the earliest due first."""
        return self._store.list_runs(take=_checked(take), due_first=True)

    def count_runs(self) -> dict[RunStatus, int]:
        """How many runs there are of each status. Reads the whole table."""
        return self._store.count_runs()

    def count_due(self, job_names: Collection[str], count_max: int = 10_000) -> int:
        """How many runs of these jobs are due now; counting ends at `count_max`."""
        return self._store.measure_backlog(job_names, count_max).due


def _checked(take: int) -> int:
    if not isinstance(take, int) or not 1 <= take <= TAKE_MAX:
        raise StoreError(f"take is {take!r}; it must be 1 to {TAKE_MAX}")
    return take


def _status(status: RunStatus | str) -> RunStatus:
    try:
        return RunStatus(status)
    except ValueError:
        raise StoreError(f"status {status!r} is unknown; there are: {', '.join(RunStatus)}") from None
