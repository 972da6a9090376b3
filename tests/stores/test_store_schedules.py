"""Schedules: what is stored of them, and that a slot gets one run and no more, whoever is at it and however many."""

import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from exam import (
    JOB,
    Place,
    age_completion,
    all_runs,
    change,
    claim,
    claim_one,
    enqueue,
    failed,
    on_databases,
    on_servers,
    reclaimed_after_expiry,
    the_run,
    words_of_processes,
)
from materializing_process import materialize_all
from msgspec.structs import replace

from durablestack.errors import ScheduleError
from durablestack.ids import new_run_id
from durablestack.options import CatchUpPolicy
from durablestack.runs import NewRun, Released, RunStatus, Succeeded
from durablestack.schedules import Schedule, Slot
from durablestack.scheduling.recurring import slot_due
from durablestack.stores.contract import Store
from durablestack.stores.sql import SqlStore

THREADS = 8
PROCESSES = 3
OVERLAP_TRIES = 40
SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
INSTANT = datetime(2031, 7, 8, 9, 10, 11, 123456, tzinfo=UTC)
MATERIALIZING_PROCESS = Path(__file__).with_name("materializing_process.py")

skip_missed = slot_due(CatchUpPolicy.SKIP_MISSED)
catch_up = slot_due(CatchUpPolicy.CATCH_UP)


class Boom(Exception):
    pass


def raise_boom(*_: object) -> Any:
    raise Boom


def not_asked(*_: object) -> Any:
    raise AssertionError("nobody should have been asked")


def make_schedule(store: Store, job_name: str = JOB, **fields: Any) -> Schedule:
    """An hourly schedule, its slots due for three hours unless `fields` say otherwise."""
    now = store.now()
    recurs = {} if {"cron_expression", "every"} & fields.keys() else {"cron_expression": "0 * * * *"}
    values = {"next_run_at": whole_hour(now) - 2 * HOUR, "seen_at": now, "created_at": now, "updated_at": now}
    made = Schedule(**{"job_name": job_name, **recurs, **values, **fields})
    stored = store.change_schedule(job_name, lambda stored, now: made)
    assert stored is not None
    return stored


def alter(store: Store, job_name: str = JOB, **fields: Any) -> Schedule:
    def alter(stored: Schedule | None, now: datetime) -> Schedule:
        assert stored is not None
        return replace(stored, **fields)

    altered = store.change_schedule(job_name, alter)
    assert altered is not None
    return altered


def whole_hour(instant: datetime) -> datetime:
    return instant.replace(minute=0, second=0, microsecond=0)


def the_schedule(store: Store, job_name: str = JOB) -> Schedule:
    schedule = store.get_schedule(job_name)
    assert schedule is not None
    return schedule


def materialized(store: Store, job_name: str = JOB) -> NewRun:
    run = store.materialize_recurring_run(job_name, catch_up)
    assert run is not None
    return run


def active(store: Store, job_name: str = JOB) -> list[UUID]:
    return [run.id for run in all_runs(store).values() if run.job_name == job_name and not run.status.terminal]


def end_all(store: Store) -> None:
    store.record([Succeeded(run.lease) for run in claim(store, batch_size=1000)])


def without_times_of_the_row(schedule: Schedule | None) -> Schedule:
    assert schedule is not None
    return replace(schedule, created_at=INSTANT, updated_at=INSTANT)


# --- what is stored


def test_nothing_is_known_of_a_job_without_a_schedule(store: Store) -> None:
    assert store.get_schedule(JOB) is None
    assert store.list_schedules() == []
    assert store.change_schedule(JOB, lambda stored, now: None) is None
    assert store.materialize_recurring_run(JOB, not_asked) is None
    store.keep_schedules_seen([JOB], SECOND)
    assert store.list_schedules() == []
    with pytest.raises(ScheduleError, match=JOB):
        store.run_schedule_now(JOB)


