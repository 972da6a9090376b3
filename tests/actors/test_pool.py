"""The pool: what becomes of a token when the child behind it is replaced at the wrong moment; who waits for whom."""

from datetime import timedelta

import anyio
import pytest
from msgspec.structs import replace
from parts import leased_run
from pool_parts import SHORT_SECONDS, WINDOW_MAX, WINDOWS, Parts, ShortParts, ids

from durablestack.runs import Cancelled, Failed, Released, Succeeded
from durablestack.supervisor import wire
from durablestack.supervisor.bus import NOT_BEGUN
from durablestack.supervisor.death import Death
from durablestack.supervisor.ended import Ended
from durablestack.supervisor.in_hand import Assignment, InHand
from durablestack.supervisor.leases import boottime
from durablestack.supervisor.pool import _GENEROUS_TIMES, Room
from durablestack.supervisor.terms import Terms
from durablestack.supervisor.verdict import Ending, Evidence
from durablestack.supervisor.windows import AHEAD_SECONDS

pytestmark = pytest.mark.anyio


async def test_an_executor_that_got_a_run_is_no_token_even_if_its_child_was_replaced_meanwhile() -> None:
    parts = Parts()
    parts.pool.idle(parts.executor)
    room = parts.pool.take_room(1)
    parts.pool.idle(parts.executor)  # the child died while the claim was under way, and another one is ready
    parts.pool.hand_out(room, [parts.claimed()])
    assert not parts.pool._idle


async def test_a_token_that_is_given_back_while_its_child_starts_comes_back_with_the_child() -> None:
    parts = Parts()
    parts.pool.idle(parts.executor)
    parts.pool.hand_out(parts.pool.take_room(1), [])  # there is no child now
    assert not parts.pool._idle
    parts.pool.idle(parts.executor)
    parts.pool.idle(parts.executor)
    assert list(parts.pool._idle) == [parts.executor]


async def test_the_first_claim_waits_a_moment_for_children_that_are_about_to_be_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("durablestack.supervisor.pool._ALL_CHILDREN_WITHIN_SECONDS", 30.0)
    parts = Parts(size=3)
    ready: list[int] = []
    async with anyio.create_task_group() as starts:

        async def claim() -> None:
            await parts.pool.wait_for_children()
            ready.append(parts.pool.take_room(10).size)

        starts.start_soon(claim)
        for executor in parts.pool.executors:
            await anyio.wait_all_tasks_blocked()
            assert not ready
            parts.pool.idle(executor)
    assert ready == [3]


async def test_the_first_claim_does_not_wait_for_a_child_that_does_not_come() -> None:
    parts = Parts(size=2)
    parts.pool.idle(parts.executor)
    with anyio.fail_after(30):
        await parts.pool.wait_for_children()
    assert parts.pool.take_room(10).size == 1


@pytest.mark.parametrize("ending", [Ending.STOPPING, Ending.CANCELLED])
async def test_a_run_that_no_child_has_seen_is_given_back_when_it_is_to_end(ending: Ending) -> None:
    parts = Parts()
    run = parts.claimed()
    parts.pool.hand_out(Room([parts.executor], 0), [run])
    parts.pool.end_run(run.id, ending)
    assert parts.recorded == [Released(run.lease)]
    await parts.pool.quiet()


async def test_a_stop_at_once_does_not_wait_for_a_run_that_no_child_has_seen() -> None:
    parts = Parts()
    run = parts.claimed()
    parts.pool.hand_out(Room([parts.executor], 0), [run])
    parts.pool.kill_all(Ending.STOPPING)
    assert parts.recorded == [Released(run.lease)]


