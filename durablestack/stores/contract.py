"""What every store promises: the one contract of all databases. `tests/stores/` examines it.

    enqueue ----> pending --claim_due_runs--> leased --extend_leases--> leased
                                                |
                                                +--record--> succeeded | failed | cancelled | pending

`exchange` is `record` and `claim_due_runs` in one transaction; each of the two is an exchange with the other half left
out.

A store is synchronous and safe to use from several threads. Due, lease and expiry are decided by the
store's own clock. Every write about an attempt shows its lease; one whose lease is no longer the run's
is refused, which the caller learns by its absence from what is returned.

All methods raise `StoreUnavailable` when the database does not answer or cannot serve now, and `SchemaError`
when its tables are not the ones expected.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from msgspec import Struct

from durablestack.errors import StoreError
from durablestack.ids import new_run_id
from durablestack.runs import (
    CANCELLED_MESSAGE,
    Attempt,
    Cancelled,
    Failed,
    Lease,
    NewRun,
    Outcome,
    Released,
    Run,
    RunStatus,
    Succeeded,
)
from durablestack.schedules import Schedule, Slot
from durablestack.workers import Worker

from .steps import Steps

EXPIRED_PER_CLAIM_MAX = 100
"""How many expired leases one claim deals with at most."""

ATTEMPTS_KEPT_MAX = 50
"""How many attempts the history of one run holds; the oldest go first."""

WORKERS_PER_PRUNE_MAX = 1_000
"""How many workers one call forgets at most."""


class Claim(Struct, frozen=True, kw_only=True):
    """A request for work. The claimer draws the token, so that a claim whose answer is lost can be found again."""

    worker_name: str
    lease_token: UUID
    job_names: Collection[str]
    batch_size: int
    lease_duration: timedelta
    end_expired: bool = True
    """Whether to end expired leases as well; a claimer that has looked, and saw none, need not do so."""
    looks_for_expired: bool = False
    """Whether to tell as well if leases have expired."""
    worker_id: UUID | None = None
    """The life of the supervisor that claims, by which its leases are found should it be over."""
    begin_max: int | None = None
    """How many of the runs may be ones that cannot wait; None for any number."""
    may_wait: Collection[str] = ()
    """Jobs whose runs may wait behind others, unless they are at their last attempt."""


class ExpiredLook(Struct, frozen=True):
    """What the clock that decides shows, and whether leases have expired by it."""

    now: datetime
    some: bool


class Claimed(Struct, frozen=True):
    """What a claim brought: runs that are now ours, and runs whose lease was found expired.

    `passed_over` runs were found due as well, within the size of the batch, and left as they are.
    `look` is there if it was asked for.
    """

    runs: list[Run]
    expired: list[ExpiredRun]
    passed_over: int = 0
    look: ExpiredLook | None = None


class Exchanged(Struct, frozen=True):
    """What `record` and `claim_due_runs` answer, of one transaction. No run is both recorded and claimed by it."""

    recorded: dict[UUID, RunStatus]
    claimed: Claimed


class ExpiredRun(Struct, frozen=True):
    """A run whose holder did not renew its lease, and what became of it: pending, failed or cancelled."""

    run_id: UUID
    job_name: str
    attempt: int
    lease_owner: str | None
    status: RunStatus


class Extended(Struct, frozen=True):
    """Of the leases shown, the runs still ours, and those among them that somebody wants cancelled."""

    held: frozenset[UUID]
    cancel_requested: frozenset[UUID]


class Requests(Struct, frozen=True):
    """Of the runs whose leases were shown, those that somebody wants cancelled, or whose stack somebody wants."""

    cancel: frozenset[UUID] = frozenset()
    stack: frozenset[UUID] = frozenset()


class Stack(Struct, frozen=True):
    """Where the code of a run was when it was last asked for it; `taken_at` and `text` are None until it answers."""

    requested_at: datetime
    taken_at: datetime | None = None
    text: str | None = None


class Backlog(Struct, frozen=True):
    """Runs that are due, and for how long the first of them has been; None if there is none."""

    due: int
    oldest_due_for: timedelta | None

    @property
    def oldest_due_age_seconds(self) -> float:
        """The same as a number; 0 if there is none."""
        return 0.0 if self.oldest_due_for is None else self.oldest_due_for.total_seconds()


class OldSnapshot(Struct, frozen=True):
    """Somebody who may still read what has been changed since, so that the database cannot clean up behind it."""

    holder: str
    held_for: timedelta | None
    """None where the database does not tell."""
    changes: int
    """How many transactions there were since, about."""


ChangeSchedule = Callable[[Schedule | None, datetime], Schedule | None]
"""From what is stored (None: nothing) and the store's time to what is to be stored; None leaves it as it is."""

SlotDue = Callable[[Schedule, datetime], Slot | None]
"""The slot of a schedule that is to get its run at the store's time; None if there is none."""