def test_every_field_comes_back_as_it_was_stored(store: Store) -> None:
    for fields in (
        {"cron_expression": "*/5 2-4 * * mon-fri", "time_zone": "America/Argentina/ComodRivadavia"},
        {"every": timedelta(days=3660), "enabled": False, "next_run_at": None},
        {"every": timedelta(seconds=1.001), "allow_concurrent_runs": True},
        {"cron_expression": "* " * 5 + "1," * 122 + "1", "payload": '{"to":"Zoë \\u0000 ☃"}', "application": "s" * 200},
        {"last_slot": INSTANT - HOUR, "orphaned_at": INSTANT + HOUR, "error_message": "Zoë\n" * 200},
    ):
        recurs = {} if {"cron_expression", "every"} & fields.keys() else {"cron_expression": "0 * * * *"}
        stored = Schedule(
            **{
                "job_name": JOB,
                "payload": None,
                "max_attempts": 2**31 - 1,
                "next_run_at": INSTANT,
                "seen_at": INSTANT - DAY,
                "created_at": INSTANT,
                "updated_at": INSTANT,
                **recurs,
                **fields,
            }
        )
        answered = store.change_schedule(JOB, lambda _, now, stored=stored: stored)
        for found in (answered, store.get_schedule(JOB), *store.list_schedules()):
            assert without_times_of_the_row(found) == stored


def test_a_change_is_told_what_is_stored_and_what_time_it_is(store: Store) -> None:
    told: list[tuple[Schedule | None, datetime]] = []

    def tell(stored: Schedule | None, now: datetime) -> None:
        told.append((stored, now))

    before = store.now()
    store.change_schedule(JOB, tell)
    made = make_schedule(store)
    store.change_schedule(JOB, tell)
    assert [stored for stored, _ in told] == [None, made]
    assert before <= told[0][1] <= made.created_at <= told[1][1] <= store.now()


def test_the_row_knows_when_it_was_made_and_when_it_was_changed(store: Store) -> None:
    made = make_schedule(store, created_at=INSTANT, updated_at=INSTANT)
    assert made.created_at <= made.updated_at < INSTANT
    altered = alter(store, payload="1")
    assert altered.created_at == made.created_at
    assert made.updated_at <= altered.updated_at <= store.now()


def test_a_change_that_raises_leaves_everything_as_it_was(store: Store) -> None:
    with pytest.raises(Boom):
        store.change_schedule(JOB, raise_boom)
    assert store.list_schedules() == []
    made = make_schedule(store)
    with pytest.raises(Boom):
        store.change_schedule(JOB, raise_boom)
    assert the_schedule(store) == made


def test_a_change_to_none_changes_nothing_and_answers_with_what_there_is(store: Store) -> None:
    made = make_schedule(store)
    assert store.change_schedule(JOB, lambda stored, now: None) == made
    assert the_schedule(store) == made


def test_schedules_are_listed_by_the_names_of_their_jobs(store: Store) -> None:
    for job_name in ("b", "a", "c"):
        make_schedule(store, job_name)
    assert [schedule.job_name for schedule in store.list_schedules()] == ["a", "b", "c"]


def test_names_that_differ_in_case_are_different_jobs(store: Store) -> None:
    make_schedule(store, "tidy", payload="1")
    make_schedule(store, "Tidy", payload="2")
    assert [the_schedule(store, job_name).payload for job_name in ("tidy", "Tidy")] == ["1", "2"]
    assert materialized(store, "tidy").payload == "1"
    assert materialized(store, "Tidy").payload == "2"


def test_many_who_store_a_new_schedule_at_once_store_one(store: Store) -> None:
    barrier = threading.Barrier(THREADS)

    def store_it(number: int) -> Schedule:
        barrier.wait(10)
        return make_schedule(store, payload=str(number))

    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(store_it, range(THREADS)))
    (stored,) = store.list_schedules()
    assert stored.payload in {answer.payload for answer in answers}
    assert {answer.created_at for answer in answers} == {stored.created_at}


def test_changes_at_once_are_made_one_after_the_other(store: Store) -> None:
    make_schedule(store, max_attempts=1)

    def one_more(stored: Schedule | None, now: datetime) -> Schedule:
        assert stored is not None
        return replace(stored, max_attempts=stored.max_attempts + 1)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda _: store.change_schedule(JOB, one_more), range(40)))
    assert the_schedule(store).max_attempts == 41


# --- what comes next