@pytest.mark.parametrize("cause", ["the guard killed it", "its lease is not trusted"])
async def test_a_death_that_the_end_of_trust_brought_is_no_crash(cause: str) -> None:
    parts = Parts()
    held_for = timedelta(seconds=30)
    run = leased_run()
    asked_at = boottime() if cause == "the guard killed it" else boottime() - held_for.total_seconds()
    parts.leases.hold([run.lease], asked_at, held_for)
    death = Death(-9, by_guard=cause == "the guard killed it")
    parts.reports.ended(
        Ended(assignment=Assignment(run, Terms()), how=death, ending=None, evidence=Evidence(), course=NOT_BEGUN, pid=1)
    )
    assert parts.recorded == []
    assert parts.reports.children_lost == 0
    assert parts.leases.held() == []


# --- several runs for one child


async def test_short_runs_wait_evenly_behind_those_that_begin() -> None:
    parts = ShortParts(3)
    room = parts.pool.take_room(15)
    assert (len(room.idle), room.behind) == (3, 12)
    runs = parts.claims(15)
    parts.pool.hand_out(room, runs)
    assert [len(parts.has(executor)) for executor in parts.pool.executors] == [5, 5, 5]
    assert {run.id for executor in parts.pool.executors for run in parts.has(executor)} == {run.id for run in runs}
    assert all(len(child.waiting) == 5 for child in parts.children), "they have been told"
    assert parts.recorded == []


async def test_a_child_is_given_at_most_what_it_does_in_a_moment() -> None:
    parts = ShortParts(2)
    room = parts.pool.take_room(1_000)
    in_a_moment = int(AHEAD_SECONDS / SHORT_SECONDS)
    assert room.size == 2 * in_a_moment
    parts.pool.hand_out(room, parts.claims(room.size))
    assert all(executor.behind + 1 == in_a_moment for executor in parts.pool.executors)
    assert parts.recorded == []
    assert not parts.pool.has_room


async def test_of_more_than_was_asked_for_a_child_is_given_a_bounded_number_and_the_rest_goes_back() -> None:
    parts = ShortParts(2)
    in_a_moment = int(AHEAD_SECONDS / SHORT_SECONDS)
    parts.pool.hand_out(parts.pool.take_room(1_000), parts.claims(10 * in_a_moment))
    given = [executor.behind + 1 for executor in parts.pool.executors]
    assert max(given) <= 1.01 * _GENEROUS_TIMES * AHEAD_SECONDS / SHORT_SECONDS
    assert len(parts.released) == 10 * in_a_moment - sum(given)


async def test_a_child_is_never_given_more_than_a_number_of_runs_however_short_they_are() -> None:
    parts = ShortParts(1)
    parts.windows.ended([("job", 0.0)] * 300)
    room = parts.pool.take_room(1_000)
    assert room.size == WINDOW_MAX
    parts.pool.hand_out(room, parts.claims(WINDOW_MAX))
    assert parts.executor.behind == WINDOW_MAX - 1
    assert parts.recorded == []


async def test_nothing_waits_behind_a_run_before_anything_is_known_of_its_job() -> None:
    parts = Parts(2)
    for executor in parts.pool.executors:
        parts.pool.idle(executor)
    assert parts.pool.take_room(100).size == 2


async def test_those_at_their_last_attempt_begin_and_others_wait() -> None:
    parts = ShortParts(2)
    room = parts.pool.take_room(8)
    may_wait = parts.claims(6, attempt=2, max_attempts=3)
    last = parts.claims(2, attempt=3, max_attempts=3)
    parts.pool.hand_out(room, [*may_wait, *last])
    assert sorted(ids(parts.has(executor)[0] for executor in parts.pool.executors)) == sorted(ids(last))
    assert parts.recorded == []


async def test_a_run_at_its_last_attempt_is_given_back_rather_than_kept_waiting() -> None:
    parts = ShortParts(2)
    room = parts.pool.take_room(8)
    last = parts.claims(3, attempt=1, max_attempts=1)
    may_wait = parts.claims(5)
    parts.pool.hand_out(room, [*may_wait, *last])
    assert len(parts.released) == 1
    assert parts.released < set(ids(last))
    for executor in parts.pool.executors:
        assert all(run.max_attempts == 3 for run in parts.has(executor)[1:])


