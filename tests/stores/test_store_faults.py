"""The database goes away at the worst moment: at the commit, before it, or silently."""

import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from exam import (
    DEFAULT_PORTS,
    LEASE_DURATION,
    PROXIED_TIMEOUT_SECONDS,
    Place,
    all_runs,
    claim,
    claim_one,
    claimed,
    enqueue,
    enqueue_and_claim,
    failed,
    new_run,
    on_examined_servers,
    on_sqlite,
    outcomes,
    query,
    reclaimed_after_expiry,
    request,
    status,
    the_run,
)

from durablestack.errors import StoreError, StoreUnavailable
from durablestack.runs import Released, RunStatus, Succeeded
from durablestack.stores.contract import Store
from durablestack.stores.memory import InMemoryStore
from proxy import TcpProxy, When

# connecting anew may take this: psycopg counts in whole seconds, and no less than two
ANSWER_SECONDS_MAX = 3.5

OWN_SESSION = {"postgres": "select pg_backend_pid()", "mysql": "select connection_id()"}
END_SESSION = {"postgres": "select pg_terminate_backend({})", "mysql": "kill {}"}

before_or_after = pytest.mark.parametrize("when", ["before", "after"])


def uncertain(call: Callable[[], object]) -> bool:
    with pytest.raises(StoreUnavailable) as caught:
        call()
    return caught.value.uncertain


# --- the commit whose answer is lost


@on_examined_servers
@before_or_after
def test_an_enqueue_whose_answer_was_lost_is_repeated_and_stored_once(
    store: Store, proxied: Store, proxy: TcpProxy, when: When
) -> None:
    runs = [new_run(), new_run()]
    proxy.cut_commit(when, b"insert into")
    assert uncertain(lambda: proxied.enqueue(runs))
    assert len(all_runs(store)) == (0 if when == "before" else 2)
    proxied.enqueue(runs)
    assert set(all_runs(store)) == {run.id for run in runs}


@on_examined_servers
@before_or_after
def test_a_success_whose_recording_was_uncertain_stays_a_success(
    store: Store, proxied: Store, proxy: TcpProxy, when: When
) -> None:
    lease = enqueue_and_claim(store)
    proxy.cut_commit(when, b"status = 'succeeded'")
    assert uncertain(lambda: proxied.record([Succeeded(lease)]))
    assert status(store, lease.run_id) is (RunStatus.LEASED if when == "before" else RunStatus.SUCCEEDED)
    for _ in range(2):
        assert proxied.record([Succeeded(lease)]) == {lease.run_id: RunStatus.SUCCEEDED}
    run = the_run(store, lease.run_id)
    assert (run.status, run.attempt) == (RunStatus.SUCCEEDED, 1)


@on_examined_servers
@before_or_after
def test_a_retry_whose_recording_was_uncertain_is_written_once(
    store: Store, proxied: Store, proxy: TcpProxy, when: When
) -> None:
    lease = enqueue_and_claim(store)
    proxy.cut_commit(when, b"durable_stack_job_run_attempts")
    assert uncertain(lambda: proxied.record([failed(lease, 0)]))
    second = claim_one(store) if when == "after" else None
    stands = RunStatus.LEASED if second else RunStatus.PENDING
    assert proxied.record([failed(lease, 0)]) == {lease.run_id: stands}
    assert outcomes(store, lease.run_id) == [(1, "failed")]
    assert status(store, lease.run_id) is stands


@on_examined_servers
@before_or_after
def test_a_success_whose_recording_was_uncertain_is_refused_after_a_reclaim(
    store: Store, proxied: Store, proxy: TcpProxy, when: When
) -> None:
    lease = enqueue_and_claim(store)
    proxy.cut_commit(when, b"status = 'succeeded'")
    assert uncertain(lambda: proxied.record([Succeeded(lease)]))
    if when == "after":
        assert proxied.record([Succeeded(lease)]) == {lease.run_id: RunStatus.SUCCEEDED}
    else:
        current = reclaimed_after_expiry(store, lease)
        assert proxied.record([Succeeded(lease)]) == {}
        assert the_run(store, lease.run_id).lease == current


@on_examined_servers
@before_or_after
def test_a_claim_whose_answer_was_lost_is_given_back(store: Store, proxied: Store, proxy: TcpProxy, when: When) -> None:
    run_id, token = enqueue(store), uuid4()
    proxy.cut_commit(when, b"status = 'leased'")
    assert uncertain(lambda: claim(proxied, token=token))
    assert proxied.release_claim(token) == ({run_id} if when == "after" else set())
    run = the_run(store, run_id)
    assert (run.status, run.attempt) == (RunStatus.PENDING, 0)
    assert store.get_attempts(run_id) == []
    assert claim_one(proxied).attempt == 1


