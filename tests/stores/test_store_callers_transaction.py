"""Runs enqueued in the caller's own transaction: there if it is committed, and only then."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from typing import Any

import psycopg
import pytest
import sqlalchemy
import sqlalchemy.orm
from exam import Place, all_runs, claim, new_run, on_databases, on_postgres, on_sqlite

from durablestack.errors import StoreError, StoreUnavailable
from durablestack.stores.contract import Store

committed = pytest.mark.parametrize("commit", [True, False], ids=["commit", "rollback"])


def sqlalchemy_url(place: Place) -> str:
    url = (place.database_url or "").replace("postgresql://", "postgresql+psycopg://")
    return url.replace("mysql://", "mysql+pymysql://")


@contextmanager
def drivers_connection(place: Place) -> Iterator[Any]:
    with closing(place.connect()) as connection:
        yield connection


@contextmanager
def sqlalchemy_connection(place: Place) -> Iterator[Any]:
    engine = sqlalchemy.create_engine(sqlalchemy_url(place))
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@contextmanager
def sqlalchemy_session(place: Place) -> Iterator[Any]:
    engine = sqlalchemy.create_engine(sqlalchemy_url(place))
    with sqlalchemy.orm.Session(engine) as session:
        yield session
    engine.dispose()


@contextmanager
def sqlalchemy_raw_connection(place: Place) -> Iterator[Any]:
    engine = sqlalchemy.create_engine(sqlalchemy_url(place))
    with closing(engine.raw_connection()) as connection:
        yield connection
    engine.dispose()


@contextmanager
def djangos_wrapper(place: Place) -> Iterator[Any]:
    """Django's `connection` has the driver's in its attribute of the same name."""

    class DatabaseWrapper:
        def __init__(self, connection: Any) -> None:
            self.connection = connection
            self.commit, self.rollback = connection.commit, connection.rollback

    with drivers_connection(place) as connection:
        yield DatabaseWrapper(connection)


callers = pytest.mark.parametrize(
    "caller",
    [drivers_connection, sqlalchemy_connection, sqlalchemy_session, sqlalchemy_raw_connection, djangos_wrapper],
    ids=lambda caller: caller.__name__,
)


@on_databases
@callers
@committed
def test_a_run_shares_the_fate_of_the_callers_transaction(
    place: Place, store: Store, caller: Callable[[Place], Any], commit: bool
) -> None:
    runs = [new_run(), new_run()]
    with caller(place) as connection:
        store.enqueue(runs, connection)
        store.enqueue(runs[:1], connection)
        assert all_runs(store) == {}
        connection.commit() if commit else connection.rollback()
    assert set(all_runs(store)) == ({run.id for run in runs} if commit else set())
    assert {run.id for run in claim(store)} == set(all_runs(store))


@on_databases
@callers
def test_the_caller_may_go_on_in_the_same_transaction(
    place: Place, store: Store, caller: Callable[[Place], Any]
) -> None:
    first, second = new_run(), new_run()
    with caller(place) as connection:
        store.enqueue([first], connection)
        connection.rollback()
        store.enqueue([second], connection)
        connection.commit()
    assert list(all_runs(store)) == [second.id]


@on_databases
@committed
def test_a_block_of_the_caller_decides(place: Place, store: Store, commit: bool) -> None:
    run = new_run()
    engine = sqlalchemy.create_engine(sqlalchemy_url(place))
    with contextlib.suppress(ZeroDivisionError), engine.begin() as connection:
        connection.exec_driver_sql("select 1")
        store.enqueue([run], connection)
        assert commit or 1 / 0
    engine.dispose()
    assert list(all_runs(store)) == ([run.id] if commit else [])


@on_postgres
@committed
def test_a_savepoint_of_the_caller_holds_its_runs(place: Place, store: Store, commit: bool) -> None:
    outer, inner = new_run(), new_run()
    with psycopg.connect(place.database_url or "") as connection:
        store.enqueue([outer], connection)
        with connection.transaction(force_rollback=not commit):
            store.enqueue([inner], connection)
    assert set(all_runs(store)) == ({outer.id, inner.id} if commit else {outer.id})


@on_postgres
def test_the_row_factory_of_the_caller_is_no_matter(place: Place, store: Store) -> None:
    with psycopg.connect(place.database_url or "", row_factory=psycopg.rows.dict_row) as connection:
        store.enqueue([new_run()], connection)
    assert len(all_runs(store)) == 1


# --- asynchronous


@asynccontextmanager
async def async_psycopg_connection(place: Place) -> AsyncIterator[Any]:
    connection = await psycopg.AsyncConnection.connect(place.database_url or "")
    yield connection
    await connection.close()


@asynccontextmanager
async def async_sqlalchemy_connection(place: Place) -> AsyncIterator[Any]:
    pytest.importorskip("greenlet", reason="SQLAlchemy's asynchronous side needs greenlet")
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(sqlalchemy_url(place))
    async with engine.connect() as connection:
        yield connection
    await engine.dispose()


@asynccontextmanager
async def async_sqlalchemy_session(place: Place) -> AsyncIterator[Any]:
    pytest.importorskip("greenlet", reason="SQLAlchemy's asynchronous side needs greenlet")
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    engine = create_async_engine(sqlalchemy_url(place))
    async with AsyncSession(engine) as session:
        yield session
    await engine.dispose()


async_callers = pytest.mark.parametrize(
    "caller",
    [async_psycopg_connection, async_sqlalchemy_connection, async_sqlalchemy_session],
    ids=lambda caller: caller.__name__,
)


@on_postgres
@async_callers
@committed
def test_a_run_shares_the_fate_of_the_callers_asynchronous_transaction(
    place: Place, store: Store, caller: Callable[[Place], Any], commit: bool
) -> None:
    runs = [new_run(), new_run()]

    async def enqueue() -> None:
        async with caller(place) as connection:
            await store.enqueue_async(runs, connection)
            assert all_runs(store) == {}
            await (connection.commit() if commit else connection.rollback())

    asyncio.run(enqueue())
    assert set(all_runs(store)) == ({run.id for run in runs} if commit else set())


@on_databases
@callers
@committed
def test_a_synchronous_connection_serves_the_asynchronous_client_too(
    place: Place, store: Store, caller: Callable[[Place], Any], commit: bool
) -> None:
    run = new_run()
    with caller(place) as connection:
        asyncio.run(store.enqueue_async([run], connection))
        connection.commit() if commit else connection.rollback()
    assert list(all_runs(store)) == ([run.id] if commit else [])


@on_postgres
@async_callers
def test_an_asynchronous_connection_is_refused_where_nobody_can_wait_for_it(
    place: Place, store: Store, caller: Callable[[Place], Any]
) -> None:
    async def enqueue() -> None:
        async with caller(place) as connection:
            with pytest.raises(StoreError, match="asynchronous"):
                store.enqueue([new_run()], connection)

    asyncio.run(enqueue())


# --- refused


@on_postgres
def test_a_connection_to_sqlite_is_refused_by_postgres(store: Store) -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        check_refused(store, connection, "sqlite3.Connection.*psycopg")
    engine = sqlalchemy.create_engine("sqlite://")
    with engine.connect() as wrapped:
        check_refused(store, wrapped, "sqlite3.Connection.*psycopg")
    engine.dispose()


@on_sqlite
def test_a_connection_to_postgres_is_refused_by_sqlite(store: Store, postgres_dsn: str) -> None:
    with psycopg.connect(postgres_dsn) as connection:
        check_refused(store, connection, "psycopg.Connection.*sqlite3")


@on_databases
@pytest.mark.parametrize("thing", ["a URL", 7, object()], ids=["text", "number", "object"])
def test_what_is_no_connection_is_refused(store: Store, thing: object) -> None:
    check_refused(store, thing, "connection=")


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_the_store_in_memory_takes_part_in_no_transaction(store: Store) -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        check_refused(store, connection, "in-memory")


def check_refused(store: Store, connection: object, words: str) -> None:
    with pytest.raises(StoreError, match=words) as caught:
        store.enqueue([new_run()], connection)
    assert not isinstance(caught.value, StoreUnavailable)
    with pytest.raises(StoreError, match=words):
        asyncio.run(store.enqueue_async([new_run()], connection))
    assert all_runs(store) == {}