async def test_a_run_that_takes_its_time_lets_nobody_wait_and_does_not_wait() -> None:
    parts = ShortParts(1)
    room = parts.pool.take_room(4)
    runs = [parts.claimed(job_name="long job"), *parts.claims(3)]
    parts.pool.hand_out(room, runs)
    assert ids(parts.has(parts.executor)) == [runs[0].id], "it is not one of those that may wait"
    assert parts.released == set(ids(runs[1:]))
    other = ShortParts(1)
    room = other.pool.take_room(3)
    runs = [*other.claims(2), other.claimed(job_name="long job")]
    other.pool.hand_out(room, runs)
    assert [run.job_name for run in other.has(other.executor)] == ["long job"]


async def test_what_does_not_go_into_the_socket_of_a_child_goes_elsewhere() -> None:
    parts = ShortParts(2, room_for=3)
    room = parts.pool.take_room(10)
    parts.pool.hand_out(room, parts.claims(10))
    assert [len(parts.has(executor)) for executor in parts.pool.executors] == [3, 3]
    assert len(parts.released) == 4
    assert len(parts.leases.held()) == 10
    for executor, child in zip(parts.pool.executors, parts.children, strict=True):
        for _ in range(3):
            parts.succeeds(executor, parts.takes(executor))
        assert child.trusted[-1] is None, "it has nothing to do any more"