@on_examined_servers
@before_or_after
def test_an_exchange_whose_answer_was_lost_is_done_whole_or_not_at_all(
    store: Store, proxied: Store, proxy: TcpProxy, when: When
) -> None:
    """Of the two halves either can be asked for first."""
    lease, waiting, token = enqueue_and_claim(store), enqueue(store), uuid4()
    proxy.cut_commit(when, b"status = 'leased'")
    assert uncertain(lambda: proxied.exchange([failed(lease, 0)], request(token=token)))
    done = when == "after"
    assert status(store, lease.run_id) is (RunStatus.PENDING if done else RunStatus.LEASED)
    assert status(store, waiting) is (RunStatus.LEASED if done else RunStatus.PENDING)
    assert proxied.release_claim(token) == ({waiting} if done else set())
    assert proxied.record([failed(lease, 0)]) == {lease.run_id: RunStatus.PENDING}
    assert outcomes(store, lease.run_id) == [(1, "failed")]
    assert {run.id for run in claim(proxied)} == {lease.run_id, waiting}


@on_examined_servers
@before_or_after
def test_a_release_whose_answer_was_lost_refunds_one_attempt(
    store: Store, proxied: Store, proxy: TcpProxy, when: When
) -> None:
    lease = enqueue_and_claim(store)
    store.record([failed(lease, 0)])
    lease = claim_one(store)
    proxy.cut_commit(when, b"attempt = attempt - 1")
    assert uncertain(lambda: proxied.record([Released(lease)]))
    assert proxied.record([Released(lease)]) == {lease.run_id: RunStatus.PENDING}
    assert the_run(store, lease.run_id).attempt == 1


@on_examined_servers
@before_or_after
def test_a_heartbeat_whose_answer_was_lost_is_repeated(
    store: Store, proxied: Store, proxy: TcpProxy, when: When
) -> None:
    lease = enqueue_and_claim(store)
    proxy.cut_commit(when, b"set lease_until_utc")
    assert uncertain(lambda: proxied.extend_leases([lease], LEASE_DURATION))
    assert proxied.extend_leases([lease], LEASE_DURATION).held == {lease.run_id}


@on_examined_servers
def test_an_error_before_the_commit_is_not_uncertain(store: Store, proxied: Store, proxy: TcpProxy) -> None:
    proxy.refuse()
    assert not uncertain(lambda: enqueue(proxied))
    proxy.pass_through()
    enqueue(proxied)
    assert len(all_runs(store)) == 1


# --- silence, refusal


@on_examined_servers
def test_a_frozen_server_is_given_up_within_the_timeout_and_served_again_after(
    store: Store, proxied: Store, proxy: TcpProxy
) -> None:
    lease = enqueue_and_claim(store)
    operations: list[Callable[[], object]] = [
        lambda: proxied.extend_leases([lease], LEASE_DURATION),
        lambda: proxied.get_run(lease.run_id),
        lambda: claimed(proxied),
    ]
    proxy.freeze()
    for operation in operations:
        started = time.monotonic()
        assert not uncertain(operation)
        assert time.monotonic() - started < PROXIED_TIMEOUT_SECONDS + 0.7
    proxy.thaw()
    eventually(lambda: proxied.extend_leases([lease], LEASE_DURATION).held == {lease.run_id})
    assert proxied.record([Succeeded(lease)]) == {lease.run_id: RunStatus.SUCCEEDED}


@on_examined_servers
def test_a_server_that_is_frozen_from_the_start_is_given_up(place: Place, store: Store, proxy: TcpProxy) -> None:
    proxied = place.through(proxy.port).open(timeout_seconds=PROXIED_TIMEOUT_SECONDS)
    proxy.freeze()
    started = time.monotonic()
    assert not uncertain(lambda: claimed(proxied))
    assert time.monotonic() - started < ANSWER_SECONDS_MAX
    proxy.thaw()
    eventually(lambda: proxied.list_runs(take=1) == [])
    proxied.close()


@on_examined_servers
def test_a_server_that_resets_every_connection_is_served_again_after(
    store: Store, proxied: Store, proxy: TcpProxy
) -> None:
    enqueue(store)
    for _ in range(3):
        proxy.reset_all()
        eventually(lambda: len(proxied.list_runs(take=9)) == 1)
    assert len(claim(proxied)) == 1


