"""What a transaction of ours hands out is what was asked for, however statements and answers are under way."""

import gc
import select
import weakref
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest
from exam import LEASE_DURATION, Place, enqueue_and_claim

from durablestack.errors import StoreError, StoreUnavailable
from durablestack.runs import RunStatus, Succeeded
from durablestack.stores.connections import Transaction
from durablestack.stores.connections.postgres_pipeline import Pipeline
from durablestack.stores.contract import Store
from durablestack.stores.sql import SqlStore
from durablestack.stores.steps import wait_here
from pooler import TransactionPooler


@pytest.fixture
def postgres(postgres_dsn: str, table_prefix: str) -> Iterator[SqlStore]:
    store = Place("postgres", postgres_dsn, table_prefix).open()
    assert isinstance(store, SqlStore)
    yield store
    store.close()


def test_rows_are_those_of_their_own_statement_though_earlier_answers_come_first(postgres: SqlStore) -> None:
    with postgres._connections.transaction() as tx:
        tx.run("select 1, 2, 3", {})
        tx.run("do $$ begin raise notice 'makes the server send what it has'; end $$", {})
        until_answers_arrive(tx)
        assert tx.fetch("select 'mine'", {}) == [("mine",)]
        tx.run_many("select %(number)s", [{"number": 6}, {"number": 7}])
        assert tx.fetch("select 'mine', 'too'", {}) == [("mine", "too")]
    with postgres._connections.read() as tx:
        assert tx.fetch("select 'still'", {}) == [("still",)]


def until_answers_arrive(tx: Transaction) -> None:
    assert isinstance(tx, Pipeline)
    wait_here(tx._flush())
    readable, _, _ = select.select([tx._pgconn.socket], [], [], 30)
    assert readable


def test_a_transaction_and_its_rows_are_gone_with_its_end_though_garbage_is_collected_seldom(
    postgres: SqlStore,
) -> None:
    gc.disable()
    try:
        with postgres._connections.transaction() as tx:
            answer = tx.ask("select 1", {})
            gone = weakref.ref(tx)
        assert answer() == [(1,)]
        del tx, answer
        assert gone() is None
    finally:
        gc.enable()


def fails(postgres: SqlStore) -> None:
    with postgres._connections.transaction() as tx:
        tx.run("create table not_kept (number integer)", {})
        tx.run("select 1 / 0", {})
        tx.run("select 1", {})


def test_the_error_told_is_that_of_the_statement_that_failed_and_nothing_of_it_stays(postgres: SqlStore) -> None:
    with pytest.raises(StoreError, match="division by zero"):
        fails(postgres)
    with postgres._connections.read() as tx:
        assert tx.fetch("select to_regclass('not_kept')", {}) == [(None,)]


# --- statements that the server keeps for us


def prepared(store: SqlStore) -> list[str]:
    """The names of what is prepared on the one connection of a store."""
    with store._connections.read() as tx:
        return [name for (name,) in tx.fetch("select name from pg_prepared_statements", {})]


def heartbeats(store: Store, count: int) -> None:
    lease = enqueue_and_claim(store)
    for _ in range(count):
        assert store.extend_leases([lease], LEASE_DURATION).held == {lease.run_id}
    store.record([Succeeded(lease)])


def test_statements_that_are_sent_often_are_prepared_under_names_that_nobody_else_gives(
    postgres_dsn: str, table_prefix: str
) -> None:
    place = Place("postgres", postgres_dsn, table_prefix)
    stores = [place.open(connections_max=1) for _ in range(2)]
    stores[0].migrate()
    names: list[set[str]] = []
    for store in stores:
        assert isinstance(store, SqlStore)
        heartbeats(store, 10)
        names.append(set(prepared(store)))
        store.close()
    assert all(names)
    assert not names[0] & names[1]
    place.drop_tables()


@pytest.fixture
def pooled_place(postgres_dsn: str, table_prefix: str) -> Iterator[Callable[[int], Place]]:
    place = Place("postgres", postgres_dsn, table_prefix)
    place.open().migrate()
    yield place.through
    place.drop_tables()


def test_nothing_is_prepared_on_sessions_of_a_pooler(postgres_dsn: str, pooled_place: Callable[[int], Place]) -> None:
    with TransactionPooler(urlsplit(postgres_dsn).port or 5432) as pooler:
        store = pooled_place(pooler.port).open(connections_max=1)
        assert isinstance(store, SqlStore)
        heartbeats(store, 20)
        assert {name for _ in range(30) for name in prepared(store)} == set()
        store.close()


def test_a_pooler_that_is_not_seen_costs_one_operation_that_is_repeated_and_nothing_else(
    postgres_dsn: str, pooled_place: Callable[[int], Place]
) -> None:
    with TransactionPooler(urlsplit(postgres_dsn).port or 5432, tells_process=True) as pooler:
        store = pooled_place(pooler.port).open(connections_max=1)
        assert isinstance(store, SqlStore)
        store.now()
        store._connections._ours()._prepares = True  # type: ignore[attr-defined]
        lease = enqueue_and_claim(store)
        uncertain: list[bool] = []
        for _ in range(60):
            try:
                assert store.extend_leases([lease], LEASE_DURATION).held == {lease.run_id}
            except StoreUnavailable as error:
                uncertain.append(error.uncertain)
        assert uncertain == [False]
        assert store.record([Succeeded(lease)]) == {lease.run_id: RunStatus.SUCCEEDED}
        store.close()


def test_nothing_is_asked_of_a_pooler_after_the_end_of_a_transaction(
    postgres_dsn: str, pooled_place: Callable[[int], Place]
) -> None:
    with TransactionPooler(urlsplit(postgres_dsn).port or 5432, sessions=1) as pooler:
        in_turns = [pooled_place(pooler.port).open(connections_max=1) for _ in range(2)]
        leases = [enqueue_and_claim(store) for store in in_turns]
        for _ in range(10):
            for store, lease in zip(in_turns, leases, strict=True):
                assert store.extend_leases([lease], LEASE_DURATION).held == {lease.run_id}
        for store in in_turns:
            store.close()
        assert pooler.flushed_in_vain == 0


def test_what_the_server_said_was_committed_is_so_though_the_session_ends_with_that(
    postgres_dsn: str, pooled_place: Callable[[int], Place]
) -> None:
    with TransactionPooler(urlsplit(postgres_dsn).port or 5432, ends_after_commit=True) as pooler:
        store = pooled_place(pooler.port).open()
        leases = [enqueue_and_claim(store) for _ in range(3)]
        assert store.record([Succeeded(lease) for lease in leases]).keys() == {lease.run_id for lease in leases}
        store.close()
