"""The claimer: never more than can start, rests when there is no more, and clears up after itself."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import zip_longest
from typing import Any
from uuid import UUID, uuid4

import anyio
import pytest
from parts import leased_run

from durablestack.errors import StoreError, StoreUnavailable
from durablestack.events import EventType
from durablestack.ids import new_run_id
from durablestack.runs import Outcome, Run, RunStatus, Succeeded
from durablestack.stores.contract import Claim, Claimed, Exchanged, ExpiredLook, ExpiredRun
from durablestack.stores.steps import Steps, in_one
from durablestack.supervisor.bus import NOT_BEGUN, Course
from durablestack.supervisor.claimer import Claimer
from durablestack.supervisor.incarnation import this_worker
from durablestack.supervisor.leases import LeaseTable, boottime
from durablestack.supervisor.pool import Room

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
        self.refuses_outcomes = False
        self.recorded: list[Outcome] = []
        self.steps: list[tuple[str, object]] = []
        self.claims: list[Claim] = []
        self.expired: list[ExpiredRun] = []
        self.some_expired = True
        self.when_looked_at: Callable[[], None] = lambda: None
        self.clock_set_by = timedelta(0)

    def now(self) -> datetime:
        return datetime.fromtimestamp(boottime(), UTC) + self.clock_set_by

    def look_for_expired(self) -> Steps[ExpiredLook]:
        return in_one(self._look)

    def _look(self) -> ExpiredLook:
        self.when_looked_at()
        return ExpiredLook(self.now(), self.some_expired)

    def exchange(self, outcomes: Sequence[Outcome], claim: Claim) -> Exchanged:
        if outcomes and self.refuses_outcomes:
            raise StoreError("outcomes are refused")
        claimed = self.claim_due_runs(claim)
        self.recorded += outcomes
        return Exchanged({outcome.lease.run_id: RunStatus.SUCCEEDED for outcome in outcomes}, claimed)

    def exchange_in_steps(self, outcomes: Sequence[Outcome], claim: Claim) -> Steps[Exchanged]:
        return in_one(partial(self.exchange, outcomes, claim))

    def warm_up(self) -> None:
        return

    def claim_due_runs(self, claim: Claim) -> Claimed:
        self.claims.append(claim)
        self.steps.append(("claim", claim.lease_token))
        if self.failures and (failure := self.failures.pop(0)) is not None:
            raise failure
        count = min(claim.batch_size, self.runs)
        self.runs -= count
        look = self._look() if claim.looks_for_expired else None
        return Claimed([leased_run(lease_token=claim.lease_token) for _ in range(count)], self.expired, look=look)

    def release_claim(self, lease_token: UUID) -> set[UUID]:
        self.steps.append(("release", lease_token))
        if self.release_failures:
            raise self.release_failures.pop(0)
        return {uuid4()}


class Tokens:
    """A pool whose executors are numbers. One that got a run never comes back."""

    def __init__(self, idle: int) -> None:
        self.idle = list(range(idle))
        self.behind = 0
        self.short_jobs = ["job"]
        self.assigned: list[tuple[int | None, Run]] = []
        self._changed = anyio.Event()

    @property
    def has_room(self) -> bool:
        return bool(self.idle or self.behind)

    async def wait_for_room(self) -> None:
        while not self.has_room:
            self._changed = anyio.Event()
            await self._changed.wait()

    async def wait_for_children(self) -> None:
        return

    async def wait_for_more_room(self) -> None:
        return

    def take_room(self, at_most: int) -> Room:
        taken, self.idle = self.idle[:at_most], self.idle[at_most:]
        return Room(taken, min(at_most - len(taken), self.behind))  # type: ignore[arg-type]

    def give_back(self, executors: Iterable[int]) -> None:
        self.idle += executors
        self._changed.set()

    def room_after(self, rooms: Collection[Room], at_most: int) -> Room:
        return Room([], max(0, min(at_most, self.behind - sum(room.behind for room in rooms))))

    def hand_out(self, room: Room, runs: Sequence[Run], passed_over: int) -> None:
        idle: list[Any] = room.idle
        self.assigned += [(executor, run) for executor, run in zip_longest(idle, runs) if run is not None]
        self.behind -= max(0, len(runs) - len(idle))
        self.give_back(idle[len(runs) :])


class Desk:
    """A completer that may be full, and may have something to write."""

    def __init__(self) -> None:
        self.free, self.told = anyio.Event(), anyio.Event()
        self.free.set()
        self.told.set()
        self.waiting: list[tuple[Run, Outcome, Course]] = []
        self.written_by_claimer: list[tuple[Run, Outcome, Course]] = []
        self.asked_about: list[Run] = []
        self.looks = 0

    @property
    def is_full(self) -> bool:
        return not self.free.is_set()

    async def wait_for_room(self) -> None:
        await self.free.wait()

    def take(self) -> list[tuple[Run, Outcome, Course]]:
        taken, self.waiting = self.waiting, []
        return taken

    def written(self, batch: Sequence[tuple[Run, Outcome, Course]], recorded: dict[UUID, RunStatus]) -> None:
        assert set(recorded) == {run.id for run, _, _ in batch}
        self.written_by_claimer += batch

    def put_back(self, batch: Sequence[tuple[Run, Outcome, Course]], *, refused: bool = False) -> None:
        self.waiting = [*batch, *self.waiting]

    async def wait_until_told(self, runs: Sequence[Run]) -> None:
        self.asked_about += runs
        await self.told.wait()

    def look(self) -> None:
        self.looks += 1


class Hall:
    """A claimer between a backlog and executors."""

    def __init__(self, store: Backlog, idle: int, **changes: Any) -> None:
        self.store, self.pool, self.leases, self.room = store, Tokens(idle), LeaseTable(), Desk()
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
        """Take tokens and claim for them, as `run` does before it rests; return how many runs there were."""
        before = len(self.pool.assigned)
        await self.claimer._fill()
        return len(self.pool.assigned) - before


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


async def test_a_run_is_told_as_claimed_once_it_is_told_that_it_was_given_back_before() -> None:
    hall = Hall(Backlog(1), idle=1)
    hall.room.told = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hall.step)
        await until(lambda: hall.room.asked_about)
        assert (hall.told, hall.pool.assigned) == ([], [])
        hall.room.told.set()
    assert [event_type for event_type, _ in hall.told] == [EventType.JOB_CLAIMED]


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

    def hand_out(room: Room, runs: Sequence[Run], passed_over: int) -> None:
        held.extend(run.lease in hall.leases.held() for run in runs)

    hall.pool.hand_out = hand_out  # type: ignore[method-assign]
    await hall.step()
    assert held == [True]


async def test_a_claim_that_is_under_way_when_the_claimer_stops_is_handed_out() -> None:
    hall = Hall(Backlog(1), idle=1)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await hall.claimer._fill()
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


# --- behind others


async def test_runs_of_short_jobs_are_claimed_to_wait_and_of_others_no_more_than_can_begin() -> None:
    hall = Hall(Backlog(100), idle=2)
    hall.pool.behind = 5
    assert await hall.step() == 7
    assert [(claim.batch_size, claim.begin_max, claim.may_wait) for claim in hall.store.claims] == [(7, 2, ["job"])]


async def test_the_next_batch_is_claimed_while_this_one_is_handed_out_as_long_as_there_is_room_for_it() -> None:
    hall = Hall(Backlog(100), idle=1, batch_size=10)
    hall.pool.behind = 35
    handed_out: list[int] = []
    hand_out, exchange = hall.pool.hand_out, hall.store.exchange
    asked_twice, calls = threading.Event(), itertools.count(1)

    def noted(room: Room, runs: Sequence[Run], passed_over: int) -> None:
        assert asked_twice.wait(10), "the second one is asked for before the first one is handed out"
        handed_out.append(len(runs))
        hand_out(room, runs, passed_over)

    def asked(outcomes: Sequence[Outcome], claim: Claim) -> Exchanged:
        if next(calls) == 2:
            asked_twice.set()
        return exchange(outcomes, claim)

    hall.pool.hand_out, hall.store.exchange = noted, asked  # type: ignore[method-assign]
    await hall.step()
    assert [claim.batch_size for claim in hall.store.claims] == [10, 10, 10, 6]
    assert handed_out == [10, 10, 10, 6]
    assert len({run.id for _, run in hall.pool.assigned}) == 36


async def test_with_a_backlog_there_are_as_many_claims_as_may_be_from_the_beginning() -> None:
    hall = Hall(Backlog(100), idle=1, batch_size=10, claims_max=2)
    hall.pool.behind = 100
    meeting, calls, exchange = threading.Barrier(2), itertools.count(), hall.store.exchange

    def both(outcomes: Sequence[Outcome], claim: Claim) -> Exchanged:
        if next(calls) < 2:
            meeting.wait(10)  # neither is answered before the other one is asked for
        return exchange(outcomes, claim)

    hall.store.exchange = both  # type: ignore[method-assign]
    await hall.claimer._fill(backlog=True)
    assert len(hall.pool.assigned) == 100


class SecondIsSlow(Hall):
    """Three claims; the second one is not answered before the third has been handed out."""

    def __init__(self, failure: StoreError | None = None) -> None:
        super().__init__(Backlog(100), idle=1, batch_size=10, claims_max=2)
        self.pool.behind = 29
        self.sizes: list[int] = []
        self._failure = failure
        self._third_is_handed_out = threading.Event()
        self._asked = itertools.count(1)
        self._exchange, self._hand_out = self.store.exchange, self.pool.hand_out
        self.store.exchange, self.pool.hand_out = self.exchange, self.hand_out  # type: ignore[method-assign]

    def exchange(self, outcomes: Sequence[Outcome], claim: Claim) -> Exchanged:
        if next(self._asked) == 2:
            assert self._third_is_handed_out.wait(10)
            if self._failure is not None:
                raise self._failure
        return self._exchange(outcomes, claim)

    def hand_out(self, room: Room, runs: Sequence[Run], passed_over: int) -> None:
        self._hand_out(room, runs, passed_over)
        self.sizes.append(len(runs))
        if len(self.sizes) == 2:
            self._third_is_handed_out.set()


async def test_of_two_claims_under_way_neither_waits_for_the_other() -> None:
    hall = SecondIsSlow()
    await hall.step()
    assert hall.sizes == [10, 10, 10]
    assert len({run.id for _, run in hall.pool.assigned}) == 30


async def test_a_claim_that_may_have_leased_runs_is_not_forgotten_for_another_that_was_answered() -> None:
    hall = SecondIsSlow(CUT)
    await hall.step()
    assert hall.sizes == [10, 10, 0]
    assert hall.claimer.unanswered
    hall.pool.idle = [0]
    await hall.step()
    assert not hall.claimer.unanswered
    assert [what for what, _ in hall.store.steps].count("release") == 1


@pytest.mark.parametrize("failure", [AWAY, CUT, StoreError("refused")])
async def test_what_is_claimed_is_handed_out_though_the_next_claim_fails(failure: Exception) -> None:
    hall = Hall(Backlog(100, [None, failure]), idle=1, batch_size=10)
    hall.pool.behind = 100
    await hall.step()
    assert [len(hall.store.claims), len(hall.pool.assigned)] == [2, 10]


async def test_nothing_is_claimed_ahead_while_outcomes_pile_up_or_nobody_guards() -> None:
    hall = Hall(Backlog(100), idle=1, batch_size=10, is_guarded=lambda: False)
    hall.pool.behind = 100
    await hall.step()
    assert len(hall.store.claims) == 1
    hall = Hall(Backlog(100), idle=1, batch_size=10)
    hall.pool.behind, hall.room.free = 100, anyio.Event()
    await hall.step()
    assert len(hall.store.claims) == 1


async def test_where_nothing_may_wait_any_run_is_claimed() -> None:
    hall = Hall(Backlog(100), idle=2)
    await hall.step()
    assert hall.store.claims[0].begin_max is None


# --- what has ended


def told() -> tuple[Run, Outcome, Course]:
    run = leased_run()
    return run, Succeeded(run.lease), NOT_BEGUN


async def test_what_is_to_be_written_goes_along_with_a_claim() -> None:
    hall, ended = Hall(Backlog(3), idle=1), told()
    hall.room.waiting = [ended]
    await hall.step()
    assert hall.store.recorded == [ended[1]]
    assert hall.room.written_by_claimer == [ended]
    assert hall.room.waiting == []


@pytest.mark.parametrize("failure", [AWAY, CUT])
async def test_what_could_not_be_written_with_a_claim_is_given_back(failure: Exception) -> None:
    hall, ended = Hall(Backlog(3, [failure]), idle=1), told()
    hall.room.waiting = [ended]
    assert await hall.step() == 0
    assert hall.room.waiting == [ended]
    assert hall.room.written_by_claimer == []


async def test_outcomes_that_the_database_refuses_do_not_keep_it_from_claiming() -> None:
    hall, ended = Hall(Backlog(3), idle=1), told()
    hall.room.waiting, hall.store.refuses_outcomes = [ended], True
    assert await hall.step() == 1
    assert hall.room.waiting == [ended]


async def test_whoever_has_something_to_write_is_told_when_the_claimer_does_not_come() -> None:
    hall = Hall(Backlog(0), idle=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hall.claimer.run)
        await until(lambda: hall.store.claims)
        await anyio.wait_all_tasks_blocked()
        assert not hall.claimer.comes_by()
        assert hall.room.looks
        tasks.cancel_scope.cancel()
    assert not hall.claimer.comes_by()


async def test_a_claimer_that_waits_for_room_comes_by_as_soon_as_there_is_some() -> None:
    hall = Hall(Backlog(5), idle=0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hall.claimer.run)
        await anyio.wait_all_tasks_blocked()
        assert not hall.claimer.comes_by()
        hall.pool.give_back([0])
        assert hall.claimer.comes_by()
        await until(lambda: len(hall.pool.assigned) == 1)
        tasks.cancel_scope.cancel()


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
        assert hall.store.claims == []
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


async def test_a_claim_ends_leases_only_where_some_were_seen_to_have_expired() -> None:
    hall = Hall(Backlog(), idle=1)
    for hall.store.some_expired in (False, True, False):
        hall.claimer.look_for_expired()
        await hall.step()
    assert [claim.end_expired for claim in hall.store.claims] == [False, True, False]


async def test_a_claim_that_sees_that_leases_have_expired_is_followed_by_one_that_ends_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("durablestack.supervisor.expiry._REST_SECONDS_MIN", 0.0)
    monkeypatch.setattr("durablestack.supervisor.expiry._REST_PER_LOOK", 0)
    hall = Hall(Backlog(), idle=1)
    hall.store.some_expired = False
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hall.claimer.run)
        await until(lambda: len(hall.store.claims) == 1)
        hall.store.some_expired = True
        hall.claimer.wake()
        await until(lambda: hall.store.claims[-1].end_expired)
        tasks.cancel_scope.cancel()
    assert [claim.end_expired for claim in hall.store.claims[:3]] == [False, False, True]
    assert hall.store.claims[1].looks_for_expired


async def test_what_is_told_while_it_is_looked_for_expired_leases_is_looked_for_too() -> None:
    hall = Hall(Backlog(), idle=1)
    hall.store.some_expired = False
    hall.store.when_looked_at = hall.claimer.look_for_expired
    await hall.step()
    hall.store.some_expired = True
    await hall.step()
    assert [claim.end_expired for claim in hall.store.claims] == [False, True]


async def test_a_look_for_expired_leases_that_failed_is_made_again() -> None:
    hall = Hall(Backlog(), idle=1)

    def fail() -> None:
        raise AWAY

    hall.store.when_looked_at = fail
    await hall.step()
    assert hall.store.claims == []
    hall.store.when_looked_at = lambda: None
    await hall.step()
    assert [claim.end_expired for claim in hall.store.claims] == [True]


async def test_claims_look_for_expired_leases_now_and_then_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durablestack.supervisor.expiry._REST_SECONDS_MIN", AN_AGE_SECONDS)
    monkeypatch.setattr("durablestack.supervisor.expiry._REST_SECONDS_MAX", AN_AGE_SECONDS)
    hall = Hall(Backlog(), idle=1)
    for _ in range(3):
        await hall.step()
    assert [claim.end_expired for claim in hall.store.claims] == [True, False, False], "at first nobody knows"
    assert not any(claim.looks_for_expired for claim in hall.store.claims)


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