@on_examined_servers
def test_a_server_that_refuses_is_unavailable_and_is_served_again_after(
    place: Place, store: Store, proxied: Store, proxy: TcpProxy
) -> None:
    fresh = place.through(proxy.port).open(timeout_seconds=PROXIED_TIMEOUT_SECONDS)
    proxy.refuse()
    for away in (proxied, fresh):
        started = time.monotonic()
        assert not uncertain(lambda away=away: away.count_runs())
        assert time.monotonic() - started < PROXIED_TIMEOUT_SECONDS + 0.7
    proxy.pass_through()
    for back in (proxied, fresh):
        eventually(lambda back=back: back.list_runs(take=1) == [])
    fresh.close()


@on_examined_servers
def test_an_error_of_the_server_does_not_tell_the_password(place: Place, store: Store) -> None:
    url = urlsplit(place.database_url or "")
    wrong_user = url._replace(netloc=f"nobody:hunter22@{url.hostname}:{url.port or DEFAULT_PORTS[place.provider]}")
    wrong = Place(place.provider, wrong_user.geturl(), place.table_prefix).open()
    with pytest.raises(StoreError) as caught:
        wrong.list_runs(take=1)
    assert "hunter22" not in str(caught.value)
    wrong.close()


@on_examined_servers
def test_a_row_that_is_locked_is_waited_for_no_longer_than_the_timeout(place: Place, store: Store) -> None:
    lease = enqueue_and_claim(store)
    impatient = place.open(timeout_seconds=0.4)
    with closing(place.connect()) as connection:
        connection.cursor().execute(f"select 1 from {place.runs} for update")
        assert not uncertain(lambda: impatient.record([Succeeded(lease)]))
        connection.rollback()
    assert impatient.record([Succeeded(lease)]) == {lease.run_id: RunStatus.SUCCEEDED}
    impatient.close()


@on_examined_servers
def test_connections_that_the_server_ended_are_replaced(place: Place, store: Store) -> None:
    enqueue(store)
    other = place.open()
    for each in (other, store):
        ((session,),) = query(each, OWN_SESSION[place.provider])
        with closing(place.connect(autocommit=True)) as admin:
            admin.cursor().execute(END_SESSION[place.provider].format(session))
    for back in (other, store):
        eventually(lambda back=back: len(back.list_runs(take=9)) == 1)
    other.close()


# --- SQLite


@on_sqlite
def test_a_file_that_is_locked_is_waited_for_no_longer_than_the_timeout(place: Place, store: Store) -> None:
    impatient = place.open(timeout_seconds=0.3)
    with closing(sqlite3.connect(place.sqlite_path, isolation_level=None)) as connection:
        connection.execute("begin immediate")
        assert not uncertain(lambda: enqueue(impatient))
        assert impatient.list_runs(take=1) == []
        connection.execute("rollback")
    enqueue(impatient)
    impatient.close()
    assert len(all_runs(store)) == 1


@on_sqlite
def test_a_file_that_is_locked_for_a_moment_is_waited_for(place: Place, store: Store) -> None:
    with closing(sqlite3.connect(place.sqlite_path, isolation_level=None, check_same_thread=False)) as connection:
        connection.execute("begin immediate")
        threading.Timer(0.2, lambda: connection.execute("rollback")).start()
        enqueue(store)
    assert len(all_runs(store)) == 1


@on_sqlite
def test_a_file_that_is_no_database_is_refused(place: Place) -> None:
    with open(place.sqlite_path, "w") as file:
        file.write("not a database, but longer than the header of one would be" * 20)
    store = place.open()
    with pytest.raises(StoreError, match="not a database"):
        store.migrate()
    store.close()


@on_sqlite
def test_a_folder_that_is_not_there_is_named(place: Place) -> None:
    store = Place("sqlite", f"sqlite:///{place.sqlite_path}.missing/runs.db", "").open()
    with pytest.raises(StoreError, match=r"missing/runs\.db"):
        store.migrate()
    store.close()


# --- memory


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_the_store_in_memory_refuses_to_be_carried_into_another_process(store: Store) -> None:
    assert isinstance(store, InMemoryStore)
    pid, store._pid = store._pid, -1
    for operation in (store.count_runs, lambda: enqueue(store), lambda: claimed(store)):
        with pytest.raises(StoreError, match="another process"):
            operation()
    store._pid = pid


def eventually(holds: Callable[[], bool]) -> None:
    """Ask again while the answer is that there is none; a store finds its way back without help."""
    deadline = time.monotonic() + 10
    while True:
        try:
            assert holds()
        except StoreUnavailable:
            assert time.monotonic() < deadline
        else:
            return
