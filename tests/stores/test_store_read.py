"""Looking: one run, lists, counts."""

from datetime import timedelta
from uuid import uuid4

import pytest
from exam import JOB, claim, enqueue, enqueue_many, failed, the_run

from durablestack.runs import RunStatus, Succeeded
from durablestack.stores.contract import Backlog, Store

HOUR = timedelta(hours=1)


def test_an_unknown_run_is_none_and_has_no_history(store: Store) -> None:
    assert store.get_run(uuid4()) is None
    assert store.get_attempts(uuid4()) == []


def test_every_instant_that_is_read_is_in_utc(store: Store) -> None:
    enqueue(store)
    (run,) = claim(store)
    store.record([failed(run.lease)])
    ended = the_run(store, run.id)
    (attempt,) = store.get_attempts(run.id)
    instants = [store.now(), ended.scheduled_for, ended.created_at, ended.started_at, ended.completed_at]
    for instant in [*instants, attempt.started_at, attempt.ended_at]:
        assert instant is not None
        assert instant.utcoffset() == timedelta(0)


def test_lists_begin_with_the_latest_enqueued(store: Store) -> None:
    ids = enqueue_many(store, 5)
    assert [run.id for run in store.list_runs(take=10)] == ids[::-1]
    assert [run.id for run in store.list_runs(take=2)] == ids[:-3:-1]
    assert store.list_runs(take=0) == []


def test_lists_are_narrowed_by_status_and_job(store: Store) -> None:
    mails = enqueue_many(store, 3)
    other = enqueue(store, job_name="other")
    (leased,) = claim(store, batch_size=1)
    assert leased.id == mails[0]
    assert [run.id for run in store.list_runs(take=9, status=RunStatus.PENDING)] == [other, mails[2], mails[1]]
    assert [run.id for run in store.list_runs(take=9, job_name=JOB)] == mails[::-1]
    assert [run.id for run in store.list_runs(take=9, status=RunStatus.LEASED, job_name=JOB)] == [mails[0]]
    assert store.list_runs(take=9, status=RunStatus.LEASED, job_name="other") == []
    assert store.list_runs(take=9, job_name="unknown") == store.list_runs(take=9, job_name="") == []


def test_lists_show_runs_whole(store: Store) -> None:
    run_id = enqueue(store, payload="{}")
    (leased,) = claim(store)
    assert store.list_runs(take=1) == [the_run(store, run_id)]
    store.record([failed(leased.lease)])
    assert store.list_runs(take=1, status=RunStatus.FAILED) == [the_run(store, run_id)]


def test_the_queue_is_listed_in_the_order_in_which_it_is_claimed(store: Store) -> None:
    now = store.now()
    ids = [enqueue(store, scheduled_for=now + hours * HOUR) for hours in (2, -1, 1, -2)]
    claimed = claim(store, batch_size=1)
    assert [run.id for run in claimed] == [ids[3]]
    assert [run.id for run in store.list_runs(take=9, due_first=True)] == [ids[1], ids[2], ids[0]]
    assert [run.id for run in store.list_runs(take=1, due_first=True)] == [ids[1]]


@pytest.mark.parametrize("ended", [0, 2])
def test_every_status_is_counted_also_those_that_nothing_has(store: Store, ended: int) -> None:
    enqueue_many(store, 4)
    leases = [run.lease for run in claim(store, batch_size=3)]
    store.record([Succeeded(lease) for lease in leases[:ended]])
    counts = store.count_runs()
    assert set(counts) == set(RunStatus)
    assert counts[RunStatus.PENDING] == 1
    assert counts[RunStatus.LEASED] == 3 - ended
    assert counts[RunStatus.SUCCEEDED] == ended
    assert counts[RunStatus.FAILED] == counts[RunStatus.CANCELLED] == 0


def test_what_is_due_is_counted_up_to_a_bound(store: Store) -> None:
    enqueue_many(store, 4)
    enqueue(store, job_name="other")
    enqueue(store, scheduled_for=store.now() + HOUR)
    assert store.measure_backlog([JOB], 100).due == 4
    assert store.measure_backlog([JOB], 3).due == 3
    assert store.measure_backlog([JOB, "other"], 100).due == 5
    claim(store, batch_size=1)
    assert store.measure_backlog([JOB], 100).due == 3


def test_the_backlog_is_what_is_due_and_how_long_the_first_has_waited(store: Store) -> None:
    assert store.measure_backlog([JOB], 100) == Backlog(0, None)
    enqueue(store, scheduled_for=store.now() + HOUR)
    assert store.measure_backlog([JOB], 100) == Backlog(0, None)
    enqueue(store, scheduled_for=store.now() - 3 * HOUR, job_name="other")
    enqueue(store, scheduled_for=store.now() - 2 * HOUR)
    enqueue_many(store, 2)
    backlog = store.measure_backlog([JOB], 2)
    assert backlog.due == 2
    assert backlog.oldest_due_for is not None
    assert 2 * HOUR <= backlog.oldest_due_for < 3 * HOUR
    assert store.measure_backlog([JOB, "other"], 100).due == 4
    assert store.measure_backlog([], 100) == Backlog(0, None)
    claim(store)
    assert store.measure_backlog([JOB], 100) == Backlog(0, None)