def test_what_comes_next_is_told_earliest_first_up_to_the_horizon(store: Store) -> None:
    now = store.now()
    for job_name, after in {"soon": 50 * SECOND, "late": 90 * SECOND, "due": -DAY, "b": SECOND, "a": SECOND}.items():
        make_schedule(store, job_name, next_run_at=now + after)
    make_schedule(store, "disabled", enabled=False, next_run_at=now)
    make_schedule(store, "never", next_run_at=None)
    names = ["never", "disabled", "b", "a", "late", "due", "soon", "unknown"]
    told_now, found = store.next_schedules(names, timedelta(minutes=1))
    assert [schedule.job_name for schedule in found] == ["due", "a", "b", "soon"]
    assert found == [the_schedule(store, schedule.job_name) for schedule in found]
    assert now <= told_now <= store.now()
    assert told_now.utcoffset() == timedelta(0)


def test_what_comes_next_is_told_of_the_jobs_asked_for_only(store: Store) -> None:
    for job_name in ("ours", "theirs"):
        make_schedule(store, job_name)
    for names in (["ours"], ("ours",), {"ours": 1}, {"ours", "unknown"}):
        assert [schedule.job_name for schedule in store.next_schedules(names, SECOND)[1]] == ["ours"]
    assert store.next_schedules([], DAY)[1] == []


# --- the run of a slot


def test_the_run_of_a_slot_has_what_the_schedule_says(store: Store) -> None:
    made = make_schedule(store, payload='{"to":"ada"}', max_attempts=7)
    run = materialized(store)
    slot = made.next_run_at
    (stored,) = all_runs(store).values()
    assert (stored.id, stored.job_name, stored.status) == (run.id, JOB, RunStatus.PENDING)
    assert (stored.payload, stored.max_attempts, stored.attempt) == ('{"to":"ada"}', 7, 0)
    assert (stored.slot, stored.scheduled_for, run.slot) == (slot, slot, slot)
    (leased,) = claim(store)
    assert (leased.id, leased.slot) == (run.id, slot)
    left = the_schedule(store)
    assert slot is not None
    assert (left.last_slot, left.next_run_at) == (slot, slot + HOUR)


def test_the_callback_is_told_the_stored_schedule_and_the_stores_time(store: Store) -> None:
    made = make_schedule(store)
    told: list[tuple[Schedule, datetime]] = []

    def tell(schedule: Schedule, now: datetime) -> None:
        told.append((schedule, now))

    before = store.now()
    assert store.materialize_recurring_run(JOB, tell) is None
    ((schedule, now),) = told
    assert schedule == made
    assert before <= now <= store.now()
    assert the_schedule(store) == made


def test_a_callback_that_raises_leaves_everything_as_it_was(store: Store) -> None:
    made = make_schedule(store)
    with pytest.raises(Boom):
        store.materialize_recurring_run(JOB, raise_boom)
    assert the_schedule(store) == made
    assert all_runs(store) == {}
    assert materialized(store).slot == made.next_run_at


def test_missed_slots_are_made_up_for_as_the_policy_says(store: Store) -> None:
    make_schedule(store, "each", allow_concurrent_runs=True)
    make_schedule(store, "latest", allow_concurrent_runs=True)
    first = the_schedule(store, "each").next_run_at
    assert first is not None
    assert [materialized(store, "each").slot for _ in range(3)] == [first, first + HOUR, first + 2 * HOUR]
    latest = store.materialize_recurring_run("latest", skip_missed)
    assert latest is not None
    assert latest.slot is not None
    assert latest.slot >= first + 2 * HOUR


def test_a_run_that_was_made_clears_the_error_of_the_schedule(store: Store) -> None:
    make_schedule(store, error_message="cannot be read")
    materialized(store)
    assert the_schedule(store).error_message is None


def test_a_disabled_schedule_makes_no_run_even_if_one_is_due(store: Store) -> None:
    make_schedule(store, enabled=False)
    assert store.materialize_recurring_run(JOB, not_asked) is None
    assert all_runs(store) == {}


def test_nothing_to_do_but_to_set_the_next_run_right(store: Store) -> None:
    made = make_schedule(store, last_slot=INSTANT)
    assert store.materialize_recurring_run(JOB, lambda *_: Slot(None, INSTANT + HOUR)) is None
    left = the_schedule(store)
    assert (left.last_slot, left.next_run_at) == (made.last_slot, INSTANT + HOUR)
    assert all_runs(store) == {}


