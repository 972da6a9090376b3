"""What a transaction of ours hands out is what was asked for, however statements and answers are under way."""

import select
from collections.abc import Iterator

import pytest
from exam import Place

from durablestack.errors import StoreError
from durablestack.stores.connections import Transaction
from durablestack.stores.connections.transaction import CursorTransaction
from durablestack.stores.sql import SqlStore


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
    assert isinstance(tx, CursorTransaction)
    connection = tx._new_cursor().connection
    readable, _, _ = select.select([connection.fileno()], [], [], 30)
    assert readable


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
