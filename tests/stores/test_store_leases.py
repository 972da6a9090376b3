"""Leases: renewed by whom they belong to, and by nobody else."""

from collections.abc import Callable
from datetime import timedelta
from uuid import uuid4

import pytest
from exam import (
    LEASE_DURATION,
    WORKER,
    age_lease,
    claim,
    claim_one,
    enqueue_and_claim,
    enqueue_many,
    failed,
    reclaimed_after_expiry,
    status,
    the_run,
)

from durablestack.runs import Cancelled, Lease, Outcome, Released, RunStatus, Succeeded
from durablestack.stores.contract import Extended, Store

NOBODY: frozenset[object] = frozenset()
OUTCOMES = {
    "succeeded": Succeeded,
    "failed": failed,
    "retried": lambda lease: failed(lease, 0),
    "cancelled": Cancelled,
    "released": Released,
}
every_outcome = pytest.mark.parametrize("outcome", OUTCOMES.values(), ids=OUTCOMES)


def test_a_lease_is_renewed_counted_from_now(store: Store) -> None:
    lease = enqueue_and_claim(store)
    before, hour = store.now(), timedelta(hours=1)
    assert store.extend_leases([lease], hour) == Extended(frozenset({lease.run_id}), frozenset())
    until = the_run(store, lease.run_id).lease_until
    assert until is not None
    assert before + hour <= until <= store.now() + hour


def test_a_lease_can_be_renewed_to_end_sooner(store: Store) -> None:
    lease = enqueue_and_claim(store)
    store.extend_leases([lease], timedelta(seconds=1.5))
    until = the_run(store, lease.run_id).lease_until
    assert until is not None
    assert until <= store.now() + timedelta(seconds=1.5)


def test_renewing_changes_nothing_else(store: Store) -> None:
    lease = enqueue_and_claim(store)
    before = the_run(store, lease.run_id)
    store.extend_leases([lease], timedelta(hours=1))
    after = the_run(store, lease.run_id)
    assert {field for field in before.__struct_fields__ if getattr(before, field) != getattr(after, field)} == {
        "lease_until"
    }


def test_many_leases_are_renewed_at_once(store: Store) -> None:
    ids = enqueue_many(store, 40)
    leases = [run.lease for run in claim(store)]
    assert store.extend_leases(leases, LEASE_DURATION).held == set(ids)
    age_lease(store, *ids)
    assert store.extend_leases(leases[::-1], LEASE_DURATION).held == set(ids)
    assert claim(store) == []


def test_renewing_no_leases_is_no_error(store: Store) -> None:
    assert store.extend_leases([], LEASE_DURATION) == Extended(frozenset(), frozenset())
    assert store.find_requests([]).cancel == set()
    assert store.record([]) == {}


def test_only_what_is_still_held_is_renewed(store: Store) -> None:
    ids = enqueue_many(store, 3)
    leases = [run.lease for run in claim(store)]
    store.record([Succeeded(leases[0])])
    unknown = Lease(uuid4(), leases[0].token, 1, WORKER)
    forged = Lease(ids[1], uuid4(), 1, WORKER)
    assert store.extend_leases([leases[0], forged, unknown, leases[2]], LEASE_DURATION).held == {ids[2]}


def test_an_expired_lease_that_nobody_reclaimed_is_renewed(store: Store) -> None:
    lease = enqueue_and_claim(store)
    age_lease(store, lease.run_id)
    assert store.extend_leases([lease], LEASE_DURATION).held == {lease.run_id}
    until = the_run(store, lease.run_id).lease_until
    assert until is not None
    assert until > store.now()
    assert claim(store) == []


def test_a_renewed_lease_does_not_expire_by_its_old_end(store: Store) -> None:
    lease = enqueue_and_claim(store)
    age_lease(store, lease.run_id)
    store.extend_leases([lease], LEASE_DURATION)
    assert claim(store) == []
    assert the_run(store, lease.run_id).lease == lease


def test_a_reclaimed_lease_is_not_renewed_by_its_former_holder(store: Store) -> None:
    stale = enqueue_and_claim(store)
    current = reclaimed_after_expiry(store, stale, worker_name="another")
    before = the_run(store, stale.run_id)
    assert store.extend_leases([stale], timedelta(hours=9)) == Extended(frozenset(), frozenset())
    assert the_run(store, stale.run_id) == before
    assert before.lease == current


def test_the_same_worker_name_is_no_proof(store: Store) -> None:
    stale = enqueue_and_claim(store)
    current = reclaimed_after_expiry(store, stale)
    assert current.worker_name == stale.worker_name
    assert store.extend_leases([stale], LEASE_DURATION).held == NOBODY
    assert store.record([Succeeded(stale)]) == {}
    assert the_run(store, stale.run_id).lease == current


