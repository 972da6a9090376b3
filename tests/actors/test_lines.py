"""The runs that a child was given: what becomes of each, whatever the child took of them, and however it goes on."""

from uuid import uuid4

import anyio
import pytest
from msgspec.structs import replace
from pool_parts import WINDOWS, ShortChild, ShortParts, ids

from durablestack.events import EventType
from durablestack.runs import Cancelled, Failed, Released, Run, Succeeded
from durablestack.supervisor import wire
from durablestack.supervisor.bus import Course
from durablestack.supervisor.death import Death
from durablestack.supervisor.verdict import Ending

pytestmark = pytest.mark.anyio

OVERDUE_SECONDS = 0.06
SPOILT = wire.Spoilt(("resource limits",), uuid4(), "short")


def given(parts: ShortParts, count: int) -> list[Run]:
    """That many runs, claimed for whoever is idle, and handed out."""
    runs = parts.claims(count)
    parts.pool.hand_out(parts.pool.take_room(count), runs)
    return runs


def does_all(parts: ShortParts) -> None:
    """The children do what they were given."""
    for executor in parts.pool.executors:
        while executor.assignment is not None:
            parts.succeeds(executor, parts.takes(executor))


def how_each_ended(parts: ShortParts, runs: list[Run]) -> list[list[type]]:
    return [[type(outcome) for outcome in parts.recorded if outcome.lease == run.lease] for run in runs]


# --- how they come


async def test_what_a_child_is_given_comes_at_once() -> None:
    parts = ShortParts(3)
    given(parts, 15)
    assert [child.windows for child in parts.children] == [[5], [5], [5]]
    more = parts.pool.take_room(1_000)
    parts.pool.hand_out(more, parts.claims(more.size))
    assert [len(child.windows) for child in parts.children] == [2, 2, 2]


async def test_it_is_told_in_the_order_in_which_it_is_done_that_each_has_begun() -> None:
    parts = ShortParts(1)
    runs = given(parts, 5)
    assert not parts.told
    does_all(parts)
    assert parts.told == [(EventType.JOB_STARTED, run.id) for run in runs]
    assert how_each_ended(parts, runs) == [[Succeeded]] * 5


async def test_what_there_is_no_room_for_is_given_back_and_the_rest_is_done() -> None:
    parts = ShortParts(1, room_for=3)
    runs = given(parts, 5)
    assert ids(parts.has(parts.executor)) == ids(runs[:3])
    assert parts.released == set(ids(runs[3:]))
    does_all(parts)
    assert how_each_ended(parts, runs) == [[Succeeded]] * 3 + [[Released]] * 2
    assert parts.children[0].trusted[-1] is None, "it has nothing to do any more"
    assert parts.pool.take_room(1).idle == [parts.executor]


async def test_a_child_that_has_no_room_for_the_run_in_front_is_replaced_and_the_next_one_gets_it() -> None:
    parts = ShortParts(1, room_for=0)
    front, *behind = given(parts, 3)
    assert parts.children[0].sent == [wire.Stop()]
    assert ids(parts.has(parts.executor)) == [front.id]
    assert parts.released == set(ids(behind))
    parts.dies(parts.executor, Death(0))
    assert parts.reports.children_lost == 0, "it was asked to leave"
    parts.gets(parts.executor, ShortChild())
    does_all(parts)
    assert how_each_ended(parts, [front]) == [[Succeeded]]


async def test_a_run_in_front_whose_lease_is_lost_is_not_begun_and_those_behind_it_are() -> None:
    parts = ShortParts(1)
    room = parts.pool.take_room(4)
    lost, *others = parts.claims(4)
    parts.leases.drop([lost.lease])
    parts.pool.hand_out(room, [lost, *others])
    assert [order.run_id for order in parts.children[0].waiting] == ids(others)
    does_all(parts)
    assert how_each_ended(parts, others) == [[Succeeded]] * 3
    assert parts.began(lost.id) == 0
    assert parts.pool.take_room(1).idle == [parts.executor]


async def test_a_child_none_of_whose_runs_may_begin_is_idle_again() -> None:
    parts = ShortParts(1)
    room = parts.pool.take_room(3)
    runs = parts.claims(3)
    parts.leases.drop([run.lease for run in runs])
    parts.pool.hand_out(room, runs)
    assert not parts.children[0].waiting
    assert parts.has(parts.executor) == []
    assert parts.pool.take_room(1).idle == [parts.executor]


async def test_a_success_counts_for_nothing_once_its_lease_was_lost() -> None:
    parts = ShortParts(1)
    (run,) = given(parts, 1)
    order = parts.takes(parts.executor)
    parts.leases.extend(set(), [run.lease], 0.0, parts.held_for)
    assert parts.children[0].killed
    parts.succeeds(parts.executor, order)
    assert parts.recorded == []
    assert (EventType.LEASE_LOST, run.id) in parts.told
    assert parts.leases.held() == []


