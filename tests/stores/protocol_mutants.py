"""Seven mistakes that have been made elsewhere, each in a wrapper of a few lines: tests of the test.

A mutant is a store that forgets a rule, or a worker that does. The machine has to find it on every store.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from exam import age_lease, change
from msgspec.structs import replace
from protocol_worker import Child, Worker

from durablestack.runs import Failed, Failure, Lease, Outcome, Run, RunStatus
from durablestack.stores.contract import Claim, Claimed, Extended, Store
from durablestack.stores.memory import InMemoryStore


class Wrapped:
    """A store that does as the real one does, but for what a mutant does in its place."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def in_force(self, lease: Lease) -> Lease:
        """The lease that the run has now, whoever holds it; without one, the lease as it was shown."""
        run = self.store.get_run(lease.run_id)
        return lease if run is None or run.status is not RunStatus.LEASED else run.lease


class OwnerOnly(Wrapped):
    """The name of the worker is the fence."""

    def in_force(self, lease: Lease) -> Lease:
        current = super().in_force(lease)
        return current if current.worker_name == lease.worker_name else lease

    def extend_leases(self, leases: Sequence[Lease], lease_duration: timedelta) -> Extended:
        return self.store.extend_leases([self.in_force(lease) for lease in leases], lease_duration)

    def record(self, outcomes: Sequence[Outcome]) -> Any:
        return self.store.record([replace(outcome, lease=self.in_force(outcome.lease)) for outcome in outcomes])


class HeartbeatById(Wrapped):
    """A heartbeat extends the run, whoever holds it."""

    def extend_leases(self, leases: Sequence[Lease], lease_duration: timedelta) -> Extended:
        return self.store.extend_leases([self.in_force(lease) for lease in leases], lease_duration)


class CompletionById(Wrapped):
    """An outcome ends the run, whoever holds it."""

    def record(self, outcomes: Sequence[Outcome]) -> Any:
        return self.store.record([replace(outcome, lease=self.in_force(outcome.lease)) for outcome in outcomes])


class NoQuarantine(Wrapped):
    """A run whose lease expired is always tried again."""

    def claim_due_runs(self, claim: Claim) -> Claimed:
        for run in self.store.list_runs(take=1000, status=RunStatus.LEASED):
            assert run.lease_until is not None
            expires = claim.end_expired and run.lease_until <= self.store.now()
            if expires and run.attempt >= run.max_attempts:
                self._allow(run, run.attempt + 1)
        return self.store.claim_due_runs(claim)

    def _allow(self, run: Run, max_attempts: int) -> None:
        if isinstance(self.store, InMemoryStore):
            self.store._tables.put(replace(run, max_attempts=max_attempts))
        else:
            change(self.store, "update {runs} set max_attempts = :value where id = :id", value=max_attempts, id=run.id)


class StealLive(Wrapped):
    """A claim takes what is leased, while the lease is alive."""

    def claim_due_runs(self, claim: Claim) -> Claimed:
        leased = self.store.list_runs(take=1000, status=RunStatus.LEASED)
        live = [run.id for run in leased if run.lease_until is not None and run.lease_until > self.store.now()]
        age_lease(self.store, *live[:1])
        return self.store.claim_due_runs(claim)


class Unguarded(Child):
    def trust_until(self, boottime: float | None) -> None:
        pass


class NoSelfFence(Worker):
    """Nothing ends a run whose lease was not renewed in time."""

    child_class = Unguarded

    def watch_trust(self) -> None:
        self._reap()


class AmbiguousAsFailure(Worker):
    """An outcome that could not be written is a failure of the run."""

    def not_written(self, batch: tuple[Outcome, ...]) -> None:
        failure = Failure(error_type="StoreUnavailable", error_message="no answer")
        self.unwritten[: len(batch)] = [Failed(outcome.lease, failure, None) for outcome in batch]


@dataclass(frozen=True)
class Mutant:
    name: str
    invariants: tuple[str, ...]
    """Which of them it may break first."""
    store: type[Wrapped] | None = None
    worker: type[Worker] = Worker


MUTANTS = (
    Mutant("owner_only", ("S6",), store=OwnerOnly),
    Mutant("no_self_fence", ("S7",), worker=NoSelfFence),
    Mutant("heartbeat_by_id", ("S6",), store=HeartbeatById),
    Mutant("completion_by_id", ("S6",), store=CompletionById),
    Mutant("ambiguous_as_failure", ("S9",), worker=AmbiguousAsFailure),
    Mutant("no_quarantine", ("S15",), store=NoQuarantine),
    Mutant("steal_live", ("S5",), store=StealLive),
)