# --- once


def test_a_slot_is_not_made_again_when_its_time_is_set_back_by_hand(store: Store) -> None:
    made = make_schedule(store, allow_concurrent_runs=True)
    runs = [materialized(store) for _ in range(3)]
    alter(store, next_run_at=made.next_run_at)
    for due in (catch_up, skip_missed):
        assert store.materialize_recurring_run(JOB, due) is None
    left = the_schedule(store)
    assert left.last_slot == runs[-1].slot
    assert left.next_run_at is not None
    assert left.next_run_at > store.now() - HOUR
    assert len(all_runs(store)) == 3


def test_a_slot_that_has_its_run_is_passed_over_even_if_the_schedule_forgot_it(store: Store) -> None:
    made = make_schedule(store, allow_concurrent_runs=True)
    first = materialized(store)
    alter(store, next_run_at=made.next_run_at, last_slot=None)
    assert store.materialize_recurring_run(JOB, catch_up) is None
    left = the_schedule(store)
    assert first.slot is not None
    assert (left.last_slot, left.next_run_at) == (first.slot, first.slot + HOUR)
    assert materialized(store).slot == first.slot + HOUR


def test_a_slot_does_not_come_back_when_its_run_was_pruned(store: Store) -> None:
    made = make_schedule(store)
    run = materialized(store)
    end_all(store)
    age_completion(store, run.id)
    assert store.prune_runs(HOUR, 100) == 1
    alter(store, next_run_at=made.next_run_at)
    assert store.materialize_recurring_run(JOB, catch_up) is None
    assert materialized(store).slot != run.slot


def test_two_jobs_have_runs_of_the_same_slot(store: Store) -> None:
    slots = [make_schedule(store, job_name).next_run_at for job_name in ("one", "other")]
    assert slots[0] == slots[1] == materialized(store, "one").slot == materialized(store, "other").slot


def seconds_due(store: Store, job_name: str, slots: int) -> list[datetime]:
    """A schedule with so many slots until its `seen_at`: see materializing_process."""
    end = store.now().replace(microsecond=0) - HOUR
    first = end - (slots - 1) * SECOND
    make_schedule(store, job_name, next_run_at=first, seen_at=end, allow_concurrent_runs=True)
    return [first + number * SECOND for number in range(slots)]


def test_threads_make_each_slot_once(store: Store) -> None:
    expected = {job_name: seconds_due(store, job_name, 60) for job_name in ("a", "b", "c")}
    orders = [["a", "b", "c"], ["c", "b", "a"]]
    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(lambda number: materialize_all(store, orders[number % 2]), range(THREADS)))
    check_each_slot_once(store, expected, [slot for answer in answers for slot in answer])


@on_databases
def test_processes_make_each_slot_once(place: Place, store: Store) -> None:
    expected = {job_name: seconds_due(store, job_name, 40) for job_name in ("a", "b", "c")}
    command = [sys.executable, str(MATERIALIZING_PROCESS), place.database_url or "", place.table_prefix, *expected]
    check_each_slot_once(
        store, expected, [datetime.fromisoformat(slot) for slot in words_of_processes(command, PROCESSES)]
    )


def check_each_slot_once(store: Store, expected: dict[str, list[datetime]], answered: list[datetime]) -> None:
    runs = all_runs(store).values()
    assert Counter(answered) == Counter(slot for slots in expected.values() for slot in slots)
    assert {
        name: sorted(run.slot for run in runs if run.job_name == name and run.slot) for name in expected
    } == expected
    for job_name, slots in expected.items():
        schedule = the_schedule(store, job_name)
        assert (schedule.last_slot, schedule.next_run_at) == (slots[-1], slots[-1] + SECOND)


# --- runs that may not overlap


def test_a_slot_waits_while_a_run_of_the_job_is_pending_or_leased_and_is_not_lost(store: Store) -> None:
    make_schedule(store)
    first = materialized(store)
    waiting = the_schedule(store)
    assert store.materialize_recurring_run(JOB, catch_up) is None
    lease = claim_one(store)
    assert store.materialize_recurring_run(JOB, catch_up) is None
    assert the_schedule(store) == waiting
    store.record([Succeeded(lease)])
    assert first.slot is not None
    assert materialized(store).slot == first.slot + HOUR


