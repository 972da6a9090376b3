"""An outcome that the database refuses holds up nobody, however busy the claimer is that takes outcomes along."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import anyio
import pytest
from parts import BOOM, leased_run

from durablestack.errors import StoreError
from durablestack.events import EventType
from durablestack.runs import Failed, Outcome, Run, RunStatus, Succeeded
from durablestack.stores.contract import Claim, Claimed, Exchanged, ExpiredLook, after_outcome
from durablestack.stores.steps import Steps, in_one
from durablestack.supervisor.bus import NOT_BEGUN
from durablestack.supervisor.claimer import Claimer
from durablestack.supervisor.completer import Completer
from durablestack.supervisor.incarnation import this_worker
from durablestack.supervisor.leases import LeaseTable, boottime
from durablestack.supervisor.pool import Room

pytestmark = pytest.mark.anyio

LEASE = timedelta(seconds=30)
ENOUGH_RUNS = 400
EACH_CLAIM = 4
UNRECORDED_MAX = 4 * EACH_CLAIM


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durablestack.supervisor.completer._BACKOFF_SECONDS_FIRST", 0.0)


class Particular:
    """A store in which there is always more to claim, and that takes no failure, or none with details."""

    def __init__(self, *, even_with_less: bool) -> None:
        self.even_with_less = even_with_less
        self.exchanges_with_outcomes = 0
        self.recorded: list[Outcome] = []
        self.claimed: set[UUID] = set()

    def look_for_expired(self) -> Steps[ExpiredLook]:
        return in_one(lambda: ExpiredLook(datetime.fromtimestamp(boottime(), UTC), some=False))

    def warm_up(self) -> None:
        return

    def exchange(self, outcomes: Sequence[Outcome], claim: Claim) -> Exchanged:
        recorded = self.record(outcomes)
        self.exchanges_with_outcomes += bool(outcomes)
        runs = [leased_run(lease_token=claim.lease_token) for _ in range(claim.batch_size)]
        self.claimed |= {run.id for run in runs}
        return Exchanged(recorded, Claimed(runs, []))

    def exchange_in_steps(self, outcomes: Sequence[Outcome], claim: Claim) -> Steps[Exchanged]:
        return in_one(partial(self.exchange, outcomes, claim))

    def record(self, outcomes: Sequence[Outcome]) -> dict[UUID, RunStatus]:
        if any(map(self.refuses, outcomes)):
            raise StoreError("refused")
        self.recorded += outcomes
        return {outcome.lease.run_id: after_outcome(outcome, cancel_requested=False) for outcome in outcomes}

    def refuses(self, outcome: Outcome) -> bool:
        return isinstance(outcome, Failed) and (self.even_with_less or outcome.failure == BOOM)


class AtOnce:
    """A pool that always has room, for what it is given has ended at once: so the claimer is never at rest."""

    def __init__(self, wrong_each: int) -> None:
        self.completer: Completer | None = None
        self.wrong: set[UUID] = set()
        self.done = self.unrecorded_max = 0
        self.short_jobs: list[str] = []
        self.has_room = True
        self._wrong_each = wrong_each
        self._never = anyio.Event()

    async def wait_for_room(self) -> None:
        if not self.has_room:
            await self._never.wait()

    def take_room(self, at_most: int) -> Room:
        return Room([object()] * at_most, 0)  # type: ignore[list-item]

    async def wait_for_children(self) -> None:
        return

    async def wait_for_more_room(self) -> None:
        return

    def room_after(self, taken: object, at_most: int) -> Room:
        return Room([], at_most if self.has_room else 0)

    def hand_out(self, room: Room, runs: Sequence[Run], passed_over: int) -> None:
        assert self.completer is not None
        self.unrecorded_max = max(self.unrecorded_max, self.completer.unrecorded)
        for run in runs:
            self.done += 1
            if self.done % self._wrong_each == 0:
                self.wrong.add(run.id)
                self.completer.record([(run, Failed(run.lease, BOOM, None), NOT_BEGUN)])
            else:
                self.completer.record([(run, Succeeded(run.lease), NOT_BEGUN)])
        self.has_room = self.done < ENOUGH_RUNS


async def at_once() -> None:
    return


class Worker:
    """The claimer and the completer of one, as they are put together."""

    def __init__(self, store: Particular, wrong_each: int, unrecorded_max: int = UNRECORDED_MAX) -> None:
        self.told: list[tuple[EventType, UUID]] = []
        self.pool, self.leases = AtOnce(wrong_each), LeaseTable()
        self.completer = Completer(store, self.leases, room_for=unrecorded_max, emit=self.emit)  # type: ignore[arg-type]
        self.claimer = Claimer(
            store,  # type: ignore[arg-type]
            self.pool,  # type: ignore[arg-type]
            self.leases,
            self.completer,
            worker=this_worker("worker-1"),
            job_names=("job",),
            batch_size=EACH_CLAIM,
            lease_duration=LEASE,
            poll_interval_seconds=3_600.0,
            poll_jitter_ratio=0.0,
            guarded=at_once,
            emit=self.emit,
        )
        self.pool.completer = self.completer
        self.completer.is_fetched = self.claimer.comes_by

    def emit(self, event_type: EventType, run: Run | None = None, **_: Any) -> None:
        if run is not None:
            self.told.append((event_type, run.id))

    def told_of(self, event_type: EventType) -> set[UUID]:
        told = [run_id for each, run_id in self.told if each is event_type]
        assert len(told) == len(set(told)), "each once"
        return set(told)

    async def do_all(self) -> None:
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.claimer.run)
                tasks.start_soon(self.completer.run)
                while self.pool.has_room or self.completer.unrecorded:
                    await anyio.sleep(0.001)
                tasks.cancel_scope.cancel()


@pytest.mark.parametrize("wrong_each", [1, 3, 50])
async def test_outcomes_that_the_database_refuses_are_told_with_less_and_hold_up_neither_others_nor_claims(
    wrong_each: int,
) -> None:
    store = Particular(even_with_less=False)
    worker = Worker(store, wrong_each)
    await worker.do_all()
    assert len(store.claimed) == worker.pool.done >= ENOUGH_RUNS
    assert worker.told_of(EventType.JOB_FAILED) == worker.pool.wrong
    assert worker.told_of(EventType.JOB_SUCCEEDED) == store.claimed - worker.pool.wrong
    assert sorted(outcome.lease.run_id for outcome in store.recorded) == sorted(store.claimed), "each once"
    assert worker.leases.held() == []


@pytest.mark.parametrize("wrong_each", [1, 3, 50])
async def test_outcomes_that_the_database_will_not_have_at_all_are_left_to_the_expiry_of_their_leases(
    wrong_each: int,
) -> None:
    store = Particular(even_with_less=True)
    worker = Worker(store, wrong_each)
    await worker.do_all()
    assert worker.told_of(EventType.LEASE_LOST) == worker.pool.wrong
    assert worker.completer.counts.refused == len(worker.pool.wrong)
    assert worker.told_of(EventType.JOB_SUCCEEDED) == store.claimed - worker.pool.wrong
    assert worker.leases.held() == []


async def test_the_claimer_takes_outcomes_along_again_once_what_was_refused_is_found_out() -> None:
    store = Particular(even_with_less=False)
    worker = Worker(store, wrong_each=ENOUGH_RUNS // 4, unrecorded_max=2 * ENOUGH_RUNS)
    await worker.do_all()
    assert len(worker.pool.wrong) >= 4
    assert worker.pool.unrecorded_max < ENOUGH_RUNS // 4, "it did not gather until there was nothing to claim"
    assert store.exchanges_with_outcomes > ENOUGH_RUNS // EACH_CLAIM // 2