def after_expiry(
    attempt: int, max_attempts: int, lease_owner: str | None, *, cancel_requested: bool
) -> tuple[RunStatus, str]:
    """What becomes of a run whose lease has expired, and its error message."""
    if cancel_requested:
        return RunStatus.CANCELLED, CANCELLED_MESSAGE
    if attempt >= max_attempts:
        return RunStatus.FAILED, f"lease of {lease_owner} expired with no attempts remaining"
    return RunStatus.PENDING, f"lease of {lease_owner} expired"


def after_outcome(outcome: Outcome, *, cancel_requested: bool) -> RunStatus:
    """What becomes of a run whose attempt ended: one that would be pending again is cancelled, if that was wanted."""
    match outcome:
        case Succeeded():
            return RunStatus.SUCCEEDED
        case Failed(retry_after=None):
            return RunStatus.FAILED
        case Failed() | Released() if not cancel_requested:
            return RunStatus.PENDING
        case Failed() | Released() | Cancelled():
            return RunStatus.CANCELLED


def taken_by(claim: Claim, due: list[Run], recorded: Mapping[UUID, RunStatus]) -> list[Run]:
    """Of the runs that are due, as the claim would leave them, those that it takes; the others are passed over.

    What was recorded in the same transaction waits for the next claim. Or a run could be ours twice, under an outcome
    and under a new lease: to give the lease back, should the answer be lost, would make the outcome unknown.
    """
    begin_left = len(due) if claim.begin_max is None else claim.begin_max
    taken: list[Run] = []
    for run in due:
        if run.id in recorded:
            continue
        if run.attempt >= run.max_attempts or run.job_name not in claim.may_wait:
            if begin_left <= 0:
                continue
            begin_left -= 1
        taken.append(run)
    return taken


def scheduled_run(schedule: Schedule, slot: datetime | None) -> NewRun:
    """A run of a schedule: for one of its slots, or beside them."""
    return NewRun(
        id=new_run_id(),
        job_name=schedule.job_name,
        payload=schedule.payload,
        max_attempts=schedule.max_attempts,
        scheduled_for=slot,
        recurring=True,
        slot=slot,
    )


class Listener(Protocol):
    """Hears that runs were enqueued, by whatever process. What it hears is a hint: it may be late, wrong, or missing.

    Used by one task. Its methods raise StoreUnavailable where what it listens to is lost; it may be opened anew.
    """

    async def open(self) -> None:
        """Begin to listen."""

    async def works(self) -> bool:
        """Whether hints arrive, as far as can be told; takes 2 seconds at most, beside the time for an operation."""

    async def heard(self) -> bool:
        """Wait until there is something to be heard; say whether what follows soon after it may not be heard."""

    async def close(self) -> None:
        """Listen no longer. Nothing happens where it is closed already."""


