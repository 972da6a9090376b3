"""A worker as far as the lease protocol goes: its table of leases is the real one, its children are pretended.

claim ──> waiting ──begin──> children ──finish, kill──> reap ──> unwritten ──write──> gone
             └──────────── LeaseTable <──heartbeat ───────────────────┘

What the claimer, the heartbeat, the completer and the pool decide on their threads, this decides step by step.
"""

from collections.abc import Callable
from datetime import timedelta
from enum import Enum
from typing import Any, ClassVar, Protocol
from uuid import UUID, uuid4

from exam import JOB, LEASE_DURATION
from protocol_invariants import KILLED, Ask, ClaimRuns, Executing, Extend, Record, RegisterWorker, ReleaseClaim, Witness

from durablestack import workers
from durablestack.runs import Cancelled, Failed, Failure, Lease, Outcome, Released, Succeeded
from durablestack.stores.contract import Claim, Claimed, Extended
from durablestack.supervisor.leases import LeaseTable

TRUSTED_SECONDS = 0.8 * LEASE_DURATION.total_seconds()
"""From asking for a lease until nothing executes under it any more: a fifth is margin (RELIABILITY 2.3)."""

GUARDED_SECONDS = 0.85 * LEASE_DURATION.total_seconds()
"""The same while the supervisor is held up, and its guard alone ends what executes."""


class Fate(Enum):
    """What becomes of a request and of its answer."""

    ANSWERED = "answered"
    UNANSWERED = "carried out, the answer lost"
    DELAYED = "given up, and carried out later or never"
    AWAITED = "carried out, the answer under way"


class World(Protocol):
    witness: Witness

    @property
    def seconds(self) -> float: ...
    def carry_out(self, ask: Ask) -> Any: ...
    def delay(self, ask: Ask) -> None: ...
    def bury(self, worker_id: UUID) -> None: ...


class Child:
    """One process and the run in it, and when its guard will end it."""

    def __init__(self, worker: "Worker", lease: Lease) -> None:
        self.worker = worker
        self.lease = lease
        self.executing = True
        self.outlived_guard = False
        self.ends_at: float | None = None
        self.outcome: Outcome | None = None

    def kill(self) -> None:
        self.executing = False

    def trust_until(self, boottime: float | None) -> None:
        self.ends_at = boottime

    def finish(self, *, success: bool, retry_after_seconds: float) -> None:
        self.worker.child_finished(self, success=success, retry_after_seconds=retry_after_seconds)

    def __repr__(self) -> str:
        return f"the child of {self.worker} at attempt {self.lease.attempt}"


