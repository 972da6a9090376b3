"""Reading runs through `RunQueries`."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from queue_jobs import Bill, tidy

from durablestack import DurableStack, RunStatus, StoreError
from durablestack.queries import TAKE_MAX


def test_a_run_that_is_not_there_is_none(stack: DurableStack) -> None:
    assert stack.queries.get_run(uuid4()) is None
    assert stack.queries.get_attempts(uuid4()) == []
    assert stack.queries.get_recent_runs() == []


def test_the_latest_come_first_and_no_more_than_asked_for(stack: DurableStack) -> None:
    ids = stack.client.enqueue_many(Bill, range(60))
    assert [run.id for run in stack.queries.get_recent_runs()] == ids[:-51:-1]
    assert [run.id for run in stack.queries.get_recent_runs(take=1)] == ids[-1:]
    assert len(stack.queries.get_recent_runs(TAKE_MAX)) == 60


@pytest.mark.parametrize("status", [RunStatus.CANCELLED, "cancelled"])
def test_runs_are_found_by_status_in_either_spelling(stack: DurableStack, status: Any) -> None:
    cancelled, pending = stack.client.enqueue(tidy), stack.client.enqueue(tidy)
    stack.client.cancel_run(cancelled)
    assert [run.id for run in stack.queries.get_runs_by_status(status)] == [cancelled]
    assert [run.id for run in stack.queries.get_runs_by_status("pending")] == [pending]
    assert stack.queries.get_runs_by_status("leased") == []


def test_runs_are_found_by_the_name_of_their_job(stack: DurableStack) -> None:
    bill, _ = stack.client.enqueue(Bill, 1), stack.client.enqueue(tidy)
    assert [run.id for run in stack.queries.get_runs_by_job_name("Bill")] == [bill]
    assert stack.queries.get_runs_by_job_name("nobody") == []


def test_those_that_wait_are_told_in_the_order_in_which_they_are_due(stack: DurableStack) -> None:
    now = stack.store.now()
    later = stack.client.schedule(tidy, run_at=now + timedelta(hours=2))
    sooner = stack.client.schedule(tidy, run_at=now + timedelta(hours=1))
    gone = stack.client.enqueue(tidy)
    stack.client.cancel_run(gone)
    due = stack.client.enqueue(tidy)
    assert [run.id for run in stack.queries.get_enqueued_runs()] == [due, sooner, later]
    assert [run.id for run in stack.queries.get_enqueued_runs(take=1)] == [due]


def test_runs_are_counted_by_status_and_those_due_by_job(stack: DurableStack) -> None:
    stack.client.enqueue_many(Bill, range(3))
    stack.client.schedule(tidy, run_at=stack.store.now() + timedelta(hours=1))
    stack.client.cancel_run(stack.client.enqueue(tidy))
    counts = stack.queries.count_runs()
    assert (counts[RunStatus.PENDING], counts[RunStatus.CANCELLED]) == (4, 1)
    assert stack.queries.count_due(["Bill", "tidy"]) == 3
    assert stack.queries.count_due(["tidy"]) == 0
    assert stack.queries.count_due(["Bill"], count_max=2) == 2
    assert stack.queries.count_due([]) == 0


@pytest.mark.parametrize("take", [0, -1, TAKE_MAX + 1])
def test_a_take_out_of_bounds_is_refused(stack: DurableStack, take: int) -> None:
    queries = stack.queries
    for ask in (
        lambda: queries.get_recent_runs(take),
        lambda: queries.get_runs_by_status("pending", take),
        lambda: queries.get_runs_by_job_name("Bill", take),
        lambda: queries.get_enqueued_runs(take),
    ):
        with pytest.raises(StoreError, match=f"take is {take}; it must be 1 to 1000"):
            ask()


@pytest.mark.parametrize("status", ["done", "", "PENDING", None, 5])
def test_a_status_that_does_not_exist_is_refused_with_those_that_do(memory_stack: DurableStack, status: Any) -> None:
    with pytest.raises(StoreError) as refused:
        memory_stack.queries.get_runs_by_status(status)
    assert str(refused.value) == (
        f"status {status!r} is unknown; there are: pending, leased, succeeded, failed, cancelled"
    )