class Store(Protocol):
    """See the module. Where `connection` is taken, the write becomes part of the caller's own transaction."""

    durable: bool
    """Whether runs outlive the process."""

    exchanges_max: int
    """So many exchanges under way at once make each other no slower."""

    def migrate(self) -> list[int]:
        """Create or update the tables, under a lock; return the versions that were applied."""

    def verify_schema(self) -> None:
        """Raise SchemaError unless the tables are the ones that this version works with."""

    def now(self) -> datetime:
        """The clock that decides."""

    def server_facts(self) -> dict[str, str]:
        """Version and settings of the database, by the names that it gives them; empty in memory."""

    def oldest_snapshot(self) -> OldSnapshot | None:
        """Who holds the oldest snapshot, but for ourselves; None if nobody does, or where it does not matter."""

    def enqueue(self, runs: Sequence[NewRun], connection: Any = None) -> None:
        """Store runs, all or none. A run whose id is there already is left as it is: repeating is safe."""

    async def enqueue_async(self, runs: Sequence[NewRun], connection: Any) -> None:
        """The same through the caller's own asynchronous connection."""

    def warm_up(self) -> None:
        """Be as quick with the first exchange as with others, on one more connection for each of these calls that are
        under way at once. Nothing is claimed."""

    def look_for_expired(self) -> Steps[ExpiredLook]:
        """Whether a claim would find leases to end. It may tell of one that somebody is just renewing or ending."""

    def claim_due_runs(self, claim: Claim) -> Claimed:
        """Lease runs that are due, earliest first, of registered jobs only; before, if asked to, end expired leases."""

    def exchange(self, outcomes: Sequence[Outcome], claim: Claim) -> Exchanged:
        """`record` and then `claim_due_runs` in one transaction: both or neither.

        A run whose outcome makes it due at once is passed over by this claim, and taken by the next.
        """

    def exchange_in_steps(self, outcomes: Sequence[Outcome], claim: Claim) -> Steps[Exchanged]:
        """The same, for who has other things to do while the database is at it."""

    def release_claim(self, lease_token: UUID) -> set[UUID]:
        """Give back, attempt refunded, what a claim leased whose answer never arrived."""

    def extend_leases(self, leases: Sequence[Lease], lease_duration: timedelta) -> Extended:
        """Renew leases, counted from now. An expired lease that nobody has reclaimed yet is renewed too."""

    def find_requests(self, leases: Sequence[Lease]) -> Requests:
        """What somebody wants of the runs on which these are leases."""

    def record(self, outcomes: Sequence[Outcome]) -> dict[UUID, RunStatus]:
        """Write down how attempts ended, all in one transaction; return the runs recorded, each with its status.

        That may be another than the outcome says: what was to be retried or given back, and met a request to cancel
        it, is cancelled. Repeating is safe: an outcome that was recorded before counts as recorded, with the status
        that its run has by now.
        """

    def cancel_run(self, run_id: UUID) -> bool:
        """Cancel a pending run at once; ask the holder of a leased run to stop it.

        False when the run is unknown or has ended.
        """

    def requeue_run(self, run_id: UUID) -> UUID | None:
        """Enqueue a failed or cancelled run anew, as a run of its own; None when there is no such run.

        It begins from nothing, with no attempt and no crash.
        """

    # --- stacks

    def request_stack(self, run_id: UUID) -> bool:
        """Ask the holder of a leased run where its code is, in place of what was answered before.

        False when the run is unknown or not leased.
        """

    def write_stack(self, lease: Lease, text: str) -> bool:
        """Answer, or tell unasked, where the code of a run is; False when the lease is no longer the run's.

        `text` is of the kind that each database takes, as `durablestack.text.clean` makes it.
        """

    def get_stack(self, run_id: UUID) -> Stack | None:
        """The latest request for the stack of a run, and its answer; None when there was none."""

    def get_run(self, run_id: UUID) -> Run | None:
        """One run, or None."""

    def get_attempts(self, run_id: UUID) -> list[Attempt]:
        """The history of a run, oldest first; empty for a run that succeeded at once."""

    def list_runs(
        self, *, take: int, status: RunStatus | None = None, job_name: str | None = None, due_first: bool = False
    ) -> list[Run]:
        """Runs, the latest enqueued first; with `due_first` the earliest scheduled first."""

    def count_runs(self) -> dict[RunStatus, int]:
        """How many runs there are of each status."""

    def measure_backlog(self, job_names: Collection[str], count_max: int) -> Backlog:
        """How many runs of these jobs are due now, counted up to `count_max`, and since when the first of them is."""

    # --- workers

    def register_worker(self, worker: Worker) -> None:
        """Remember a worker; note that it was seen again if it is known."""

    def find_workers(self, boot_id: str) -> list[Worker]:
        """The workers remembered that began on a machine since it started, by their ids."""

    def forget_worker(self, worker_id: UUID) -> None:
        """Remember it no longer, if it was; what it holds stays leased."""

    def prune_workers(self, unseen_for: timedelta) -> int:
        """Forget the workers that were last seen longer ago; return how many, at most 1,000."""

    def expire_leases(self, worker_id: UUID) -> int:
        """Let the leases that a remembered worker has claimed expire now; return how many. It must be dead.

        Those that have expired already are not counted. The next claim that ends expired leases deals with them as
        with all others.
        """

    # --- schedules

    def change_schedule(self, job_name: str, change: ChangeSchedule) -> Schedule | None:
        """Store what `change` makes of a job's schedule, which is locked meanwhile; return what is stored then.

        What `change` raises leaves the schedule as it is, and reaches the caller.
        """

    def get_schedule(self, job_name: str) -> Schedule | None:
        """The schedule of a job, or None."""

    def list_schedules(self) -> list[Schedule]:
        """All schedules, by the names of their jobs."""

    def next_schedules(self, job_names: Collection[str], within: timedelta) -> tuple[datetime, list[Schedule]]:
        """The store's time, and the enabled schedules of these jobs with a slot until `within` from then, earliest
        first."""

    def keep_schedules_seen(self, job_names: Collection[str], every: timedelta) -> None:
        """Note that these schedules are in somebody's code, unless it was noted less than `every` ago."""

    def materialize_recurring_run(self, job_name: str, slot_due: SlotDue) -> NewRun | None:
        """Enqueue the run of the slot that `slot_due` names, and move the schedule on: both or neither.

        None when nothing was enqueued: the schedule is disabled or gone, somebody else is at it, no slot is due, the
        slot has had its run, or it has to wait for a run of the job that is pending or leased. What `slot_due`
        raises leaves the schedule as it is, and reaches the caller.
        """

    def run_schedule_now(self, job_name: str) -> UUID | None:
        """Enqueue a run of a scheduled job, beside its slots; return its id.

        None when its runs may not overlap, and one is pending or leased.

        Raises:
            ScheduleError: there is no such schedule.
        """

    def prune_runs(self, older_than: timedelta, batch_size: int) -> int:
        """Delete up to `batch_size` runs that ended longer ago; return how many were deleted."""

    def listen(self) -> Listener | None:
        """A way to hear that somebody has enqueued; None where there is none, or where it is not wanted."""

    def close(self) -> None:
        """Give up all connections. The store is not used afterwards."""


def checked_run_id(run_id: object) -> UUID:
    """What a caller gives as the id of a run, from wherever he has it. Raises `StoreError` unless it is a UUID."""
    if not isinstance(run_id, UUID):
        raise StoreError(f"the id of a run is a uuid.UUID, and not a {type(run_id).__name__}")
    return run_id