@pytest.mark.parametrize(
    "go_on",
    [
        lambda store, lease: store.record([Released(lease)]),
        lambda store, lease: store.record([failed(lease, 3600)]),
        lambda store, lease: store.record([failed(lease, 0)]),
        reclaimed_after_expiry,
        lambda store, lease: store.cancel_run(lease.run_id),
    ],
    ids=["released", "waits for its retry", "retried", "reclaimed", "asked to stop"],
)
def test_a_run_that_has_not_ended_holds_the_next_slot_up(store: Store, go_on: Callable[..., object]) -> None:
    make_schedule(store)
    materialized(store)
    go_on(store, claim_one(store))
    assert store.materialize_recurring_run(JOB, catch_up) is None
    assert store.run_schedule_now(JOB) is None
    assert len(active(store)) == 1


@pytest.mark.parametrize(
    "end",
    [
        lambda store, lease: store.record([failed(lease)]),
        lambda store, lease: (store.record([Released(lease)]), store.cancel_run(lease.run_id)),
    ],
    ids=["failed", "cancelled"],
)
def test_a_run_that_has_ended_lets_the_next_slot_pass(store: Store, end: Callable[..., object]) -> None:
    make_schedule(store)
    materialized(store)
    end(store, claim_one(store))
    materialized(store)


def test_a_run_that_was_requeued_holds_the_next_slot_up(store: Store) -> None:
    make_schedule(store)
    run = materialized(store)
    store.record([failed(claim_one(store))])
    again = store.requeue_run(run.id)
    assert store.materialize_recurring_run(JOB, catch_up) is None
    assert again is not None
    assert the_run(store, again).slot is None
    end_all(store)
    materialized(store)


def test_a_run_that_a_client_enqueued_holds_the_next_slot_up(store: Store) -> None:
    make_schedule(store)
    enqueue(store, recurring=True)
    assert store.materialize_recurring_run(JOB, catch_up) is None
    end_all(store)
    materialized(store)


def test_runs_of_other_jobs_hold_nothing_up(store: Store) -> None:
    make_schedule(store)
    make_schedule(store, "other")
    materialized(store, "other")
    enqueue(store, job_name="another", recurring=True)
    materialized(store)


def test_runs_that_may_overlap_do(store: Store) -> None:
    make_schedule(store, allow_concurrent_runs=True)
    materialized(store)
    claim_one(store)
    materialized(store)
    assert store.run_schedule_now(JOB) is not None
    assert len(active(store)) == 3


def test_the_next_run_is_set_right_although_a_run_is_active(store: Store) -> None:
    make_schedule(store)
    materialized(store)
    store.materialize_recurring_run(JOB, lambda *_: Slot(None, INSTANT))
    assert the_schedule(store).next_run_at == INSTANT


# --- run now


def test_a_run_now_stands_beside_the_slots(store: Store) -> None:
    made = make_schedule(store, payload='{"to":"ada"}', max_attempts=4)
    before = store.now()
    run_id = store.run_schedule_now(JOB)
    assert run_id is not None
    run = the_run(store, run_id)
    assert (run.job_name, run.payload, run.max_attempts, run.slot) == (JOB, '{"to":"ada"}', 4, None)
    assert before <= run.scheduled_for <= store.now()
    assert the_schedule(store) == made
    assert store.run_schedule_now(JOB) is None
    assert store.materialize_recurring_run(JOB, catch_up) is None
    end_all(store)
    assert materialized(store).slot == made.next_run_at
    assert store.run_schedule_now(JOB) is None


def test_a_disabled_schedule_can_be_run_now(store: Store) -> None:
    make_schedule(store, enabled=False, next_run_at=None)
    assert store.run_schedule_now(JOB) is not None


