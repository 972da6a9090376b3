"""A single run, which is stored in one journey: what is known of it when that is cut, and who hears of it."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing

import psycopg
import pytest
from exam import PROXIED_TIMEOUT_SECONDS, Place, all_runs, new_run, on_examined_servers, on_postgres, query

from durablestack.errors import StoreUnavailable
from durablestack.stores.contract import Store
from durablestack.stores.hints import NO_HINTS, HintRate
from durablestack.stores.sql import SqlStore
from proxy import TcpProxy, When

HEARD_WITHIN_SECONDS = 10.0
MORE_THAN_SOCKETS_HOLD = 32 * 1024 * 1024
UNTIL_PREPARED = 10
"""After so many the server knows the statement."""

before_or_after = pytest.mark.parametrize("when", ["before", "after"])
hinted_or_not = pytest.mark.parametrize("hinted", [True, False], ids=["hinted", "not hinted"])


@pytest.fixture
def proxied(place: Place, store: Store, proxy: TcpProxy) -> Iterator[SqlStore]:
    """The same tables as `store`, by way of the proxy, connected already."""
    proxied = place.through(proxy.port).open(timeout_seconds=PROXIED_TIMEOUT_SECONDS, connections_max=1)
    assert isinstance(proxied, SqlStore)
    proxied.verify_schema()
    yield proxied
    proxied.close()


def is_uncertain(call: Callable[[], object]) -> bool:
    with pytest.raises(StoreUnavailable) as caught:
        call()
    return caught.value.uncertain


def hint_all(store: SqlStore, hinted: bool) -> None:
    store._enqueuer.hints = HintRate(1e9) if hinted else NO_HINTS


@on_examined_servers
@before_or_after
@hinted_or_not
@pytest.mark.parametrize("earlier", [0, UNTIL_PREPARED], ids=["the first", "a later one"])
def test_a_run_whose_answer_was_lost_is_uncertain_and_stored_once_when_it_is_repeated(
    store: Store, proxied: SqlStore, proxy: TcpProxy, when: When, hinted: bool, earlier: int
) -> None:
    hint_all(proxied, hinted and proxied.dialect.hint != "")
    for _ in range(earlier):
        proxied.enqueue([new_run()])
    run = new_run()
    proxy.cut_commit(when, b"insert into")
    assert is_uncertain(lambda: proxied.enqueue([run]))
    assert (run.id in all_runs(store)) is (when == "after")
    proxied.enqueue([run])
    assert len(all_runs(store)) == earlier + 1


@on_examined_servers
@pytest.mark.parametrize("earlier", [1, UNTIL_PREPARED])
def test_of_a_line_that_was_cut_before_nothing_is_uncertain(
    store: Store, proxied: SqlStore, proxy: TcpProxy, earlier: int
) -> None:
    for _ in range(earlier):
        proxied.enqueue([new_run()])
    proxy.refuse()
    assert not is_uncertain(lambda: proxied.enqueue([new_run()]))
    assert len(all_runs(store)) == earlier


@on_postgres
def test_of_a_session_that_was_ended_before_nothing_is_uncertain(place: Place, store: Store) -> None:
    store.enqueue([new_run()])
    ((pid,),) = query(store, "select pg_backend_pid()")
    with closing(place.connect(autocommit=True)) as admin:
        admin.cursor().execute(f"select pg_terminate_backend({pid}, 10000)")
    assert not is_uncertain(lambda: store.enqueue([new_run()]))
    store.enqueue([new_run()])
    assert len(all_runs(store)) == 2


@on_postgres
@pytest.mark.parametrize("payload", ["1", "x" * MORE_THAN_SOCKETS_HOLD], ids=["short", "long"])
def test_of_a_server_that_falls_silent_it_is_known_whether_all_was_sent(
    store: Store, proxied: SqlStore, proxy: TcpProxy, payload: str
) -> None:
    run = new_run(payload=payload)
    proxied.enqueue([new_run()])
    proxy.freeze()
    began = time.monotonic()
    assert is_uncertain(lambda: proxied.enqueue([run])) is (len(payload) == 1)
    assert time.monotonic() - began < PROXIED_TIMEOUT_SECONDS + 2
    proxy.thaw()
    store.enqueue([run])  # which takes its time, so long as it is
    assert len(all_runs(store)) == 2


@on_postgres
def test_a_run_that_is_there_already_is_hinted_again(place: Place, store: Store) -> None:
    """The hint may be the one after which others are withheld."""
    run = new_run()
    with psycopg.connect(place.database_url or "", autocommit=True) as ears:
        ears.execute(f'listen "{place.table_prefix}durable_stack"'.encode())
        for _ in range(2):
            store.enqueue([run])
        heard = list(ears.notifies(timeout=HEARD_WITHIN_SECONDS, stop_after=2))
    assert [hint.payload for hint in heard] == ["", ""]