@pytest.mark.parametrize("stale_first", [True, False])
def test_a_stale_lease_shown_beside_the_current_one_does_no_harm(store: Store, stale_first: bool) -> None:
    stale = enqueue_and_claim(store)
    current = reclaimed_after_expiry(store, stale)
    store.cancel_run(stale.run_id)
    age_lease(store, stale.run_id)
    shown = [stale, current] if stale_first else [current, stale]
    assert store.find_requests(shown).cancel == {current.run_id}
    only = frozenset({current.run_id})
    assert store.extend_leases(shown, LEASE_DURATION) == Extended(only, only)
    assert store.record([Succeeded(lease) for lease in shown]) == {current.run_id: RunStatus.SUCCEEDED}
    assert status(store, current.run_id) is RunStatus.SUCCEEDED


@every_outcome
def test_the_same_worker_name_and_the_same_attempt_are_no_proof(
    store: Store, outcome: Callable[[Lease], Outcome]
) -> None:
    stale = enqueue_and_claim(store)
    store.record([Released(stale)])
    current = claim_one(store)
    assert (current.worker_name, current.attempt) == (stale.worker_name, stale.attempt)
    before = the_run(store, stale.run_id)
    assert store.extend_leases([stale], timedelta(hours=9)).held == NOBODY
    store.record([outcome(stale)])
    assert the_run(store, stale.run_id) == before


@every_outcome
def test_a_zombie_cannot_overwrite_a_reclaimed_run(store: Store, outcome: Callable[[Lease], Outcome]) -> None:
    stale = enqueue_and_claim(store)
    reclaimed_after_expiry(store, stale)
    before, history = the_run(store, stale.run_id), store.get_attempts(stale.run_id)
    assert store.record([outcome(stale)]) == {}
    assert the_run(store, stale.run_id) == before
    assert store.get_attempts(stale.run_id) == history


@every_outcome
def test_a_zombie_cannot_overwrite_a_run_that_is_pending_again(
    store: Store, outcome: Callable[[Lease], Outcome]
) -> None:
    stale = enqueue_and_claim(store)
    age_lease(store, stale.run_id)
    claim(store, job_names=[])
    before = the_run(store, stale.run_id)
    assert before.status is RunStatus.PENDING
    assert store.record([outcome(stale)]) == {}
    assert store.extend_leases([stale], LEASE_DURATION).held == NOBODY
    assert the_run(store, stale.run_id) == before


@every_outcome
def test_a_zombie_cannot_overwrite_what_another_has_ended(store: Store, outcome: Callable[[Lease], Outcome]) -> None:
    stale = enqueue_and_claim(store)
    store.record([Succeeded(reclaimed_after_expiry(store, stale))])
    before = the_run(store, stale.run_id)
    assert store.record([outcome(stale)]) == {}
    assert the_run(store, stale.run_id) == before


@every_outcome
def test_an_expired_lease_that_nobody_reclaimed_may_be_recorded(
    store: Store, outcome: Callable[[Lease], Outcome]
) -> None:
    lease = enqueue_and_claim(store)
    age_lease(store, lease.run_id)
    recorded = store.record([outcome(lease)])
    assert recorded == {lease.run_id: status(store, lease.run_id)}
    assert recorded[lease.run_id] is not RunStatus.LEASED
    assert claim(store, job_names=[]) == []
    assert store.get_attempts(lease.run_id) == [] or store.get_attempts(lease.run_id)[-1].outcome != "expired"


@every_outcome
def test_a_forged_token_is_refused(store: Store, outcome: Callable[[Lease], Outcome]) -> None:
    lease = enqueue_and_claim(store)
    forged = Lease(lease.run_id, uuid4(), lease.attempt, lease.worker_name)
    before = the_run(store, lease.run_id)
    assert store.record([outcome(forged)]) == {}
    assert the_run(store, lease.run_id) == before


@every_outcome
def test_the_token_of_another_run_is_refused(store: Store, outcome: Callable[[Lease], Outcome]) -> None:
    mine, other = enqueue_and_claim(store), enqueue_and_claim(store)
    crossed = Lease(mine.run_id, other.token, mine.attempt, mine.worker_name)
    assert store.record([outcome(crossed)]) == {}
    assert {status(store, lease.run_id) for lease in (mine, other)} == {RunStatus.LEASED}


def test_the_outcome_of_an_unknown_run_is_refused(store: Store) -> None:
    assert store.record([Succeeded(Lease(uuid4(), uuid4(), 1, WORKER))]) == {}


def test_every_claim_of_a_run_has_another_token(store: Store) -> None:
    lease = enqueue_and_claim(store, max_attempts=5)
    tokens = {lease.token}
    for _ in range(3):
        lease = reclaimed_after_expiry(store, lease)
        tokens.add(lease.token)
    assert len(tokens) == 4
