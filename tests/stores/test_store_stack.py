"""Where the code of a run is: asked of its holder, answered by it alone."""

from datetime import timedelta

import pytest
from exam import (
    LEASE_DURATION,
    age_completion,
    change,
    claim_one,
    enqueue,
    enqueue_and_claim,
    enqueue_many,
    failed,
    on_sqlite,
    reclaimed_after_expiry,
    status,
)

from durablestack.errors import StoreError
from durablestack.ids import new_run_id
from durablestack.runs import Lease, RunStatus, Succeeded
from durablestack.stores.contract import Requests, Store

STACK = 'Thread 0x01 (most recent call first):\n  File "job.py", line 7 in wait'


def test_nobody_has_asked_for_a_stack(store: Store) -> None:
    lease = enqueue_and_claim(store)
    assert store.get_stack(lease.run_id) is None
    assert store.get_stack(new_run_id()) is None
    assert store.find_requests([lease]) == Requests()
    assert store.find_requests([]) == Requests()


def test_a_stack_is_asked_for_and_told(store: Store) -> None:
    lease = enqueue_and_claim(store)
    before = store.now()
    assert store.request_stack(lease.run_id)
    asked = store.get_stack(lease.run_id)
    assert asked is not None
    assert before <= asked.requested_at <= store.now()
    assert (asked.taken_at, asked.text) == (None, None)
    assert store.find_requests([lease]) == Requests(stack=frozenset({lease.run_id}))
    assert store.write_stack(lease, STACK)
    told = store.get_stack(lease.run_id)
    assert told is not None
    assert (told.requested_at, told.text) == (asked.requested_at, STACK)
    assert told.taken_at is not None
    assert asked.requested_at <= told.taken_at <= store.now()
    assert store.find_requests([lease]) == Requests(), "an answered request is none"


def test_a_stack_that_is_asked_for_again_is_told_again(store: Store) -> None:
    lease = enqueue_and_claim(store)
    for text in ("first", "second"):
        assert store.request_stack(lease.run_id)
        asked = store.get_stack(lease.run_id)
        assert asked is not None
        assert asked.text is None, "the answer to an earlier request is none to this one"
        assert store.find_requests([lease]).stack == {lease.run_id}
        assert store.write_stack(lease, text)
        told = store.get_stack(lease.run_id)
        assert told is not None
        assert told.text == text


def test_a_stack_may_be_told_unasked(store: Store) -> None:
    lease = enqueue_and_claim(store)
    assert store.write_stack(lease, STACK)
    told = store.get_stack(lease.run_id)
    assert told is not None
    assert told.text == STACK
    assert told.taken_at is not None
    assert abs(told.taken_at - told.requested_at) < timedelta(seconds=1)  # the clock goes on within a statement


@pytest.mark.parametrize("text", ["", "é🦕\n" * 10_000, "'; drop table runs; --\\"])
def test_a_stack_comes_back_as_it_was(store: Store, text: str) -> None:
    lease = enqueue_and_claim(store)
    assert store.write_stack(lease, text)
    told = store.get_stack(lease.run_id)
    assert told is not None
    assert told.text == text


def test_only_a_leased_run_has_a_stack_to_ask_for(store: Store) -> None:
    assert not store.request_stack(new_run_id())
    run_id = enqueue(store)
    assert not store.request_stack(run_id)
    lease = claim_one(store)
    store.record([failed(lease, 0)])
    assert not store.request_stack(run_id)
    store.record([Succeeded(claim_one(store))])
    assert not store.request_stack(run_id)
    assert store.get_stack(run_id) is None


def test_a_zombie_neither_hears_nor_answers(store: Store) -> None:
    stale = enqueue_and_claim(store)
    current = reclaimed_after_expiry(store, stale)
    store.request_stack(stale.run_id)
    assert store.find_requests([stale]) == Requests()
    assert not store.write_stack(stale, "of a zombie")
    assert not store.write_stack(Lease(new_run_id(), stale.token, 1, ""), "of nobody")
    assert store.find_requests([stale, current]).stack == {current.run_id}
    assert store.write_stack(current, STACK)


def test_a_run_that_has_ended_takes_no_stack_and_keeps_the_one_it_has(store: Store) -> None:
    lease = enqueue_and_claim(store)
    store.write_stack(lease, STACK)
    store.record([Succeeded(lease)])
    assert not store.write_stack(lease, "later")
    told = store.get_stack(lease.run_id)
    assert told is not None
    assert told.text == STACK


def test_requests_of_both_kinds_are_told_apart(store: Store) -> None:
    ids = enqueue_many(store, 4)
    leases = [claim_one(store, batch_size=1) for _ in ids]
    for run_id in (ids[0], ids[1]):
        store.cancel_run(run_id)
    for run_id in (ids[1], ids[2]):
        store.request_stack(run_id)
    assert store.find_requests(leases) == Requests(frozenset(ids[:2]), frozenset(ids[1:3]))
    assert store.find_requests(leases[2:]) == Requests(frozenset(), frozenset(ids[2:3]))
    assert store.extend_leases(leases, LEASE_DURATION).cancel_requested == set(ids[:2])


def test_a_request_costs_the_run_nothing(store: Store) -> None:
    lease = enqueue_and_claim(store)
    before = store.get_run(lease.run_id)
    store.request_stack(lease.run_id)
    store.write_stack(lease, STACK)
    assert store.get_run(lease.run_id) == before
    assert store.record([Succeeded(lease)]) == {lease.run_id: RunStatus.SUCCEEDED}


def test_a_requeued_run_has_no_stack(store: Store) -> None:
    lease = enqueue_and_claim(store)
    store.write_stack(lease, STACK)
    store.record([failed(lease)])
    new_id = store.requeue_run(lease.run_id)
    assert new_id is not None
    assert store.get_stack(new_id) is None


def test_a_pruned_run_has_no_stack(store: Store) -> None:
    lease = enqueue_and_claim(store)
    store.write_stack(lease, STACK)
    store.record([Succeeded(lease)])
    age_completion(store, lease.run_id)
    assert store.prune_runs(LEASE_DURATION, 10) == 1
    assert store.get_stack(lease.run_id) is None


@on_sqlite
def test_a_stack_that_cannot_be_read_is_told_as_that(store: Store) -> None:
    lease = enqueue_and_claim(store)
    change(store, "update {runs} set stack_requested_at_utc = 'soon' where id = :id", id=lease.run_id)
    with pytest.raises(StoreError, match="cannot be read"):
        store.get_stack(lease.run_id)
    assert status(store, lease.run_id) is RunStatus.LEASED
