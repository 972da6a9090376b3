"""An exchange in steps: what is waited for without a thread, and what becomes of it when the database goes away."""

import os
import select
import socket
import time
from uuid import uuid4

import pytest
from exam import (
    PROXIED_TIMEOUT_SECONDS,
    Place,
    age_lease,
    claim_one,
    enqueue,
    enqueue_and_claim,
    exchange_in_steps,
    failed,
    on_postgres,
    request,
    status,
    the_run,
)

from durablestack.errors import StoreUnavailable
from durablestack.runs import Outcome, Output, RunStatus, Succeeded
from durablestack.stores.contract import Claim, Exchanged, Store
from durablestack.stores.sql import SqlStore
from durablestack.stores.steps import Step, Steps, Wait
from proxy import TcpProxy, When

before_or_after = pytest.mark.parametrize("when", ["before", "after"])


def only_to_claim() -> Claim:
    return request(end_expired=False)


def taken_of(steps: Steps[object]) -> list[Step]:
    taken: list[Step] = []
    answer: object = None
    while True:
        try:
            taken.append(steps.send(answer))
        except StopIteration:
            return taken
        answer = taken[-1].here() if isinstance(taken[-1], Wait) else taken[-1]()


def steps_of(store: Store, outcomes: list[Outcome], claim: Claim) -> list[Step]:
    return taken_of(store.exchange_in_steps(outcomes, claim))


@on_postgres
def test_claims_and_plain_successes_need_no_thread(store: Store) -> None:
    lease, waiting = enqueue_and_claim(store), enqueue(store)
    steps = steps_of(store, [Succeeded(lease)], request(end_expired=False, looks_for_expired=True))
    assert steps
    assert all(isinstance(step, Wait) for step in steps)
    assert [status(store, run_id) for run_id in (lease.run_id, waiting)] == [RunStatus.SUCCEEDED, RunStatus.LEASED]


@on_postgres
def test_a_look_for_expired_leases_needs_no_thread(store: Store) -> None:
    steps = taken_of(store.look_for_expired())
    assert steps
    assert all(isinstance(step, Wait) for step in steps)


@on_postgres
@pytest.mark.parametrize(
    "what", ["an outcome that is no plain success", "leases that have expired are ended", "much was written"]
)
def test_what_has_to_be_looked_at_first_or_takes_long_to_say_is_a_call(store: Store, what: str) -> None:
    lease, waiting = enqueue_and_claim(store), enqueue(store)
    looks_for_expired = what.startswith("leases")
    outcome = failed(lease) if what.startswith("an outcome") else Succeeded(lease)
    if what.startswith("much"):
        outcome = Succeeded(lease, Output("x" * 1_100_000, None))
    (step,) = steps_of(store, [outcome], request(end_expired=looks_for_expired))
    assert not isinstance(step, Wait)
    assert status(store, waiting) is RunStatus.LEASED


@on_postgres
def test_where_no_connection_is_free_it_is_a_call_that_waits_for_one(place: Place, store: Store) -> None:
    enqueue(store)
    narrow = place.open(connections_max=1)
    assert isinstance(narrow, SqlStore)
    narrow.now()
    with narrow._connections.transaction():
        step = next(narrow.exchange_in_steps([], only_to_claim()))
    assert not isinstance(step, Wait)
    assert len(step().claimed.runs) == 1
    narrow.close()


@on_postgres
def test_what_does_not_fit_into_the_socket_at_once_is_written_all_the_same(
    store: Store, proxied: Store, proxy: TcpProxy
) -> None:
    proxy.slow_down(bytes_per_second=4_000_000)
    for connection in proxied._connections._ours()._pool._pool:  # type: ignore[attr-defined]
        with socket.socket(fileno=os.dup(connection.pgconn.socket)) as ours:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    leases = [enqueue_and_claim(store) for _ in range(5)]
    outcomes: list[Outcome] = [Succeeded(lease, Output("x" * 190_000, None)) for lease in leases]
    steps = steps_of(proxied, outcomes, only_to_claim())
    assert any(isinstance(step, Wait) and step.events & select.POLLOUT for step in steps)
    assert {status(store, lease.run_id) for lease in leases} == {RunStatus.SUCCEEDED}
    assert len(the_run(store, leases[-1].run_id).stdout_tail or "") == 190_000


# --- the database goes away


def uncertain(store: Store, outcomes: list[Outcome], claim: Claim) -> bool:
    with pytest.raises(StoreUnavailable) as caught:
        exchange_in_steps(store, outcomes, claim)
    return caught.value.uncertain


@on_postgres
@before_or_after
def test_one_whose_answer_was_lost_is_done_whole_or_not_at_all(
    store: Store, proxied: Store, proxy: TcpProxy, when: When
) -> None:
    lease, waiting, token = enqueue_and_claim(store), enqueue(store), uuid4()
    proxy.cut_commit(when, b"status = 'leased'")
    assert uncertain(proxied, [Succeeded(lease)], request(token=token, end_expired=False))
    done = when == "after"
    assert status(store, lease.run_id) is (RunStatus.SUCCEEDED if done else RunStatus.LEASED)
    assert proxied.release_claim(token) == ({waiting} if done else set())
    assert proxied.record([Succeeded(lease)]) == {lease.run_id: RunStatus.SUCCEEDED}
    assert claim_one(proxied).run_id == waiting


@on_postgres
def test_a_frozen_server_is_given_up_within_the_timeout_and_served_again_after(
    store: Store, proxied: Store, proxy: TcpProxy
) -> None:
    enqueue(store)
    proxy.freeze()
    began_at = time.monotonic()
    assert uncertain(proxied, [], only_to_claim())
    assert time.monotonic() - began_at < PROXIED_TIMEOUT_SECONDS + 0.7
    proxy.thaw()
    assert proxied.count_runs()


@on_postgres
def test_a_claim_is_uncertain_if_what_was_refused_beside_it_cannot_be_looked_at(
    store: Store, proxied: Store, proxy: TcpProxy
) -> None:
    stale = enqueue_and_claim(store)
    age_lease(store, stale.run_id)
    claim_one(store)
    waiting, token = enqueue(store), uuid4()
    steps = proxied.exchange_in_steps([Succeeded(stale)], request(token=token, end_expired=False))
    step = next(steps)
    while isinstance(step, Wait):
        step = steps.send(step.here())
    proxy.refuse()
    with pytest.raises(StoreUnavailable) as caught:
        step()
    assert caught.value.uncertain
    proxy.pass_through()
    assert proxied.release_claim(token) == {waiting}


@on_postgres
def test_a_statement_that_fails_leaves_nothing_and_a_connection_that_goes_on(store: Store) -> None:
    lease = enqueue_and_claim(store)
    zero = request(end_expired=False, batch_size=-1)
    with pytest.raises(Exception, match="LIMIT"):
        exchange_in_steps(store, [Succeeded(lease)], zero)
    assert the_run(store, lease.run_id).lease == lease
    again = exchange_in_steps(store, [Succeeded(lease)], only_to_claim())
    assert again == Exchanged({lease.run_id: RunStatus.SUCCEEDED}, again.claimed)
