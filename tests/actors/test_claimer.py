"""The claimer: never more than can start, rests when there is no more, and clears up after itself."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import anyio
import pytest
from parts import leased_run

from durablestack.errors import StoreError, StoreUnavailable
from durablestack.events import EventType
from durablestack.ids import new_run_id
from durablestack.runs import Run, RunStatus
from durablestack.stores.contract import Claim, Claimed, ExpiredRun
from durablestack.supervisor.claimer import Claimer
from durablestack.supervisor.incarnation import this_worker
from durablestack.supervisor.leases import LeaseTable, boottime

pytestmark = pytest.mark.anyio

AN_AGE_SECONDS = 3_600.0
CUT = StoreUnavailable("cut", uncertain=True)
AWAY = StoreUnavailable("away")
WORKER = this_worker("worker-1")


class Backlog:
    """A store with a number of runs that are due; it fails as told first."""

    def __init__(self, runs: int = 0, failures: Iterable[Exception | None] = ()) -> None:
        self.runs = runs
        self.failures = list(failures)
        self.release_failures: list[Exception] = []
        self.steps: list[tuple[str, object]] = []
        self.claims: list[Claim] = []
        self.expired: list[ExpiredRun] = []
        self.clock_set_by = timedelta(0)

    def now(self) -> datetime:
        return datetime.fromtimestamp(boottime(), UTC) + self.clock_set_by

    def claim_due_runs(self, claim: Claim) -> Claimed:
        self.claims.append(claim)
        self.steps.append(("claim", claim.lease_token))
        if self.failures and (failure := self.failures.pop(0)) is not None:
            raise failure
        count = min(claim.batch_size, self.runs)
        self.runs -= count
        return Claimed([leased_run(lease_token=claim.lease_token) for _ in range(count)], self.expired)

    def release_claim(self, lease_token: UUID) -> set[UUID]:
        self.steps.append(("release", lease_token))
        if self.release_failures:
            raise self.release_failures.pop(0)
        return {uuid4()}


class Tokens:
    """A pool whose executors are numbers. One that got a run never comes back."""

    def __init__(self, idle: int) -> None:
        self.idle = list(range(idle))
        self.assigned: list[tuple[int, Run]] = []
        self.asked: list[int] = []
        self._changed = anyio.Event()

    async def take_idle(self, at_most: int) -> list[int]:
        self.asked.append(at_most)
        while not self.idle:
            self._changed = anyio.Event()
            await self._changed.wait()
        taken, self.idle = self.idle[:at_most], self.idle[at_most:]
        return taken

    def give_back(self, executors: Iterable[int]) -> None:
        self.idle += executors
        self._changed.set()

    def assign(self, executor: int, run: Run) -> None:
        self.assigned.append((executor, run))


class Room:
    """A completer that may be full."""

    def __init__(self) -> None:
        self.free = anyio.Event()
        self.free.set()

    async def has_room(self) -> None:
        await self.free.wait()


class Hall:
    """A claimer between a backlog and executors."""

    def __init__(self, store: Backlog, idle: int, **changes: Any) -> None:
        self.store, self.pool, self.leases, self.room = store, Tokens(idle), LeaseTable(), Room()
        self.told: list[tuple[str, UUID]] = []
        self.told_of_worker: list[EventType] = []
        self.guarded = anyio.Event()
        self.guarded.set()
        values: dict[str, Any] = {
            "worker": WORKER,
            "job_names": ("job",),
            "batch_size": 50,
            "lease_duration": timedelta(seconds=30),
            "poll_interval_seconds": AN_AGE_SECONDS,
            "poll_jitter_ratio": 0.2,
            "guarded": self.guarded.wait,
            "emit": self.emit,
            **changes,
        }
        self.claimer = Claimer(self.store, self.pool, self.leases, self.room, **values)  # type: ignore[arg-type]

    def emit(self, event_type: EventType, run: Run | ExpiredRun | None = None, **_: Any) -> None:
        if run is None:
            self.told_of_worker.append(event_type)
        else:
            self.told.append((event_type, run.id if isinstance(run, Run) else run.run_id))

    async def step(self) -> int:
        """Take tokens and claim for them, as `run` does before it rests."""
        return await self.claimer._claim_for(await self.pool.take_idle(self.claimer._batch_size))  # type: ignore[arg-type]


async def until(condition: Any) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.001)


# --- how many


async def test_no_more_is_claimed_than_executors_are_idle() -> None:
    hall = Hall(Backlog(100), idle=3)
    assert await hall.step() == 3
    assert [claim.batch_size for claim in hall.store.claims] == [3]
    assert [executor for executor, _ in hall.pool.assigned] == [0, 1, 2]
    assert hall.pool.idle == []


async def test_no_more_is_claimed_than_the_batch_size() -> None:
    hall = Hall(Backlog(100), idle=10, batch_size=4)
    assert await hall.step() == 4
    assert hall.store.claims[0].batch_size == 4
    assert len(hall.pool.idle) == 6


async def test_executors_that_no_run_was_found_for_are_given_back() -> None:
    hall = Hall(Backlog(1), idle=3)
    assert await hall.step() == 1
    assert hall.pool.idle == [1, 2]


async def test_a_claim_says_who_claims_what_and_for_how_long_under_a_fresh_token() -> None:
    hall = Hall(Backlog(2), idle=1)
    await hall.step()
    hall.pool.idle = [0]
    await hall.step()
    first, second = hall.store.claims
    assert (first.worker_name, first.worker_id) == (WORKER.name, WORKER.id)
    assert tuple(first.job_names) == ("job",)
    assert first.lease_duration == timedelta(seconds=30)
    assert first.lease_token != second.lease_token


async def test_what_is_claimed_is_held_before_it_is_assigned() -> None:
    hall = Hall(Backlog(1), idle=1)
    held: list[bool] = []
    hall.pool.assign = lambda executor, run: held.append(run.lease in hall.leases.held())  # type: ignore[method-assign]
    await hall.step()
    assert held == [True]


async def test_a_claim_that_is_under_way_when_the_claimer_stops_is_handed_out() -> None:
    hall = Hall(Backlog(1), idle=1)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await hall.claimer._claim_for([0])  # type: ignore[list-item]
    assert len(hall.pool.assigned) == 1


async def test_what_is_claimed_is_told_and_so_is_what_had_expired_for_good() -> None:
    hall = Hall(Backlog(2), idle=2)
    states = (RunStatus.PENDING, RunStatus.FAILED, RunStatus.CANCELLED)
    hall.store.expired = [ExpiredRun(new_run_id(), "job", 3, "worker-2", status) for status in states]
    await hall.step()
    _, failed, cancelled = hall.store.expired
    assert hall.told == [
        ("run_quarantined", failed.run_id),
        ("job_cancelled", cancelled.run_id),
        *[("job_claimed", run.id) for _, run in hall.pool.assigned],
    ]


async def test_nothing_is_told_of_a_claim_that_failed() -> None:
    hall = Hall(Backlog(5, [CUT]), idle=2)
    await hall.step()
    assert hall.told == []


# --- when


async def test_a_full_claim_is_followed_by_another_and_a_short_one_by_a_rest() -> None:
    hall = Hall(Backlog(5), idle=6, batch_size=2)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hall.claimer.run)
        await until(lambda: len(hall.pool.assigned) == 5)
        await anyio.wait_all_tasks_blocked()
        assert [claim.batch_size for claim in hall.store.claims] == [2, 2, 2]
        tasks.cancel_scope.cancel()


async def test_a_claimer_that_rests_wakes_when_it_is_told_to() -> None:
    hall = Hall(Backlog(0), idle=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hall.claimer.run)
        await until(lambda: len(hall.store.claims) == 1)
        hall.store.runs = 1
        hall.claimer.wake()
        await until(lambda: len(hall.pool.assigned) == 1)
        tasks.cancel_scope.cancel()


async def test_a_wake_during_a_claim_is_not_lost() -> None:
    hall = Hall(Backlog(0), idle=1)
    claim_due_runs = hall.store.claim_due_runs

    def enqueued_meanwhile(claim: Claim) -> Claimed:
        claimed = claim_due_runs(claim)
        if len(hall.store.claims) == 1:
            hall.store.runs = 1
            anyio.from_thread.run_sync(hall.claimer.wake)
        return claimed

    hall.store.claim_due_runs = enqueued_meanwhile  # type: ignore[method-assign]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hall.claimer.run)
        await until(lambda: len(hall.pool.assigned) == 1)
        tasks.cancel_scope.cancel()


async def test_without_a_wake_the_next_poll_comes_after_the_interval() -> None:
    hall = Hall(Backlog(0), idle=1, poll_interval_seconds=0.001)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hall.claimer.run)
        await until(lambda: len(hall.store.claims) >= 3)
        tasks.cancel_scope.cancel()


async def test_nothing_is_claimed_while_no_executor_is_idle() -> None:
    hall = Hall(Backlog(5), idle=0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hall.claimer.run)
        hall.claimer.wake()
        await anyio.wait_all_tasks_blocked()
        assert hall.store.claims == []
        hall.pool.give_back([0])
        await until(lambda: len(hall.pool.assigned) == 1)
        tasks.cancel_scope.cancel()


async def test_nothing_is_claimed_while_outcomes_pile_up() -> None:
    hall = Hall(Backlog(5), idle=1)
    hall.room.free = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hall.claimer.run)
        await anyio.wait_all_tasks_blocked()
        assert hall.pool.asked == []
        hall.room.free.set()
        await until(lambda: len(hall.pool.assigned) == 1)
        tasks.cancel_scope.cancel()


# --- when the database is away


@pytest.mark.parametrize("failure", [AWAY, CUT, StoreError("refused")])
async def test_a_claim_that_failed_gives_its_executors_back_and_holds_nothing(failure: Exception) -> None:
    hall = Hall(Backlog(5, [failure]), idle=2)
    assert await hall.step() == 0
    assert hall.pool.idle == [0, 1]
    assert hall.leases.held() == []


async def test_runs_of_a_claim_whose_answer_was_lost_are_released_before_others_are_claimed() -> None:
    hall = Hall(Backlog(5, [CUT]), idle=2)
    await hall.step()
    await hall.step()
    await hall.step() if hall.pool.idle else None
    lost, next = hall.store.claims[0].lease_token, hall.store.claims[1].lease_token
    assert hall.store.steps[:3] == [("claim", lost), ("release", lost), ("claim", next)]
    assert [step for step, _ in hall.store.steps].count("release") == 1


async def test_a_release_that_fails_is_tried_again_and_nothing_is_claimed_before() -> None:
    hall = Hall(Backlog(5, [CUT]), idle=1)
    hall.store.release_failures = [AWAY, AWAY]
    for _ in range(4):
        await hall.step()
    lost = hall.store.claims[0].lease_token
    assert hall.store.steps[1:4] == [("release", lost)] * 3
    assert [step for step, _ in hall.store.steps] == ["claim", "release", "release", "release", "claim"]
    assert len(hall.pool.assigned) == 1


async def test_a_claim_that_surely_failed_leaves_nothing_to_release() -> None:
    hall = Hall(Backlog(1, [AWAY]), idle=1)
    await hall.step()
    await hall.step()
    assert [step for step, _ in hall.store.steps] == ["claim", "claim"]


async def test_the_claimer_comes_back_when_the_database_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durablestack.supervisor.claimer._BACKOFF_SECONDS_FIRST", 0.001)
    monkeypatch.setattr("durablestack.supervisor.claimer._BACKOFF_SECONDS_MAX", 0.005)
    hall = Hall(Backlog(1, [AWAY] * 20), idle=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hall.claimer.run)
        await until(lambda: len(hall.pool.assigned) == 1)
        tasks.cancel_scope.cancel()
    assert len(hall.store.claims) == 21


async def test_no_lease_is_ended_for_a_while_after_the_database_clock_has_jumped() -> None:
    hall = Hall(Backlog(), idle=1, lease_duration=timedelta(seconds=1))
    await hall.step()
    hall.store.clock_set_by = timedelta(hours=1)
    hall.claimer.look_for_expired()
    await hall.step()
    assert hall.told_of_worker == [EventType.CLOCK_JUMP_DETECTED]
    assert [claim.end_expired for claim in hall.store.claims] == [True, False]
    while not hall.store.claims[-1].end_expired:  # it trusts again, in the end
        hall.claimer.look_for_expired()
        await hall.step()
        await anyio.sleep(0.01)
    assert hall.told_of_worker == [EventType.CLOCK_JUMP_DETECTED]