@pytest.mark.parametrize("reason", ["no room", "its lease is lost"])
async def test_room_behind_a_run_comes_back_when_what_was_to_wait_there_could_not(reason: str) -> None:
    parts = ShortParts(1, limits=replace(WINDOWS, window_max=2), room_for=1 if reason == "no room" else 1_000)
    room = parts.pool.take_room(2)
    assert room.behind == 1
    front, other = parts.claims(2)
    if reason == "its lease is lost":
        parts.leases.drop([other.lease])
    parts.pool.hand_out(room, [front, other])
    assert ids(parts.has(parts.executor)) == [front.id]
    does_all(parts)
    assert parts.pool.take_room(2).behind == 1


# --- a run that takes its time


def given_one_that_takes_its_time(parts: ShortParts) -> Run:
    run = parts.claimed(job_name="long job")
    parts.pool.hand_out(parts.pool.take_room(1), [run])
    return run


async def test_that_it_begins_is_told_when_its_child_gets_it_and_known_when_it_is_taken() -> None:
    parts = ShortParts(1)
    run = given_one_that_takes_its_time(parts)
    assert parts.told == [(EventType.JOB_STARTED, run.id)]
    assert parts.executor.measure() is None
    order = parts.takes(parts.executor)
    assert parts.executor.measure() is not None
    parts.succeeds(parts.executor, order)
    assert parts.told == [(EventType.JOB_STARTED, run.id)]
    assert how_each_ended(parts, [run]) == [[Succeeded]]


async def test_a_child_that_traces_says_so_itself_with_the_ids_of_the_trace() -> None:
    parts = ShortParts(1)
    parts.children[0].tells_beginnings = True
    run = given_one_that_takes_its_time(parts)
    order = parts.takes(parts.executor)
    assert parts.told == []
    parts.executor._on_replies([wire.Began(order.number, "a" * 32, "b" * 16)])
    assert parts.told == [(EventType.JOB_STARTED, run.id)]
    assert parts.executor.line.in_hand is not None
    assert parts.executor.line.in_hand.course == Course(None, "a" * 32, "b" * 16)


async def test_one_that_its_dead_child_had_taken_is_to_blame() -> None:
    parts = ShortParts(1)
    run = given_one_that_takes_its_time(parts)
    parts.takes(parts.executor)
    parts.dies(parts.executor)
    assert how_each_ended(parts, [run]) == [[Failed]]


async def test_one_that_its_dead_child_had_not_taken_waits_for_the_next_and_is_told_once() -> None:
    parts = ShortParts(1)
    run = given_one_that_takes_its_time(parts)
    parts.dies(parts.executor)
    assert ids(parts.has(parts.executor)) == [run.id]
    assert parts.recorded == []
    parts.gets(parts.executor, ShortChild())
    parts.succeeds(parts.executor, parts.takes(parts.executor))
    assert how_each_ended(parts, [run]) == [[Succeeded]]
    assert parts.began(run.id) == 1


# --- a child dies


async def test_of_a_child_that_dies_at_its_first_run_the_others_are_done_elsewhere() -> None:
    parts = ShortParts(2)
    first, second = parts.pool.executors
    runs = given(parts, 10)
    front, *untaken = parts.has(first)
    parts.takes(first)
    parts.dies(first)
    assert how_each_ended(parts, [front]) == [[Failed]]
    assert parts.began(front.id) == 1
    assert parts.reports.children_lost == 1
    assert set(ids(untaken)) < set(ids(parts.has(second)))
    does_all(parts)
    assert how_each_ended(parts, runs) == [[Failed] if run is front else [Succeeded] for run in runs]
    assert all(parts.began(run.id) == 1 for run in runs)


async def test_what_a_dead_child_had_taken_has_ended_with_it_though_nothing_was_heard_of_those_before() -> None:
    parts = ShortParts(2)
    first, second = parts.pool.executors
    runs = given(parts, 10)
    taken, untaken = parts.has(first)[:2], parts.has(first)[2:]
    parts.takes(first)
    parts.takes(first)
    parts.dies(first)
    assert how_each_ended(parts, taken) == [[Failed], [Failed]]
    assert [parts.began(run.id) for run in taken] == [1, 1]
    assert parts.has(first) == []
    assert set(ids(untaken)) < set(ids(parts.has(second)))
    does_all(parts)
    assert how_each_ended(parts, untaken) == [[Succeeded]] * 3
    assert len(parts.recorded) == len(runs)
    assert not parts.leases._children