class Worker:
    """A supervisor under one name, life after life. Its clock is its own, faster or slower than the database's."""

    child_class: ClassVar[type[Child]] = Child

    def __init__(self, name: str, world: World, rate: float) -> None:
        self.name = name
        self._world = world
        self.begin_life(rate)

    def __repr__(self) -> str:
        return self.name

    def begin_life(self, rate: float) -> None:
        self.id = uuid4()
        self.paused = self.guard_frozen = self.stopping = self.crashed = False
        self.leases = LeaseTable(self.clock)
        self.waiting: list[Lease] = []
        self.children: list[Child] = []
        self.unwritten: list[Outcome] = []
        self.awaited: dict[type, tuple[Callable[[], None], Callable[[], None]]] = {}
        self._uncertain_claims: list[UUID] = []
        self._asked_at: dict[Lease, float] = {}  # at the last grant that we know of
        self._rate = rate
        self._world.carry_out(RegisterWorker(self._identity()))

    def _identity(self) -> workers.Worker:
        return workers.Worker(
            id=self.id,
            name=self.name,
            boot_id="",
            pid_namespace="",
            user_id=0,
            pid=0,
            process_started=0,
            marker="",
        )

    def clock(self) -> float:
        return 1000 + self._world.seconds * self._rate

    @property
    def active(self) -> bool:
        return not self.paused and not self.crashed

    def may_ask(self, kind: type) -> bool:
        return self.active and kind not in self.awaited

    def executing(self) -> list[Executing]:
        """The children for which somebody can be held to account."""
        seconds = GUARDED_SECONDS if self.paused else TRUSTED_SECONDS
        return [
            Executing(self.name, child.lease, self.clock(), self._asked_at[child.lease] + seconds)
            for child in self.children
            if child.executing and not child.outlived_guard
        ]

    # --- requests

    def _send(
        self, fate: Fate, ask: Ask, answered: Callable[[Any], None], unanswered: Callable[[], None] = lambda: None
    ) -> None:
        match fate:
            case Fate.ANSWERED:
                answered(self._world.carry_out(ask))
            case Fate.UNANSWERED:
                self._world.carry_out(ask)
                unanswered()
            case Fate.DELAYED:
                self._world.delay(ask)
                unanswered()
            case Fate.AWAITED:
                answer = self._world.carry_out(ask)
                self.awaited[type(ask)] = (lambda: answered(answer)), unanswered

    def learn(self, *, arrives: bool) -> None:
        """The answer that has been under way longest arrives, or will never arrive."""
        answered, unanswered = self.awaited.pop(next(iter(self.awaited)))
        answered() if arrives else unanswered()

    # --- the claimer

    def claim(self, fate: Fate, batch_size: int, *, begins: bool, end_expired: bool) -> None:
        """Claim runs, and perhaps let them begin at once; what an earlier claim left uncertain comes before."""
        if self._uncertain_claims:
            token = self._uncertain_claims[0]
            self._send(fate, ReleaseClaim(token), lambda _: self._uncertain_claims.remove(token))
            return
        asked_at = self.clock()
        claim = Claim(
            worker_name=self.name,
            worker_id=self.id,
            lease_token=uuid4(),
            job_names=[JOB],
            batch_size=batch_size,
            lease_duration=LEASE_DURATION,
            end_expired=end_expired,
        )

        def answered(claimed: Claimed) -> None:
            leases = [run.lease for run in claimed.runs]
            self._asked_at |= dict.fromkeys(leases, asked_at)
            self.leases.hold(leases, asked_at, LEASE_DURATION)
            self.waiting += leases
            self._reap()
            if self.stopping:
                self._give_back_waiting()
            while begins and self.waiting:
                self.begin()

        self._send(fate, ClaimRuns(claim), answered, lambda: self._uncertain_claims.append(claim.lease_token))

    # --- the pool

    def begin(self) -> None:
        lease = self.waiting.pop(0)
        child = self.child_class(self, lease)
        if not self.leases.all_executing([lease], child):
            self._world.witness.began(lease)
            self.children.append(child)
        else:
            self._ended(lease, Released(lease))

    def child_finished(self, child: Child, *, success: bool, retry_after_seconds: float) -> None:
        child.executing = False
        child.outcome = (
            Succeeded(child.lease) if success else self._failed(child.lease, "ValueError", retry_after_seconds)
        )
        self._world.witness.produced(child.lease, success=success)
        if not self.paused:
            self._reap()

    def _reap(self) -> None:
        """Deal with children that have ended, as `Pool.ended` and `verdict.of` do."""
        for child in [child for child in self.children if not child.executing]:
            self.children.remove(child)
            if self.leases.is_lost(child.lease):
                self.leases.drop([child.lease])
            else:
                self._ended(child.lease, child.outcome or self._failed(child.lease, KILLED, 0))

    def _ended(self, lease: Lease, outcome: Outcome) -> None:
        self.leases.finished(lease)
        self.unwritten.append(outcome)

    def _failed(self, lease: Lease, error_type: str, retry_after_seconds: float) -> Failed:
        is_last = lease.attempt >= self._world.witness.max_attempts[lease.run_id]
        failure = Failure(error_type=error_type, error_message="")
        return Failed(lease, failure, None if is_last else timedelta(seconds=retry_after_seconds))

    # --- the completer

    def write(self, fate: Fate) -> None:
        batch = self._next_batch()

        def answered(recorded: Any) -> None:
            for outcome in batch:
                self._world.witness.told(outcome.lease, recorded=outcome.lease.run_id in recorded)
            del self.unwritten[: len(batch)]
            self.leases.drop(outcome.lease for outcome in batch)

        self._send(fate, Record(batch), answered, lambda: self.not_written(batch))

    def _next_batch(self) -> tuple[Outcome, ...]:
        """Up to a second outcome of one run, as `Completer` does."""
        together: dict[UUID, Outcome] = {}
        for outcome in self.unwritten:
            if outcome.lease.run_id in together:
                break
            together[outcome.lease.run_id] = outcome
        return tuple(together.values())

    def not_written(self, batch: tuple[Outcome, ...]) -> None:
        """It is written again, until the database has answered."""

    # --- the heartbeat

    def beat(self, fate: Fate) -> None:
        held, asked_at = self.leases.held(), self.clock()

        def answered(extended: Extended) -> None:
            self._asked_at |= {lease: asked_at for lease in held if lease.run_id in extended.held}
            self.leases.extend(extended.held, held, asked_at, LEASE_DURATION)
            for child in self.children:
                if child.executing and child.lease.run_id in extended.cancel_requested:
                    self._end(child, Cancelled(child.lease))
            self._reap()

        self._send(fate, Extend(tuple(held)), answered)

    def watch_trust(self) -> None:
        self.leases.lose_distrusted()
        self._reap()

    def _end(self, child: Child, outcome: Outcome) -> None:
        child.outcome = outcome
        child.kill()

    # --- time, and what can happen to a worker

    def time_passed(self) -> None:
        """The guard comes first: it does all of its work while the supervisor is held up."""
        self.guard()
        if not self.paused:
            self.watch_trust()

    def guard(self) -> None:
        for child in self.children:
            if child.executing and child.ends_at is not None and child.ends_at <= self.clock():
                child.outlived_guard = self.guard_frozen
                child.executing = self.guard_frozen

    def pause(self, *, guard_too: bool) -> None:
        self.paused, self.guard_frozen = True, guard_too

    def resume(self, *, watches_first: bool) -> None:
        """Its threads go on in any order: one looks at the deadlines, the other at what children said meanwhile."""
        self.paused = self.guard_frozen = False
        self.guard()
        if watches_first:
            self.watch_trust()
        self._reap()
        self.watch_trust()

    def stop(self) -> None:
        """Claim no more, end what executes, give back what did not end by itself. Outcomes are still written."""
        self.stopping = True
        self._give_back_waiting()
        for child in self.children:
            if child.executing:
                self._end(child, Released(child.lease))
        self._reap()

    def _give_back_waiting(self) -> None:
        for lease in self.waiting:
            self._ended(lease, Released(lease))
        self.waiting = []

    def crash(self) -> None:
        """Its children die with it, by the kernel's hand; what it knew is gone."""
        self.crashed = True
        self.children, self.awaited = [], {}
        self._world.bury(self.id)
