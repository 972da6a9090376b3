"""Where claims begin to look, while an old snapshot keeps the entries of what is done before all that is due."""

from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import Any

import pytest
from exam import JOB, Place, change, claim, enqueue, enqueue_many, on_databases, on_examined_servers, query

from durablestack.ids import new_run_id
from durablestack.runs import Released
from durablestack.stores.contract import Store
from durablestack.stores.low_water import MARK_SECONDS_MAX, LowWater, Mark
from durablestack.stores.sql import SqlStore

LONG, SHORT = 0.1, 0.0001
DOUBLINGS = 7


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def found(*seconds: float) -> list[tuple[Any, ...]]:
    """Rows as a claim selects them, each with the time until it was found."""
    return [(new_run_id(), JOB, None, number, each) for number, each in enumerate(seconds)]


def looked_back(low_water: LowWater, *looks: list[tuple[Any, ...]]) -> None:
    for rows in looks:
        low_water.found(rows, from_beginning=True)


# --- when there is a mark


def test_as_long_as_walks_are_short_claims_look_from_the_beginning() -> None:
    low_water = LowWater(Clock())
    looked_back(low_water, *[found(SHORT, SHORT)] * 100)
    assert low_water.mark() is None


def test_one_long_walk_is_no_reason_for_a_mark_and_two_in_a_row_are() -> None:
    low_water = LowWater(Clock())
    looked_back(low_water, found(LONG), found(SHORT), found(LONG))
    assert low_water.mark() is None
    rows = found(SHORT, LONG)
    looked_back(low_water, rows)
    mark = low_water.mark()
    assert mark is not None
    assert (mark.scheduled_for, mark.id) == (rows[0][3], rows[0][0])


def test_many_runs_at_once_are_no_long_walk() -> None:
    low_water = LowWater(Clock())
    looked_back(low_water, *[found(SHORT, *[0.004] * 499)] * 3)
    assert low_water.mark() is None


def test_a_walk_to_the_first_of_many_runs_is_one_all_the_same() -> None:
    low_water = LowWater(Clock())
    looked_back(low_water, *[found(*[0.004] * 500)] * 2)
    assert low_water.mark() is not None


def test_a_mark_moves_with_what_is_found_from_it() -> None:
    low_water = LowWater(Clock())
    looked_back(low_water, found(LONG), found(LONG))
    rows = found(SHORT)
    low_water.found(rows, from_beginning=False)
    low_water.found([], from_beginning=False)
    mark = low_water.mark()
    assert mark is not None
    assert mark.id == rows[0][0]


@pytest.mark.parametrize(("walk_seconds", "lasts_seconds"), [(0.01, 0.2), (0.1, 2.0), (10.0, MARK_SECONDS_MAX)])
def test_a_mark_lasts_for_a_multiple_of_the_walk_that_it_saves(walk_seconds: float, lasts_seconds: float) -> None:
    clock = Clock()
    low_water = LowWater(clock)
    looked_back(low_water, found(walk_seconds), found(walk_seconds))
    clock.seconds = lasts_seconds * 0.99
    assert low_water.mark() is not None
    clock.seconds = lasts_seconds * 1.01
    assert low_water.mark() is None


def test_a_look_from_the_beginning_that_finds_nothing_keeps_the_mark_and_a_short_walk_removes_it() -> None:
    clock = Clock()
    low_water = LowWater(clock)
    looked_back(low_water, found(LONG), found(LONG))
    clock.seconds = 3.0
    looked_back(low_water, [])
    assert low_water.mark() is not None
    clock.seconds = 6.0
    looked_back(low_water, found(SHORT))
    assert low_water.mark() is None


# --- what claims make of it


@pytest.fixture
def clock(store: Store) -> Clock:
    """The clock by which the marks of the store last."""
    clock = Clock()
    assert isinstance(store, SqlStore)
    store._low_water = lru_cache(lambda job_names: LowWater(clock))
    return clock


def set_mark(store: Store, job_names: Collection[str] = (JOB,)) -> None:
    """As if the walk to the first run that is due had been long, twice."""
    assert isinstance(store, SqlStore)
    due = "select scheduled_for_utc, id from {runs} where status = 'pending' order by scheduled_for_utc, id {limit}"
    ((scheduled_for, id),) = query(store, due, limit=1)
    low_water = store._low_water(frozenset(job_names))
    looked_back(low_water, *[[(id, JOB, None, scheduled_for, 60.0)]] * 2)
    assert low_water.mark() is not None


@on_databases
def test_from_a_mark_runs_are_claimed_in_their_order(store: Store, clock: Clock) -> None:
    now = store.now()
    due = [now - timedelta(seconds=seconds) for seconds in (5, 5, 5, 4, 3, 3)]
    for each in due:
        enqueue(store, scheduled_for=each)
    later = enqueue(store, scheduled_for=now + timedelta(hours=1))
    set_mark(store)
    claimed = [run for _ in range(4) for run in claim(store, batch_size=2)]
    assert [(run.scheduled_for, run.id) for run in claimed] == sorted((run.scheduled_for, run.id) for run in claimed)
    assert len(claimed) == len(due)
    assert later not in {run.id for run in claimed}