async def test_what_a_dead_child_had_not_taken_is_given_back_with_its_attempt_where_there_is_nobody_else() -> None:
    parts = ShortParts(1)
    runs = given(parts, 5)
    parts.takes(parts.executor)
    parts.takes(parts.executor)
    parts.dies(parts.executor)
    assert how_each_ended(parts, runs) == [[Failed], [Failed], [Released], [Released], [Released]]
    assert parts.pool.busy == []


async def test_only_the_run_that_was_being_done_is_to_blame_after_replies_to_those_before_were_heard() -> None:
    parts = ShortParts(1)
    runs = given(parts, 5)
    for _ in range(2):
        parts.succeeds(parts.executor, parts.takes(parts.executor))
    parts.takes(parts.executor)
    parts.dies(parts.executor)
    assert how_each_ended(parts, runs) == [[Succeeded], [Succeeded], [Failed], [Released], [Released]]
    assert [parts.began(run.id) for run in runs] == [1, 1, 1, 0, 0]
    assert parts.reports.children_lost == 1


@pytest.mark.parametrize("done_before", [0, 1])
async def test_a_run_in_front_that_a_dead_child_had_not_taken_waits_for_the_next_one_and_nobody_is_to_blame(
    done_before: int,
) -> None:
    parts = ShortParts(2)
    first, second = parts.pool.executors
    runs = given(parts, 8)
    for _ in range(done_before):
        parts.succeeds(first, parts.takes(first))
    front, *behind = parts.has(first)
    parts.dies(first)
    assert ids(parts.has(first)) == [front.id]
    assert set(ids(behind)) < set(ids(parts.has(second)))
    assert len(parts.recorded) == done_before
    assert parts.reports.children_lost == 1
    assert parts.began(front.id) == 0
    parts.gets(first, ShortChild())
    does_all(parts)
    assert how_each_ended(parts, runs) == [[Succeeded]] * 8
    assert all(parts.began(run.id) == 1 for run in runs)


async def test_a_run_in_front_that_a_dead_child_had_not_taken_and_that_was_to_end_is_not_begun() -> None:
    parts = ShortParts(1)
    runs = given(parts, 3)
    parts.dies(parts.executor)
    parts.pool.end_run(runs[0].id, Ending.CANCELLED)
    assert how_each_ended(parts, runs) == [[Released]] * 3
    parts.gets(parts.executor, child := ShortChild())
    assert not child.waiting
    assert parts.pool.take_room(1).idle == [parts.executor]


# --- one that takes its time


async def test_it_is_told_once_that_an_overdue_run_has_begun_and_the_others_are_done_elsewhere() -> None:
    parts = ShortParts(2)
    first, _ = parts.pool.executors
    runs = given(parts, 8)
    front, *behind = parts.has(first)
    order = parts.takes(first)
    assert parts.began(front.id) == 0
    for looks in range(1, 4):
        first.line.look_after(first.began_at + looks * OVERDUE_SECONDS)
        assert parts.began(front.id) == 1
    assert ids(parts.has(first)) == [front.id]
    assert not {run.id for run in behind} & parts.released
    parts.succeeds(first, order)
    does_all(parts)
    assert how_each_ended(parts, runs) == [[Succeeded]] * 8
    assert [parts.began(run.id) for run in runs] == [1] * 8


async def test_an_overdue_run_that_its_child_has_not_taken_is_given_to_it_again() -> None:
    parts = ShortParts(1)
    child, (front, *behind) = parts.children[0], given(parts, 4)
    parts.executor.line.look_after(parts.executor.began_at + OVERDUE_SECONDS)
    assert [order.run_id for order in child.waiting] == [front.id]
    assert parts.began(front.id) == 0
    assert parts.released == set(ids(behind))
    does_all(parts)
    assert how_each_ended(parts, [front]) == [[Succeeded]]
    assert parts.began(front.id) == 1


async def test_a_child_that_takes_nothing_is_not_given_its_run_again_and_again() -> None:
    """Void orders lie in its socket, and long ones in our memory, until it takes one that came after them."""
    parts = ShortParts(1)
    child, (run,) = parts.children[0], given(parts, 1)
    for looks in range(1, 1_000):
        parts.executor.line.look_after(parts.executor.began_at + looks * OVERDUE_SECONDS)
    assert len(child.windows) < 10
    assert [order.run_id for order in child.waiting] == [run.id]


# --- a run is ended


async def test_a_run_in_front_that_its_child_has_not_taken_can_be_cancelled_and_the_others_are_done() -> None:
    parts = ShortParts(2)
    runs = given(parts, 8)
    cancelled = parts.has(parts.executor)[0]
    parts.pool.end_run(cancelled.id, Ending.CANCELLED)
    assert parts.children[0].sent == [], "nobody is to be asked"
    does_all(parts)
    assert parts.began(cancelled.id) == 0
    assert how_each_ended(parts, runs) == [[Released] if run is cancelled else [Succeeded] for run in runs]