def test_whoever_is_at_it_two_runs_of_the_job_are_never_active(store: Store) -> None:
    make_schedule(store, cron_expression="* * * * * *", next_run_at=store.now().replace(microsecond=0) - HOUR)
    made: list[UUID] = []
    overlaps: list[list[UUID]] = []

    def ours(run_id: UUID | None) -> None:
        """It stays active until we cancel it: nobody else may make another meanwhile."""
        if run_id is None:
            return
        made.append(run_id)
        found = active(store)
        if found != [run_id]:
            overlaps.append(found)
        store.cancel_run(run_id)

    def materialize() -> None:
        run = store.materialize_recurring_run(JOB, catch_up)
        ours(run.id if run is not None else None)

    def run_now() -> None:
        ours(store.run_schedule_now(JOB))

    def go_on(make: Callable[[], None]) -> None:
        deadline = time.monotonic() + 30
        while len(made) < OVERLAP_TRIES and time.monotonic() < deadline:
            make()
            time.sleep(0.001)  # there are more threads than connections

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(go_on, [materialize, run_now] * (THREADS // 2)))
    assert overlaps == []
    assert len(made) >= OVERLAP_TRIES
    slots = [run.slot for run in all_runs(store).values() if run.slot is not None]
    assert len(slots) == len(set(slots))


# --- who has it in his code


def test_that_a_schedule_is_in_somebodys_code_is_written_only_when_it_is_news(store: Store) -> None:
    now = store.now()
    make_schedule(store, "old", seen_at=now - DAY)
    fresh = make_schedule(store, "fresh", seen_at=now - 5 * SECOND)
    theirs = make_schedule(store, "theirs", seen_at=now - DAY)
    store.keep_schedules_seen(["old", "fresh", "unknown"], HOUR)
    assert now <= the_schedule(store, "old").seen_at <= store.now()
    assert the_schedule(store, "fresh") == fresh
    assert the_schedule(store, "theirs") == theirs
    store.keep_schedules_seen([], HOUR)
    store.keep_schedules_seen({"fresh": None}, SECOND)
    assert the_schedule(store, "fresh").seen_at >= now


def test_all_that_is_done_with_schedules_at_once_gets_along(store: Store) -> None:
    names = [f"job-{number}" for number in range(30)]
    for job_name in names:
        make_schedule(store, job_name, allow_concurrent_runs=True)

    def say(order: int) -> None:
        for _ in range(25):
            store.keep_schedules_seen(names[::order], -DAY)

    def work(order: int) -> None:
        for job_name in names[::order]:
            alter(store, job_name, payload="1")
            store.materialize_recurring_run(job_name, catch_up)
            store.run_schedule_now(job_name)

    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(call, order) for call in (say, work, say) for order in (1, -1)]
        for future in futures:
            future.result(60)


# --- a row that somebody else has locked


@contextmanager
def schedule_locked(store: Store, job_name: str) -> Iterator[None]:
    """Somebody else is at this schedule, and does not come to an end."""
    locked, release = threading.Event(), threading.Event()

    def hold(stored: Schedule | None, now: datetime) -> None:
        locked.set()
        assert release.wait(60)

    with ThreadPoolExecutor(1) as pool:
        holding = pool.submit(store.change_schedule, job_name, hold)
        try:
            assert locked.wait(10)
            yield
        finally:
            release.set()
        holding.result(10)


@on_servers
def test_a_schedule_that_somebody_else_is_at_is_passed_over(store: Store) -> None:
    made = make_schedule(store, "locked")
    make_schedule(store, "free")
    with schedule_locked(store, "locked"):
        assert store.materialize_recurring_run("locked", not_asked) is None
        materialized(store, "free")
        assert {schedule.job_name for schedule in store.next_schedules(["locked", "free"], SECOND)[1]} >= {"locked"}
        assert store.get_schedule("locked") == made
        assert len(store.list_schedules()) == 2
    materialized(store, "locked")


# --- rows that somebody wrote by hand

SPOILT: dict[str, dict[str, Any]] = {
    "no cron expression": {"cron_expression": "garbage"},
    "a hostile cron expression": {"cron_expression": "\x1b[31m'; drop table x; -- \u202e"},
    "an unknown zone": {"time_zone": "Atlantis"},
    "a zone that is a path": {"time_zone": "../../etc/passwd"},
    "neither": {"cron_expression": None},
    "an interval of nothing": {"cron_expression": None, "every_seconds": 0.0},
    "a negative interval": {"cron_expression": None, "every_seconds": -5.0},
    "a tiny interval": {"cron_expression": None, "every_seconds": 1e-9},
    "an interval without end": {"cron_expression": None, "every_seconds": 1e300},
}


@on_databases
def test_schedules_that_cannot_be_read_say_why_and_disturb_no_others(store: Store) -> None:
    names = [*SPOILT, "fine"]
    for job_name in names:
        make_schedule(store, job_name)
    for job_name, columns in SPOILT.items():
        assignments = ", ".join(f"{column} = :{column}" for column in columns)
        change(store, f"update {{jobs}} set {assignments} where job_name = :job_name", job_name=job_name, **columns)
    assert len(store.list_schedules()) == len(names)
    assert len(store.next_schedules(names, SECOND)[1]) == len(names)
    for job_name in SPOILT:
        before = the_schedule(store, job_name)
        for due in (catch_up, skip_missed):
            with pytest.raises(ScheduleError):
                store.materialize_recurring_run(job_name, due)
        assert the_schedule(store, job_name) == before
        assert store.run_schedule_now(job_name) is not None, "it needs no cron expression"
        alter(store, job_name, error_message="cannot be read")
    materialized(store, "fine")


# --- at volume

RUNS = 10_000


def many_runs(job_name: str, *, recurring: bool, status: RunStatus) -> dict[str, Any]:
    return {"job_name": job_name, "recurring_job_name": job_name if recurring else None, "status": status.value}


@pytest.mark.parametrize("place", ["sqlite", "postgres", "mysql"], indirect=True)
def test_runs_of_other_jobs_and_of_the_past_are_not_read(place: Place, store: Store) -> None:
    """With statistics too: they let a database expect active runs of our job, which has none."""
    make_schedule(store)
    for fields in (
        many_runs("other", recurring=True, status=RunStatus.PENDING),
        many_runs(JOB, recurring=True, status=RunStatus.SUCCEEDED),
        many_runs("another", recurring=False, status=RunStatus.PENDING),
    ):
        insert_runs(place, store, RUNS, fields)
    for statistics in (False, True):
        if statistics:
            change(store, {"mysql": "analyze table {runs}", "sqlite": "analyze"}.get(place.provider, "analyze {runs}"))
        assert "recurring" in index_used(place, store, "RUNS_ACTIVE_SELECT", job_name=JOB, limit=1), statistics
        assert "_slot" in index_used(place, store, "RUN_OF_SLOT_SELECT", job_name=JOB, slot=INSTANT), statistics
    change(store, "delete from {runs}")  # or the invariants of all these rows would be looked at


def insert_runs(place: Place, store: Store, count: int, fields: dict[str, Any]) -> None:
    assert isinstance(store, SqlStore)
    now = store.now()
    statement = store.dialect.render(
        "",
        """
        insert into {runs} (
          id, job_name, status, scheduled_for_utc, attempt, max_attempts, created_at_utc, completed_at_utc,
          recurring_job_name, slot_utc
        )
        values (:id, :job_name, :status, :now, 0, 3, :now, :completed_at, :recurring_job_name, :slot)
        """,
        store.prefix,
    )
    ended = now if fields["status"] == RunStatus.SUCCEEDED else None
    for start in range(0, count, 5000):
        rows = [
            {"id": new_run_id(), "now": now, "completed_at": ended, "slot": INSTANT - number * SECOND, **fields}
            for number in range(start, start + 5000)
        ]
        with store._connections.transaction() as tx:
            tx.run_many(statement, [store.dialect.bind(row) for row in rows])


def index_used(place: Place, store: Store, name: str, **parameters: Any) -> str:
    """The index by which the database finds the rows of a statement; nothing if it reads all of them."""
    assert isinstance(store, SqlStore)
    explain = {"sqlite": "explain query plan", "postgres": "explain", "mysql": "explain format=json"}[place.provider]
    with store._connections.transaction() as tx:
        rows = tx.fetch(f"{explain} {store._sql[name]}", store.dialect.bind(parameters))
    plan = "\n".join(str(row) for row in rows)
    assert not re.search("seq scan|scan t|temp b-tree|sort", plan, re.IGNORECASE), plan
    found = re.search(
        {"mysql": r'"key": "(\w+)"'}.get(place.provider, r"using .*?(\w*[iu]x_durable\w+)"), plan, re.IGNORECASE
    )
    return found[1] if found else ""