async def test_a_child_goes_on_with_the_next_and_it_is_time_for_more_when_half_have_begun() -> None:
    parts = ShortParts(1)
    parts.pool.hand_out(room := parts.pool.take_room(1_000), runs := parts.claims(room.size))
    assert not parts.pool.has_room
    for number, run in enumerate(runs):
        assert parts.executor.assignment is not None
        assert parts.executor.assignment.run.id == run.id
        assert parts.pool.has_room == (number > len(runs) // 2)
        parts.succeeds(parts.executor, parts.takes(parts.executor))
    assert [type(outcome) for outcome in parts.recorded] == [Succeeded] * len(runs)
    assert list(parts.pool._idle) == [parts.executor]


async def test_what_waits_behind_a_run_that_is_overdue_is_for_others() -> None:
    parts = ShortParts(2)
    first, second = parts.pool.executors
    parts.pool.hand_out(parts.pool.take_room(2), parts.claims(2))
    parts.succeeds(second, parts.takes(second))
    parts.pool.place(parts.pool._assignments(parts.claims(5)))
    begun = parts.takes(first)
    waited = parts.has(first)[1:]
    assert waited
    first.line.look_after(first.began_at + 0.04)
    assert parts.has(first)[1:] == waited
    first.line.look_after(first.began_at + 0.06)
    assert [run.id for run in parts.has(first)] == [begun.run_id]
    assert set(ids(waited)) < set(ids(parts.has(second)))
    assert not first.line.lets_follow
    assert parts.children[0].listens, "what it writes is read from here on"
    assert parts.released == set()


async def test_what_waits_behind_an_overdue_run_is_given_back_where_there_is_nobody_else() -> None:
    parts = ShortParts(1)
    parts.pool.hand_out(parts.pool.take_room(5), runs := parts.claims(5))
    parts.takes(parts.executor)
    parts.executor.line.look_after(parts.executor.began_at + 0.06)
    assert parts.released == set(ids(runs[1:]))
    assert parts.pool._waiting == 0


async def test_a_crash_costs_the_run_in_front_an_attempt_and_those_behind_it_nothing() -> None:
    parts = ShortParts(2)
    first, second = parts.pool.executors
    parts.pool.hand_out(parts.pool.take_room(8), parts.claims(8))
    parts.takes(first)
    front, *behind = parts.has(first)
    parts.dies(first)
    (crashed,) = parts.recorded
    assert isinstance(crashed, Failed)
    assert crashed.lease.run_id == front.id
    assert set(ids(behind)) < set(ids(parts.has(second)))
    assert parts.has(first) == []


async def test_the_leases_of_runs_that_another_child_has_taken_over_do_not_bind_the_first() -> None:
    parts = ShortParts(2)
    first, second = parts.pool.executors
    parts.pool.hand_out(parts.pool.take_room(8), parts.claims(8))
    begun = parts.takes(first)
    first.line.look_after(first.began_at + 0.06)
    parts.succeeds(first, begun)
    assert parts.children[0].trusted[-1] is None
    while second.assignment is not None:
        parts.succeeds(second, parts.takes(second))
    assert parts.children[1].trusted[-1] is None


async def test_what_waits_in_a_child_that_retires_is_for_others() -> None:
    parts = ShortParts(2)
    first, second = parts.pool.executors
    parts.pool.hand_out(parts.pool.take_room(8), parts.claims(8))
    order = parts.takes(first)
    behind = parts.has(first)[1:]
    parts.succeeds(first, order, retires=True)
    assert parts.children[0].sent == [wire.Stop()]
    assert set(ids(behind)) < set(ids(parts.has(second)))
    assert parts.has(first) == []


async def test_a_run_that_waits_can_be_cancelled_and_those_with_it_are_done() -> None:
    parts = ShortParts(2)
    parts.pool.hand_out(parts.pool.take_room(8), runs := parts.claims(8))
    cancelled = parts.has(parts.pool.executors[0])[2]
    parts.pool.end_run(cancelled.id, Ending.CANCELLED)
    assert parts.released == {cancelled.id}
    left = [run for executor in parts.pool.executors for run in parts.has(executor)]
    assert set(ids(left)) == set(ids(runs)) - {cancelled.id}
    assert len(left) == 7


async def test_a_run_that_waits_and_that_its_child_has_taken_meanwhile_is_ended_when_its_turn_comes() -> None:
    parts = ShortParts(1)
    parts.pool.hand_out(parts.pool.take_room(3), runs := parts.claims(3))
    first = parts.takes(parts.executor)
    second = parts.children[0].waiting.pop(0)  # its child is ahead of what it has said
    parts.pool.end_run(runs[1].id, Ending.CANCELLED)
    assert ids(parts.has(parts.executor)) == ids(runs)
    async with anyio.create_task_group() as tasks:
        parts.executor.escalation.tasks = tasks
        parts.succeeds(parts.executor, first)
        await anyio.wait_all_tasks_blocked()
        assert wire.Cancel(second.number) in parts.children[0].sent
        parts.succeeds(parts.executor, second, noticed_cancel=True)
    assert [type(outcome) for outcome in parts.recorded] == [Succeeded, Cancelled]


async def test_the_timeout_of_a_run_that_waits_counts_from_its_beginning() -> None:
    parts = ShortParts(1, terms=Terms(timeout_seconds=30))
    parts.pool.hand_out(parts.pool.take_room(3), parts.claims(3))
    held = parts.executor.line.all

    def counts(each: InHand) -> bool:
        return each.timeout is not None and not each.timeout.cancelled()

    assert [*map(counts, held)] == [True, False, False]
    parts.succeeds(parts.executor, parts.takes(parts.executor))
    assert [*map(counts, held)] == [False, True, False]
    assert held[1] is parts.executor.line.in_hand


async def test_when_the_pool_lets_go_what_has_not_begun_is_given_back_and_nothing_waits_any_more() -> None:
    parts = ShortParts(2)
    parts.pool.hand_out(parts.pool.take_room(10), runs := parts.claims(10))
    begun = [parts.takes(executor).run_id for executor in parts.pool.executors]
    parts.pool.let_go_of_waiting()
    assert parts.released == set(ids(runs)) - set(begun)
    assert parts.pool.take_room(10).size == 0


async def test_what_was_given_back_when_the_pool_let_go_is_not_given_to_one_that_becomes_idle() -> None:
    parts = ShortParts(2)
    first, second = parts.pool.executors
    parts.pool.hand_out(parts.pool.take_room(10), parts.claims(10))
    parts.succeeds(first, parts.takes(first))
    parts.pool.let_go_of_waiting()
    parts.takes(second)
    parts.dies(second)
    assert second.assignment is None


async def test_a_run_whose_lease_is_lost_is_not_placed_and_keeps_no_other_from_its_place() -> None:
    parts = ShortParts(2)
    parts.pool.hand_out(parts.pool.take_room(2), parts.claims(2))
    lost, *fine = parts.claims(5)
    parts.leases.drop([lost.lease])
    parts.pool.place(parts.pool._assignments([lost, *fine]))
    placed = {run.id for executor in parts.pool.executors for run in parts.has(executor)}
    assert lost.id not in placed
    assert set(ids(fine)) < placed


async def test_a_run_that_is_not_to_wait_gets_the_executor_that_has_become_idle_since_the_claim_began() -> None:
    parts = ShortParts(2)
    parts.pool.hand_out(parts.pool.take_room(2), parts.claims(2))
    first, _ = parts.pool.executors
    room = parts.pool.take_room(2)
    assert not room.idle
    parts.succeeds(first, parts.takes(first))
    may_wait, last_attempt = parts.claimed(), parts.claimed(attempt=3)
    parts.pool.hand_out(room, [may_wait, last_attempt])
    assert ids(parts.has(first))[:1] == [last_attempt.id]
    assert parts.released == set()


async def test_an_executor_that_got_a_run_that_was_taken_back_elsewhere_is_not_given_another_one() -> None:
    """Its child died while the claim was under way that it was taken for; the next child is a token again."""
    parts = ShortParts(1)
    room = parts.pool.take_room(1)
    parts.pool.idle(parts.executor)
    taken_back, claimed = parts.claims(2)
    parts.pool.place(parts.pool._assignments([taken_back]))
    parts.pool.hand_out(room, [claimed])
    assert taken_back.id in ids(parts.has(parts.executor))
    assert claimed.id in parts.released or claimed.id in ids(parts.has(parts.executor))


async def test_nothing_is_claimed_to_wait_where_a_child_gets_so_many_runs_and_no_more() -> None:
    parts = ShortParts(2, limits=replace(WINDOWS, runs_per_child_max=3))
    assert parts.pool.take_room(100).behind == 0


async def test_a_child_is_replaced_after_so_many_runs_though_one_was_taken_back_from_it() -> None:
    parts = ShortParts(1, limits=replace(WINDOWS, runs_per_child_max=2))
    parts.pool.hand_out(parts.pool.take_room(1), parts.claims(1))
    parts.succeeds(parts.executor, parts.takes(parts.executor))
    cancelled = parts.claimed()
    parts.pool.hand_out(parts.pool.take_room(1), [cancelled])
    parts.pool.end_run(cancelled.id, Ending.CANCELLED)  # before the child takes it
    assert parts.released == {cancelled.id}
    parts.pool.hand_out(parts.pool.take_room(1), parts.claims(1))
    parts.succeeds(parts.executor, parts.takes(parts.executor))
    assert parts.children[0].sent == [wire.Stop()]


async def test_room_behind_a_run_comes_back_when_all_that_waited_there_was_cancelled() -> None:
    parts = ShortParts(1)
    room = parts.pool.take_room(1_000)
    parts.pool.hand_out(room, runs := parts.claims(room.size))
    parts.takes(parts.executor)
    for run in runs[1:]:
        parts.pool.end_run(run.id, Ending.CANCELLED)
    assert len(parts.released) == room.behind
    assert parts.pool.take_room(1_000).behind == room.behind


async def test_leases_of_all_that_wait_are_known_to_the_table_and_none_is_left_in_the_end() -> None:
    parts = ShortParts(2)
    parts.pool.hand_out(room := parts.pool.take_room(1_000), parts.claims(room.size))
    assert parts.leases.seconds_to_deadline() is not None
    for executor in parts.pool.executors:
        while executor.assignment is not None:
            parts.succeeds(executor, parts.takes(executor))
    assert parts.leases.seconds_to_deadline() is None
    assert not parts.leases._children
    await parts.pool.quiet()