@on_databases
def test_what_comes_to_lie_before_the_mark_is_found_within_seconds(store: Store, clock: Clock) -> None:
    enqueue_many(store, 2)
    set_mark(store)
    claim(store, batch_size=1)
    late = enqueue(store, scheduled_for=store.now() - timedelta(days=2))
    assert late not in {run.id for run in claim(store)}
    clock.seconds += MARK_SECONDS_MAX
    assert [run.id for run in claim(store)] == [late]


@on_databases
def test_what_is_given_back_here_is_found_at_once(store: Store, clock: Clock) -> None:
    first, *_ = enqueue_many(store, 5)
    (given,) = claim(store, batch_size=1)
    set_mark(store)
    store.record([Released(given.lease)])
    assert [run.id for run in claim(store, batch_size=1)] == [first]


@on_databases
def test_what_has_expired_here_is_found_at_once_also_by_claims_for_other_jobs(store: Store, clock: Clock) -> None:
    first, second, *_ = enqueue_many(store, 5)
    claim(store, batch_size=2)
    set_mark(store)
    set_mark(store, job_names=(JOB, "other"))
    change(store, "update {runs} set lease_until_utc = created_at_utc where status = 'leased'")
    assert [run.id for run in claim(store, batch_size=1)] == [first]
    assert [run.id for run in claim(store, batch_size=1, job_names=[JOB, "other"])] == [second]


@on_databases
def test_the_first_run_made_due_before_the_mark_is_claimed_before_all_others_again(store: Store, clock: Clock) -> None:
    ids = enqueue_many(store, 10)
    set_mark(store)
    yesterday = store.now() - timedelta(days=1)
    change(store, "update {runs} set scheduled_for_utc = :yesterday where id = :id", yesterday=yesterday, id=ids[-1])
    assert claim(store, batch_size=3)[0].id == ids[0]
    clock.seconds += MARK_SECONDS_MAX
    assert claim(store, batch_size=3)[0].id == ids[-1]


# --- the databases

NEW_ID = {"postgres": "gen_random_uuid()", "mysql": "unhex(replace(uuid(), '-', ''))"}
DOUBLE = """
insert into {runs} (id, job_name, status, scheduled_for_utc, attempt, max_attempts, created_at_utc)
select {new_id}, job_name, status, scheduled_for_utc, attempt, max_attempts, created_at_utc from {runs}
"""
END = "update {runs} set status = 'cancelled', completed_at_utc = created_at_utc"


@on_examined_servers
@pytest.mark.parametrize("ended", [True, False], ids=["ended under an old snapshot", "of jobs of others"])
def test_claims_step_over_what_they_cannot_take_and_what_an_old_snapshot_keeps(place: Place, ended: bool) -> None:
    """Many runs lie before all that is due and ours."""
    store = place.open(timeout_seconds=60)
    assert isinstance(store, SqlStore)
    store.migrate()
    enqueue_many(store, 1_000, job_name=JOB if ended else "somebody_elses")
    with closing(place.connect(autocommit=True)) as connection, old_snapshot(place) as keep:
        cursor = connection.cursor()
        for _ in range(DOUBLINGS):
            cursor.execute(DOUBLE.format(runs=place.runs, new_id=NEW_ID[place.provider]))
        if ended:
            keep()
            cursor.execute(END.format(runs=place.runs))
        enqueue_many(store, 100)
        assert [len(claim(store, batch_size=20)) for _ in range(3)] == [20] * 3
        mark = store._low_water(frozenset([JOB])).mark()
        assert mark is not None
        asked = {"job_names": [JOB], "limit": 20}
        with store._read() as tx:
            from_beginning = [tx.fetch("RUNS_DUE_SELECT", **asked) for _ in range(3)]
            from_mark = [tx.fetch("RUNS_DUE_FROM_MARK_SELECT", **asked, **mark_parameters(mark)) for _ in range(3)]
    store.close()
    assert [row[:-1] for row in from_mark[0]] == [row[:-1] for row in from_beginning[0]]
    assert min(map(walk_seconds, from_mark)) < min(map(walk_seconds, from_beginning)) / 2


@contextmanager
def old_snapshot(place: Place) -> Iterator[Callable[[], None]]:
    """A transaction that keeps, from when it is told to, what it could read."""
    with closing(place.connect()) as connection:
        cursor = connection.cursor()

        def keep() -> None:
            cursor.execute("set transaction isolation level repeatable read")
            cursor.execute(f"select id from {place.runs} limit 1")

        yield keep


def mark_parameters(mark: Mark) -> dict[str, Any]:
    return {"mark_scheduled_for": mark.scheduled_for, "mark_id": mark.id}


def walk_seconds(rows: list[tuple[Any, ...]]) -> float:
    return float(rows[-1][-1])
