"""The nouns that everyone shares: a run, the lease on it, and how an attempt at it ended.

pending --claim--> leased --record--> succeeded | failed | cancelled
   ^  |              |
   |  +--cancel------|--------------> cancelled
   +-----------------+--expiry------> failed at the last attempt, cancelled if somebody asked for it
      retry, release, expiry
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from msgspec import Struct


class RunStatus(StrEnum):
    PENDING = "pending"
    LEASED = "leased"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Whether nothing will change any more: only an explicit requeue makes new work of it."""
        return self not in (RunStatus.PENDING, RunStatus.LEASED)


class Lease(Struct, frozen=True, gc=False):
    """Proof that one claim of a run was ours: every later write of that attempt must show it.

    `token` is random and drawn afresh for each claim; it is the fence. `worker_name` is for people.
    """

    run_id: UUID
    token: UUID
    attempt: int
    worker_name: str


class NewRun(Struct, frozen=True, kw_only=True, gc=False):
    """A run that is to be stored. `payload` is JSON text; `scheduled_for` None means now, by the database's clock.

    `recurring`: its job has a schedule, whose slots wait for it unless they may overlap. `slot`: the one it is for.
    """

    id: UUID
    job_name: str
    payload: str | None = None
    max_attempts: int = 3
    scheduled_for: datetime | None = None
    requeued_from: UUID | None = None
    recurring: bool = False
    slot: datetime | None = None
    trace_context: str | None = None


class Run(Struct, frozen=True, kw_only=True, gc=False):
    """A run as it is stored. Instants are aware, in UTC; `payload` is JSON text.

    `attempt` counts claims, so it is 0 before the first and stays at `max_attempts` after the last.
    The `error_*` fields tell of the latest attempt that failed, and are empty once a run succeeded.
    `slot` is the slot of its schedule that the run was made for. `trace_context` is what a tracer needs to link
    the execution to whoever enqueued it: JSON text of its own headers. `crash_count` is how often an attempt at it
    ended with the death of its process by no wish of ours.
    """

    id: UUID
    job_name: str
    status: RunStatus
    payload: str | None
    scheduled_for: datetime
    attempt: int
    max_attempts: int
    created_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None
    lease_owner: str | None = None
    lease_token: UUID | None = None
    lease_until: datetime | None = None
    cancel_requested_at: datetime | None = None
    error_type: str | None = None
    error_message: str | None = None
    error_detail: str | None = None
    stdout_tail: str | None = None
    stderr_tail: str | None = None
    requeued_from: UUID | None = None
    slot: datetime | None = None
    trace_context: str | None = None
    crash_count: int = 0

    @property
    def lease(self) -> Lease:
        """The lease that a claimed run came with.

        Raises:
            ValueError: the run is not leased.
        """
        if self.lease_token is None or self.lease_owner is None:
            raise ValueError(f"run {self.id} is {self.status}, not leased")
        return Lease(self.id, self.lease_token, self.attempt, self.lease_owner)


class Output(Struct, frozen=True, gc=False):
    """The tail of what a run wrote to standard output and standard error."""

    stdout_tail: str | None = None
    stderr_tail: str | None = None

    def __bool__(self) -> bool:
        return bool(self.stdout_tail or self.stderr_tail)


NO_OUTPUT = Output()


class EndedBy(StrEnum):
    """Who or what brought an attempt to its end."""

    ITSELF = "itself"
    TIMEOUT = "timeout"
    CANCEL = "cancel"
    MEMORY_LIMIT = "memory_limit"
    CPU_LIMIT = "cpu_limit"
    KERNEL = "kernel"
    """It was out of memory."""
    SUPERVISOR = "supervisor"
    """The protocol of its pipe was broken."""
    OUTSIDE = "outside"
    """A signal from nobody we know."""


class Usage(Struct, frozen=True, gc=False):
    """What the processes of an attempt used, as far as it is known."""

    peak_memory_bytes: int | None = None
    user_cpu_seconds: float | None = None
    system_cpu_seconds: float | None = None


class Failure(Struct, frozen=True, kw_only=True):
    """Why an attempt ended without success, and how its process did, if that ended with it.

    `signal` is the name of the signal that ended the process. `crashed`: it died by no wish of ours, which counts in
    the run's `crash_count`.
    """

    error_type: str
    error_message: str
    error_detail: str | None = None
    signal: str | None = None
    exit_code: int | None = None
    ended_by: EndedBy | None = None
    usage: Usage = Usage()
    crashed: bool = False


class Succeeded(Struct, frozen=True, gc=False):
    """An attempt that did its work."""

    lease: Lease
    output: Output = NO_OUTPUT


class Failed(Struct, frozen=True):
    """An attempt that did not. `retry_after` is counted from the moment of recording; None ends the run."""

    lease: Lease
    failure: Failure
    retry_after: timedelta | None
    output: Output = NO_OUTPUT


class Cancelled(Struct, frozen=True):
    """An attempt that was stopped because somebody cancelled the run, if need be by a signal."""

    lease: Lease
    output: Output = NO_OUTPUT
    signal: str | None = None
    exit_code: int | None = None
    ended_by: EndedBy | None = None
    usage: Usage = Usage()

    @property
    def failure(self) -> Failure:
        return Failure(
            error_type="RunCancelled",
            error_message=CANCELLED_MESSAGE,
            signal=self.signal,
            exit_code=self.exit_code,
            ended_by=self.ended_by,
            usage=self.usage,
        )


class Released(Struct, frozen=True, gc=False):
    """An attempt that was given back: the run is pending again, due now, and the attempt does not count."""

    lease: Lease


Outcome = Succeeded | Failed | Cancelled | Released

CANCELLED_MESSAGE = "Run was cancelled."
LEASE_EXPIRED = "LeaseExpired"


class AttemptOutcome(StrEnum):
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Attempt(Struct, frozen=True, kw_only=True):
    """One attempt in the history of a run.

    A run that succeeds at the first attempt has no history: its own fields say it all.
    """

    run_id: UUID
    attempt: int
    worker_name: str | None
    started_at: datetime | None
    ended_at: datetime
    outcome: AttemptOutcome
    error_type: str | None = None
    error_message: str | None = None
    error_detail: str | None = None
    signal: str | None = None
    exit_code: int | None = None
    ended_by: EndedBy | None = None
    peak_memory_bytes: int | None = None
    user_cpu_seconds: float | None = None
    system_cpu_seconds: float | None = None
