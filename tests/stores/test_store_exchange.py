"""Outcomes and a claim in one transaction: both or neither, and no run in both."""

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import pytest
from exam import (
    JOB,
    age_lease,
    claim,
    claim_one,
    claimed,
    enqueue,
    enqueue_and_claim,
    enqueue_many,
    exchange_in_steps,
    failed,
    on_databases,
    outcomes,
    request,
    status,
    the_run,
)

from durablestack.errors import StoreError
from durablestack.runs import Cancelled, Lease, Outcome, Released, RunStatus, Succeeded
from durablestack.stores.contract import Claim, Claimed, Exchanged, Store

Exchange = Callable[[Store, Sequence[Outcome], Claim], Exchanged]

NOTHING = Claimed([], [])
UNWRITABLE = "a lone surrogate \ud800"


@pytest.fixture(params=["in one go", "in steps"])
def exchange(request: pytest.FixtureRequest) -> Exchange:
    return exchange_in_steps if request.param == "in steps" else lambda store, *asked: store.exchange(*asked)


def test_outcomes_are_recorded_and_runs_are_claimed(store: Store, exchange: Exchange) -> None:
    lease, waiting, token = enqueue_and_claim(store), enqueue(store), uuid4()
    exchanged = exchange(store, [Succeeded(lease)], request(token=token, end_expired=False))
    assert exchanged.recorded == {lease.run_id: RunStatus.SUCCEEDED}
    (run,) = exchanged.claimed.runs
    assert (run.id, run.lease_token, run.attempt) == (waiting, token, 1)
    assert (status(store, lease.run_id), the_run(store, waiting).lease) == (RunStatus.SUCCEEDED, run.lease)
    assert exchanged.claimed.passed_over == 0


def test_what_is_exchanged_for_nothing_is_what_either_half_answers(store: Store, exchange: Exchange) -> None:
    assert exchange(store, [], request()) == Exchanged({}, NOTHING)
    lease = enqueue_and_claim(store)
    assert exchange(store, [Succeeded(lease)], request()) == Exchanged({lease.run_id: RunStatus.SUCCEEDED}, NOTHING)


def test_to_warm_up_changes_nothing_and_hides_nothing_that_is_due(store: Store, exchange: Exchange) -> None:
    leased, due = enqueue_and_claim(store), enqueue(store)
    before = [store.get_run(leased.run_id), store.get_run(due)]
    with ThreadPoolExecutor(2) as threads:
        for warmed_up in [threads.submit(store.warm_up) for _ in range(2)]:
            warmed_up.result()
    assert [store.get_run(leased.run_id), store.get_run(due)] == before
    assert [run.id for run in exchange(store, [Succeeded(leased)], request(end_expired=False)).claimed.runs] == [due]


def test_all_kinds_of_outcomes_are_exchanged_at_once(store: Store, exchange: Exchange) -> None:
    enqueue_many(store, 6)
    leases = [run.lease for run in claim(store)]
    kinds: list[Callable[[Lease], Outcome]] = [
        Succeeded, failed, lambda lease: failed(lease, 60), Cancelled, Released, Succeeded
    ]  # fmt: skip
    store.cancel_run(leases[5].run_id)
    more = enqueue_many(store, 3)
    exchanged = exchange(store, [kind(lease) for kind, lease in zip(kinds, leases, strict=True)], request())
    assert [exchanged.recorded[lease.run_id].value for lease in leases] == [
        "succeeded", "failed", "pending", "cancelled", "pending", "succeeded"
    ]  # fmt: skip
    assert [run.id for run in exchanged.claimed.runs] == more


@pytest.mark.parametrize("outcome", [Released, lambda lease: failed(lease, 0)], ids=["released", "retried"])
def test_a_run_that_is_due_again_by_its_outcome_waits_for_the_next_claim(
    store: Store, exchange: Exchange, outcome: Callable[[Lease], Outcome]
) -> None:
    lease = enqueue_and_claim(store)
    exchanged = exchange(store, [outcome(lease)], request())
    assert exchanged == Exchanged({lease.run_id: RunStatus.PENDING}, Claimed([], [], passed_over=1))
    assert exchange(store, [outcome(lease)], request()) == exchanged  # said again, since the answer was lost
    again = claim_one(store)
    assert (again.run_id, again.attempt) == (lease.run_id, the_run(store, lease.run_id).attempt)
    assert exchange(store, [Succeeded(lease)], request()) == Exchanged({lease.run_id: RunStatus.LEASED}, NOTHING)
    assert store.record([Succeeded(again)]) == {lease.run_id: RunStatus.SUCCEEDED}


def test_an_outcome_that_comes_after_its_lease_has_run_out_is_still_the_outcome(
    store: Store, exchange: Exchange
) -> None:
    late, gone = enqueue_and_claim(store), enqueue_and_claim(store)
    age_lease(store, late.run_id, gone.run_id)
    exchanged = exchange(store, [Succeeded(late)], request())
    assert exchanged.recorded == {late.run_id: RunStatus.SUCCEEDED}
    assert [expired.run_id for expired in exchanged.claimed.expired] == [gone.run_id]
    assert [run.id for run in exchanged.claimed.runs] == [gone.run_id]  # its end is nobody's outcome


def test_a_stale_outcome_is_refused_and_the_claim_is_made_all_the_same(store: Store, exchange: Exchange) -> None:
    stale = enqueue_and_claim(store)
    age_lease(store, stale.run_id)
    current, waiting = claim_one(store), enqueue(store)
    exchanged = exchange(store, [Succeeded(stale)], request(end_expired=False))
    assert exchanged.recorded == {}
    assert [run.id for run in exchanged.claimed.runs] == [waiting]
    assert the_run(store, stale.run_id).lease == current


