"""The completer does not let go of an outcome until it is written, or refused for want of the lease."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import anyio
import pytest
from parts import BOOM, failed, leased_run

from durablestack.errors import StoreError, StoreUnavailable
from durablestack.events import EventType
from durablestack.runs import Cancelled, Failed, Outcome, Output, Released, Run, RunStatus, Succeeded
from durablestack.stores.contract import after_outcome
from durablestack.supervisor.bus import Course
from durablestack.supervisor.completer import Completer
from durablestack.supervisor.leases import LeaseTable, boottime

pytestmark = pytest.mark.anyio

LEASE = timedelta(seconds=30)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durablestack.supervisor.completer._BACKOFF_SECONDS_FIRST", 0.0)


class Recorder:
    """A store that fails as told, and then writes."""

    def __init__(self, *failures: Exception, refuses: Callable[[Outcome], bool] = lambda outcome: False) -> None:
        self.failures = list(failures)
        self.refuses = refuses
        self.not_ours: set[UUID] = set()
        self.to_be_cancelled: set[UUID] = set()
        self.asked: list[list[Outcome]] = []
        self.written: list[Outcome] = []
        self.on_write: Callable[[], None] = lambda: None

    def record(self, outcomes: Sequence[Outcome]) -> dict[UUID, RunStatus]:
        self.asked.append(list(outcomes))
        if self.failures:
            raise self.failures.pop(0)
        if any(map(self.refuses, outcomes)):
            raise StoreError("refused")
        self.on_write()
        self.written += outcomes
        return {
            outcome.lease.run_id: after_outcome(outcome, cancel_requested=outcome.lease.run_id in self.to_be_cancelled)
            for outcome in outcomes
            if outcome.lease.run_id not in self.not_ours
        }


class Desk:
    """A completer with its table of leases, told of runs that have ended."""

    def __init__(self, store: Recorder, *, room_for: int = 100) -> None:
        self.leases = LeaseTable()
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.completer = Completer(store, self.leases, room_for=room_for, emit=self.emit)  # type: ignore[arg-type]

    def emit(self, event_type: EventType, run: Run | None = None, **fields: Any) -> None:
        self.told.append((event_type, fields))

    def record(self, make: Callable[[Run], Outcome]) -> Outcome:
        run = leased_run()
        self.leases.hold([run.lease], boottime(), LEASE)
        outcome = make(run)
        self.completer.record([(run, outcome, Course(1.5))])
        return outcome

    async def finish(self) -> None:
        self.completer.no_more_comes()
        with anyio.fail_after(10):
            await self.completer.run()


def succeeded(run: Run) -> Outcome:
    return Succeeded(run.lease, Output("out"))


async def test_everything_is_written_before_the_completer_ends() -> None:
    store = Recorder()
    desk = Desk(store)
    outcomes = [desk.record(succeeded) for _ in range(3)]
    assert desk.completer.unrecorded == 3
    await desk.finish()
    assert store.asked == [outcomes]
    assert desk.completer.unrecorded == 0
    assert desk.completer.counts.succeeded == 3


async def test_what_cannot_be_written_is_written_again_until_it_is() -> None:
    store = Recorder(*[StoreUnavailable("away", uncertain=n % 2 == 0) for n in range(5)])
    desk = Desk(store)
    outcomes = [desk.record(succeeded), desk.record(failed)]
    await desk.finish()
    assert store.asked == [outcomes] * 6, "an outcome that cannot be written is not another outcome"
    assert store.written == outcomes
    assert (desk.completer.counts.succeeded, desk.completer.counts.failed) == (1, 1)


async def test_leases_are_kept_until_the_outcome_is_written() -> None:
    store = Recorder(StoreUnavailable("away"))
    desk = Desk(store)
    outcome = desk.record(succeeded)
    held: list[object] = []
    store.on_write = lambda: held.extend(desk.leases.held())
    await desk.finish()
    assert held == [outcome.lease]
    assert desk.leases.held() == []


async def test_what_gathers_while_one_batch_is_on_its_way_is_the_next_batch() -> None:
    store = Recorder()
    desk = Desk(store)
    first, later = desk.record(succeeded), list[Outcome]()

    def more() -> None:
        if not later:
            later.extend(anyio.from_thread.run_sync(desk.record, succeeded) for _ in range(3))

    store.on_write = more
    await desk.finish()
    assert store.asked == [[first], later]


async def test_a_batch_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durablestack.supervisor.completer._BATCH_SIZE_MAX", 4)
    store = Recorder()
    desk = Desk(store)
    outcomes = [desk.record(succeeded) for _ in range(10)]
    await desk.finish()
    assert [len(batch) for batch in store.asked] == [4, 4, 2]
    assert store.written == outcomes


async def test_one_outcome_that_the_database_refuses_does_not_block_the_others() -> None:
    def too_much(outcome: Outcome) -> bool:
        return isinstance(outcome, Failed) and outcome.failure == BOOM

    store = Recorder(refuses=too_much)
    desk = Desk(store)
    outcomes = [desk.record(succeeded), desk.record(failed), desk.record(succeeded)]
    await desk.finish()
    assert {outcome.lease.run_id for outcome in store.written} == {outcome.lease.run_id for outcome in outcomes}
    (told_with_less,) = (outcome for outcome in store.written if isinstance(outcome, Failed))
    assert told_with_less.failure.error_type == "Unrecordable"
    assert told_with_less.retry_after is None
    assert desk.leases.held() == []
    assert desk.completer.counts.succeeded == 2
    assert desk.completer.counts.failed == 1


@pytest.mark.parametrize("make", [succeeded, lambda run: Cancelled(run.lease, Output("out"))])
async def test_an_outcome_whose_output_is_refused_is_written_without_it(make: Callable[[Run], Outcome]) -> None:
    store = Recorder(refuses=lambda outcome: not isinstance(outcome, Released) and bool(outcome.output))
    desk = Desk(store)
    outcome = desk.record(make)
    await desk.finish()
    (written,) = store.written
    assert type(written) is type(outcome)
    assert written.lease == outcome.lease


async def test_an_outcome_that_the_database_refuses_for_good_is_let_go_and_holds_up_no_other() -> None:
    store = Recorder(refuses=lambda outcome: isinstance(outcome, Released))
    desk = Desk(store)
    desk.record(lambda run: Released(run.lease))
    fine = desk.record(succeeded)
    await desk.finish()
    assert store.written == [fine]
    assert (desk.completer.counts.succeeded, desk.completer.counts.refused) == (1, 1)


async def test_an_outcome_whose_lease_is_no_longer_ours_is_let_go_and_counted_as_refused() -> None:
    store = Recorder()
    desk = Desk(store)
    gone, ours = desk.record(succeeded), desk.record(succeeded)
    store.not_ours.add(gone.lease.run_id)
    await desk.finish()
    assert store.asked == [[gone, ours]]
    assert desk.leases.held() == []
    assert (desk.completer.counts.refused, desk.completer.counts.succeeded) == (1, 1)
    assert [event_type for event_type, _ in desk.told] == ["lease_lost", "job_succeeded"]


async def test_two_attempts_at_one_run_are_written_apart_so_that_each_has_its_own_answer() -> None:
    store = Recorder()
    desk = Desk(store)
    stale, other = desk.record(succeeded), desk.record(succeeded)
    again = succeeded(leased_run(id=stale.lease.run_id, attempt=2))
    desk.completer.record([(leased_run(id=stale.lease.run_id, attempt=2), again, Course(1.5))])
    store.not_ours.add(stale.lease.run_id)
    store.on_write = lambda: store.not_ours.clear() if again in store.asked[-1] else None
    await desk.finish()
    assert store.asked == [[stale, other], [again]]
    assert (desk.completer.counts.refused, desk.completer.counts.succeeded) == (1, 2)


async def test_every_kind_of_outcome_is_counted_as_what_it_is() -> None:
    desk = Desk(Recorder())
    desk.record(succeeded)
    desk.record(failed)
    desk.record(lambda run: Failed(run.lease, BOOM, timedelta(seconds=5)))
    desk.record(lambda run: Cancelled(run.lease))
    desk.record(lambda run: Released(run.lease))
    await desk.finish()
    counts = desk.completer.counts
    assert (counts.succeeded, counts.failed, counts.retried, counts.cancelled, counts.released) == (1, 1, 1, 1, 1)
    assert counts.refused == 0
    assert [event_type for event_type, _ in desk.told] == [
        "job_succeeded",
        "job_failed",
        "job_failed",
        "retry_scheduled",
        "job_cancelled",
        "job_released",
    ]
    assert {
        fields["course"].duration_seconds for event_type, fields in desk.told if event_type != "retry_scheduled"
    } == {1.5}


@pytest.mark.parametrize(
    "make", [lambda run: Failed(run.lease, BOOM, timedelta(seconds=5)), lambda run: Released(run.lease)]
)
async def test_what_came_out_as_cancelled_is_told_as_that(make: Callable[[Run], Outcome]) -> None:
    store = Recorder()
    desk = Desk(store)
    desk.completer.on_retry = lambda delay: pytest.fail("nothing is retried")
    store.to_be_cancelled.add(desk.record(make).lease.run_id)
    await desk.finish()
    counts = desk.completer.counts
    assert (counts.cancelled, counts.retried, counts.released) == (1, 0, 0)
    ((event_type, fields),) = desk.told
    assert (event_type, fields["course"].duration_seconds) == ("job_cancelled", 1.5)


async def test_nothing_is_told_of_an_outcome_before_it_is_written() -> None:
    store = Recorder(StoreUnavailable("away"))
    desk = Desk(store)
    desk.record(succeeded)
    told_when_written: list[object] = []
    store.on_write = lambda: told_when_written.extend(desk.told)
    await desk.finish()
    assert told_when_written == []
    assert len(desk.told) == 1


async def test_there_is_no_room_while_more_is_unwritten_than_may_be_held() -> None:
    store = Recorder()
    desk = Desk(store, room_for=2)
    desk.record(succeeded)
    with anyio.fail_after(1):
        await desk.completer.wait_for_room()
    desk.record(succeeded)
    waiting = anyio.Event()

    async def wait_for_room() -> None:
        waiting.set()
        await desk.completer.wait_for_room()
        assert desk.completer.unrecorded < 2

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait_for_room)
        await waiting.wait()
        await desk.finish()


async def test_the_completer_waits_for_work_and_takes_it_up_when_it_comes() -> None:
    store, written = Recorder(), anyio.Event()
    desk = Desk(store)
    store.on_write = lambda: anyio.from_thread.run_sync(written.set)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(desk.completer.run)
        await anyio.wait_all_tasks_blocked()
        assert store.asked == []
        desk.record(succeeded)
        with anyio.fail_after(10):
            await written.wait()
        desk.completer.no_more_comes()


async def test_a_completer_that_is_ended_still_knows_what_it_could_not_write() -> None:
    store = Recorder(*[StoreUnavailable("away")] * 1_000_000)
    desk = Desk(store)
    desk.record(succeeded)
    desk.completer.no_more_comes()
    with anyio.move_on_after(0.05):
        await desk.completer.run()
    assert desk.completer.unrecorded == 1
    assert len(desk.leases.held()) == 1


# --- whoever comes by takes outcomes along


class Fetched:
    """A completer at work, to which somebody comes by as long as the test says so."""

    def __init__(self, store: Recorder) -> None:
        self.store = store
        self.desk = Desk(store)
        self.completer = self.desk.completer
        self.comes_by = True
        self.completer.is_fetched = lambda: self.comes_by

    def comes_no_more(self) -> None:
        self.comes_by = False
        self.completer.look()

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.completer.run)
            await anyio.wait_all_tasks_blocked()
            yield
            self.comes_no_more()
            self.completer.no_more_comes()

    async def until_recorded(self) -> None:
        with anyio.fail_after(10):
            while self.completer.unrecorded:
                await anyio.sleep(0.001)


async def test_outcomes_wait_for_whoever_comes_by() -> None:
    fetched = Fetched(Recorder())
    async with fetched.at_work():
        outcomes = [fetched.desk.record(succeeded) for _ in range(3)]
        await anyio.wait_all_tasks_blocked()
        assert fetched.store.asked == []
        batch = fetched.completer.take()
        assert [outcome for _, outcome, _ in batch] == outcomes
        assert fetched.completer.unrecorded == 3, "until the database has answered"
        assert len(fetched.desk.leases.held()) == 3
        fetched.completer.written(batch, {run.id: RunStatus.SUCCEEDED for run, _, _ in batch})
        assert fetched.completer.unrecorded == 0
        assert fetched.desk.leases.held() == []
    assert fetched.store.asked == [], "it has been written"
    assert fetched.completer.counts.succeeded == 3


async def test_outcomes_are_written_from_here_once_nobody_comes_by_any_more() -> None:
    fetched = Fetched(Recorder())
    async with fetched.at_work():
        outcome = fetched.desk.record(succeeded)
        await anyio.wait_all_tasks_blocked()
        assert fetched.store.asked == []
        fetched.comes_no_more()
        await fetched.until_recorded()
        assert fetched.store.asked == [[outcome]]


async def test_what_somebody_has_taken_along_is_not_written_from_here_as_well() -> None:
    fetched = Fetched(Recorder())
    async with fetched.at_work():
        fetched.desk.record(succeeded)
        batch = fetched.completer.take()
        later = fetched.desk.record(succeeded)
        fetched.comes_no_more()
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(10):
            while fetched.completer.unrecorded > 1:
                await anyio.sleep(0.001)
        assert fetched.store.asked == [[later]]
        fetched.completer.written(batch, {})
    assert fetched.store.asked == [[later]]
    assert (fetched.completer.counts.succeeded, fetched.completer.counts.refused) == (1, 1)


async def test_what_could_not_be_written_elsewhere_is_written_from_here_before_what_came_later() -> None:
    fetched = Fetched(Recorder())
    async with fetched.at_work():
        early = [fetched.desk.record(succeeded) for _ in range(2)]
        batch = fetched.completer.take()
        late = fetched.desk.record(succeeded)
        fetched.completer.put_back(batch)
        assert fetched.completer.unrecorded == 3
        fetched.comes_no_more()
        await fetched.until_recorded()
        assert fetched.store.asked == [[*early, late]]


async def test_the_completer_does_not_end_before_what_was_taken_along_is_written() -> None:
    fetched = Fetched(Recorder())
    ended = anyio.Event()

    async def run() -> None:
        await fetched.completer.run()
        ended.set()

    fetched.desk.record(succeeded)
    batch = fetched.completer.take()
    fetched.comes_no_more()
    fetched.completer.no_more_comes()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await anyio.wait_all_tasks_blocked()
        assert not ended.is_set()
        fetched.completer.put_back(batch)
    assert len(fetched.store.written) == 1


async def test_there_is_room_again_once_what_was_taken_along_is_written() -> None:
    desk = Desk(Recorder(), room_for=1)
    desk.record(succeeded)
    batch = desk.completer.take()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(desk.completer.wait_for_room)
        await anyio.wait_all_tasks_blocked()
        assert desk.completer.unrecorded == 1
        desk.completer.written(batch, {})
        tasks.cancel_scope.deadline = anyio.current_time() + 10
    assert not tasks.cancel_scope.cancelled_caught


async def test_of_two_attempts_at_one_run_only_the_first_is_taken_along() -> None:
    desk = Desk(Recorder())
    first = desk.record(succeeded)
    again = leased_run(id=first.lease.run_id, attempt=2)
    desk.completer.record([(again, succeeded(again), Course(1.5))])
    assert [outcome for _, outcome, _ in desk.completer.take()] == [first]
    assert [run for run, _, _ in desk.completer.take()] == [again]


async def test_that_a_run_was_given_back_is_told_before_whoever_has_claimed_it_anew_goes_on() -> None:
    desk = Desk(Recorder())
    outcome = desk.record(lambda run: Released(run.lease))
    batch = desk.completer.take()
    (run,) = [run for run, _, _ in batch]
    went_on: list[list[str]] = []

    async def claims(runs: Sequence[Run]) -> None:
        await desk.completer.wait_until_told(runs)
        went_on.append([event_type for event_type, _ in desk.told])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(claims, [leased_run()])
        tasks.start_soon(claims, [leased_run(), run])
        await anyio.wait_all_tasks_blocked()
        assert went_on == [[]], "another run is waited for by nobody"
        desk.completer.written(batch, {outcome.lease.run_id: RunStatus.PENDING})
    assert went_on == [[], [EventType.JOB_RELEASED]]


async def test_nobody_waits_for_what_could_not_be_written() -> None:
    desk = Desk(Recorder())
    desk.record(lambda run: Released(run.lease))
    batch = desk.completer.take()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(desk.completer.wait_until_told, [run for run, _, _ in batch])
        await anyio.wait_all_tasks_blocked()
        desk.completer.put_back(batch)