async def test_a_run_in_front_that_its_child_has_taken_is_asked_to_end_and_the_others_are_done_elsewhere() -> None:
    parts = ShortParts(2)
    first, second = parts.pool.executors
    runs = given(parts, 8)
    cancelled, *behind = parts.has(first)
    order = parts.takes(first)
    async with anyio.create_task_group() as tasks:
        first.escalation.tasks = tasks
        parts.pool.end_run(cancelled.id, Ending.CANCELLED)
        await anyio.wait_all_tasks_blocked()
        assert parts.children[0].sent == [wire.Cancel(order.number)]
        assert parts.began(cancelled.id) == 1
        assert set(ids(behind)) < set(ids(parts.has(second)))
        parts.succeeds(first, order, noticed_cancel=True)
    does_all(parts)
    assert how_each_ended(parts, runs) == [[Cancelled] if run is cancelled else [Succeeded] for run in runs]
    assert parts.began(cancelled.id) == 1


# --- what a run has left


async def test_a_child_that_is_spoilt_is_replaced_and_the_next_one_gets_what_it_was_given_meanwhile() -> None:
    parts = ShortParts(2)
    first, second = parts.pool.executors
    given(parts, 2)
    does_all(parts)
    runs = given(parts, 8)
    front, *behind = parts.has(first)
    first._on_reply(SPOILT)
    assert parts.children[0].sent == [wire.Stop()]
    assert not parts.children[0].waiting
    assert ids(parts.has(first)) == [front.id]
    assert set(ids(behind)) < set(ids(parts.has(second)))
    parts.dies(first, Death(0))
    assert parts.reports.children_lost == 0, "it was asked to leave"
    parts.gets(first, ShortChild())
    does_all(parts)
    assert how_each_ended(parts, runs) == [[Succeeded]] * 8
    assert all(parts.began(run.id) == 1 for run in runs)


async def test_a_spoilt_child_that_has_nothing_to_do_is_given_nothing_any_more() -> None:
    parts = ShortParts(1)
    given(parts, 2)
    does_all(parts)
    parts.executor._on_reply(SPOILT)
    assert parts.pool.take_room(10).size == 0
    parts.dies(parts.executor, Death(0))
    assert parts.reports.children_lost == 0
    parts.gets(parts.executor, ShortChild())
    assert parts.pool.take_room(1).idle == [parts.executor]


async def test_what_is_handed_out_to_a_child_that_was_found_spoilt_meanwhile_is_done_by_the_next_one() -> None:
    parts = ShortParts(1)
    room, runs = parts.pool.take_room(3), parts.claims(3)
    parts.executor._on_reply(SPOILT)
    parts.pool.hand_out(room, runs)
    assert not parts.children[0].waiting
    parts.dies(parts.executor, Death(0))
    parts.gets(parts.executor, ShortChild())
    does_all(parts)
    assert sorted(map(len, how_each_ended(parts, runs))) == [1, 1, 1]
    assert [Succeeded] in how_each_ended(parts, runs)


@pytest.mark.parametrize("reason", ["it is spoilt", "it has no room"])
async def test_a_child_that_is_to_leave_is_given_nothing_however_long_it_takes(reason: str) -> None:
    parts = ShortParts(1, room_for=0 if reason == "it has no room" else 1_000)
    child, (run,) = parts.children[0], given(parts, 1)
    if reason == "it is spoilt":
        parts.executor._on_reply(SPOILT)
    assert child.sent == [wire.Stop()]
    given_before = len(child.windows)
    for looks in range(1, 5):
        parts.executor.line.look_after(parts.executor.began_at + looks * OVERDUE_SECONDS)
    assert len(child.windows) == given_before
    assert child.sent == [wire.Stop()], "once"
    parts.dies(parts.executor, Death(0))
    parts.gets(parts.executor, ShortChild())
    does_all(parts)
    assert how_each_ended(parts, [run]) == [[Succeeded]]


# --- replies


async def test_to_fail_in_looking_for_replies_ends_the_pool_rather_than_leave_it_deaf() -> None:
    parts = ShortParts(1)
    parts.executor.run = anyio.sleep_forever  # type: ignore[method-assign]
    parts.children[0].look = out_of_order  # type: ignore[method-assign]
    given(parts, 3)
    with anyio.fail_after(10), pytest.raises(BaseExceptionGroup) as raised:
        await parts.pool.run()
    assert raised.group_contains(ZeroDivisionError)


def out_of_order() -> None:
    raise ZeroDivisionError