@on_databases
@pytest.mark.parametrize("outcome", [Succeeded, failed, Released], ids=["succeeded", "failed", "released"])
def test_a_claim_that_fails_leaves_no_outcome_either(
    store: Store, exchange: Exchange, outcome: Callable[[Lease], Outcome]
) -> None:
    lease, waiting = enqueue_and_claim(store), enqueue(store)
    with pytest.raises(StoreError, match="not cleaned"):
        exchange(store, [outcome(lease)], request(worker_name=UNWRITABLE, end_expired=False))
    assert the_run(store, lease.run_id).lease == lease
    assert (status(store, waiting), outcomes(store, lease.run_id)) == (RunStatus.PENDING, [])
    assert exchange(store, [outcome(lease)], request(batch_size=1)).recorded.keys() == {lease.run_id}


@on_databases
def test_an_outcome_that_cannot_be_written_leaves_no_lease_either(store: Store, exchange: Exchange) -> None:
    sound, broken = enqueue_and_claim(store), enqueue_and_claim(store)
    waiting = enqueue(store)
    unwritable = Cancelled(broken)
    unwritable = type(unwritable)(broken, type(unwritable.output)(UNWRITABLE, None))
    with pytest.raises(StoreError, match="not cleaned"):
        exchange(store, [Succeeded(sound), unwritable], request())
    assert the_run(store, sound.run_id).lease == sound
    assert status(store, waiting) is RunStatus.PENDING


# --- what cannot wait


class Asked:
    """Claims of runs of two jobs, of which those of one may wait."""

    def __init__(self, store: Store, *, end_expired: bool) -> None:
        self._store, self._end_expired = store, end_expired

    def claimed(self, begin_max: int | None = None, may_wait: Collection[str] = (JOB,), **options: Any) -> Claimed:
        options = {"job_names": [JOB, "other"], "end_expired": self._end_expired, **options}
        return claimed(self._store, begin_max=begin_max, may_wait=may_wait, **options)

    def claim(self, begin_max: int | None = None, **options: Any) -> list[UUID]:
        return [run.id for run in self.claimed(begin_max, **options).runs]


@pytest.fixture(params=[True, False], ids=["which ends the expired", "which does not"])
def asked(request: pytest.FixtureRequest, store: Store) -> Asked:
    return Asked(store, end_expired=request.param)


def test_of_runs_that_cannot_wait_no_more_are_claimed_than_were_asked_for(store: Store, asked: Asked) -> None:
    of_others = enqueue_many(store, 3, job_name="other")
    may_wait = enqueue_many(store, 2)
    answer = asked.claimed(1)
    assert [run.id for run in answer.runs] == [of_others[0], *may_wait]
    assert answer.passed_over == 2
    for left in of_others[1:]:
        run = the_run(store, left)
        assert (run.status, run.attempt, run.lease_token) == (RunStatus.PENDING, 0, None)
    assert asked.claim(5) == of_others[1:]


def test_where_nothing_may_wait_each_run_counts(store: Store, asked: Asked) -> None:
    ids = enqueue_many(store, 3)
    answer = asked.claimed(2, may_wait=())
    assert ([run.id for run in answer.runs], answer.passed_over) == (ids[:2], 1)


def test_a_last_attempt_cannot_wait_whatever_its_job(store: Store, asked: Asked) -> None:
    last = enqueue_many(store, 3, max_attempts=1)
    others = enqueue_many(store, 2, max_attempts=2)
    of_others = enqueue(store, job_name="other")
    answer = asked.claimed(1)
    assert [run.id for run in answer.runs] == [last[0], *others]
    assert answer.passed_over == 3
    assert asked.claim(3) == [*last[1:], of_others]


def test_a_last_attempt_is_the_last_of_several_too(store: Store, asked: Asked) -> None:
    lease = enqueue_and_claim(store, max_attempts=2)
    store.record([failed(lease, 0)])
    assert asked.claimed(0) == Claimed([], [], passed_over=1)
    assert asked.claim(1) == [lease.run_id]


def test_what_cannot_wait_is_counted_within_the_batch(store: Store, asked: Asked) -> None:
    enqueue_many(store, 3, max_attempts=1)
    other = enqueue(store, max_attempts=2)
    assert asked.claimed(0, batch_size=2) == Claimed([], [], passed_over=2)
    assert asked.claim(0, batch_size=4) == [other]


def test_a_claim_that_says_nothing_of_what_cannot_wait_takes_all(store: Store, asked: Asked) -> None:
    ids = [*enqueue_many(store, 2, max_attempts=1), enqueue(store, job_name="other"), enqueue(store)]
    answer = asked.claimed(may_wait=())
    assert ([run.id for run in answer.runs], answer.passed_over) == (ids, 0)


# --- several at once


def test_those_who_exchange_at_once_get_each_run_once(store: Store, exchange: Exchange) -> None:
    ids = set(enqueue_many(store, 300))

    def drained() -> list[Lease]:
        taken: list[Lease] = []
        ended: list[Outcome] = []
        while True:
            exchanged = exchange(store, ended, request(batch_size=7, end_expired=False))
            assert exchanged.recorded == {outcome.lease.run_id: RunStatus.SUCCEEDED for outcome in ended}
            ended = [Succeeded(run.lease) for run in exchanged.claimed.runs]
            taken += [run.lease for run in exchanged.claimed.runs]
            if not ended:
                return taken

    with ThreadPoolExecutor(4) as pool:
        leases = [lease for taken in pool.map(lambda _: drained(), range(4)) for lease in taken]
    assert sorted(lease.run_id for lease in leases) == sorted(ids)
    assert store.count_runs()[RunStatus.SUCCEEDED] == 300
