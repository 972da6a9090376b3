"""Connections to databases. The one place that imports their drivers, and knows their errors by name.

    with connections.transaction() as tx:      one transaction: committed at the end, rolled back on an error
        rows = tx.fetch(statement, parameters)
    with connections.read() as tx:             single statements, each for itself

A connection that had an error, or whose database did not answer within the time for one operation, is closed and
never used again. Errors leave as StoreUnavailable (again later), SchemaError, or StoreError (again is no use).
"""

from __future__ import annotations

import inspect
import math
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from durablestack.errors import OptionsError, SchemaError, StoreError, StoreUnavailable
from durablestack.options import ConnectionTarget, redact

if TYPE_CHECKING:
    import psycopg

Row = tuple[Any, ...]


class Transaction(Protocol):
    def fetch(self, statement: str, parameters: Mapping[str, Any]) -> list[Row]: ...
    def run(self, statement: str, parameters: Mapping[str, Any]) -> None: ...
    def run_many(self, statement: str, parameters: Sequence[Mapping[str, Any]]) -> None: ...


class Connections(Protocol):
    driver: str
    """The module whose connections a caller may hand in."""

    def transaction(self) -> AbstractContextManager[Transaction]: ...
    def read(self) -> AbstractContextManager[Transaction]: ...
    def close(self) -> None: ...


class CursorTransaction:
    """A transaction by way of a DB-API cursor."""

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor

    def fetch(self, statement: str, parameters: Mapping[str, Any]) -> list[Row]:
        self._cursor.execute(statement, parameters)
        return list(self._cursor.fetchall())

    def run(self, statement: str, parameters: Mapping[str, Any]) -> None:
        self._cursor.execute(statement, parameters)

    def run_many(self, statement: str, parameters: Sequence[Mapping[str, Any]]) -> None:
        if parameters:
            self._cursor.executemany(statement, parameters)


def in_callers_transaction(connection: Any, driver: str) -> CursorTransaction:
    """The caller's own transaction: it is neither committed nor rolled back here.

    Raises:
        StoreError: the connection is not one of the store's driver, or is asynchronous.
    """
    if inspect.iscoroutinefunction(getattr(connection, "commit", None)):
        raise StoreError(
            f"connection= is a {type(connection).__module__}.{type(connection).__qualname__}, "
            "which is asynchronous; hand it to the asynchronous client"
        )
    return CursorTransaction(driver_connection(connection, driver).cursor())


def driver_connection(connection: Any, driver: str) -> Any:
    """The driver's own connection in what a caller hands in: it, or SQLAlchemy's or Django's wrapper round it.

    Raises:
        StoreError: there is none of this driver in it.
    """
    while not _is_of(driver, connection):
        if _waits_to_begin(connection):
            connection.begin()
        connection = _opened(connection, _wrapped(connection), driver)
    return connection


async def async_driver_connection(connection: Any, driver: str) -> Any:
    """The same, where it may have to be awaited: in SQLAlchemy's asynchronous session or connection.

    Raises:
        StoreError: there is none of this driver in it.
    """
    while not _is_of(driver, connection):
        if _waits_to_begin(connection):
            await _awaited(connection.begin())
        connection = _opened(connection, await _awaited(_wrapped(connection)), driver)
    return connection


def _is_of(driver: str, connection: Any) -> bool:
    return any(kind.__module__.partition(".")[0] == driver for kind in type(connection).__mro__)


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _waits_to_begin(connection: Any) -> bool:
    """SQLAlchemy's connection begins when it executes, and commits only what it has begun."""
    return hasattr(connection, "exec_driver_sql") and not connection.in_transaction()


def _wrapped(connection: Any) -> Any:
    for name in ("get_raw_connection", "driver_connection", "connection"):
        wrapped = getattr(connection, name, None)
        if wrapped is not None:
            return wrapped() if inspect.ismethod(wrapped) else wrapped  # a connection may be callable: sqlite3's is
    return None


def _opened(connection: Any, wrapped: Any, driver: str) -> Any:
    if wrapped is None or wrapped is connection:  # psycopg's is its own `connection`
        raise StoreError(
            f"connection= is a {type(connection).__module__}.{type(connection).__qualname__}; "
            f"this store takes connections of {driver}, or a SQLAlchemy connection or session over one"
        )
    return wrapped


# --- SQLite


class SqliteConnections:
    """One connection, used by one thread at a time: SQLite has a single writer anyway."""

    driver = "sqlite3"

    def __init__(self, target: ConnectionTarget, begin: str, *, synchronous: str, timeout_seconds: float) -> None:
        self._path = Path(target.database or "")
        self._begin = begin
        self._synchronous = synchronous
        self._timeout_seconds = timeout_seconds
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.Lock()

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        with self._locked() as cursor:
            cursor.execute(self._begin)
            try:
                yield CursorTransaction(cursor)
            except BaseException:
                with suppress(sqlite3.Error):  # the error that brought us here is the one to tell
                    cursor.execute("rollback")
                raise
            cursor.execute("commit")

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        with self._locked() as cursor:
            yield CursorTransaction(cursor)

    @contextmanager
    def _locked(self) -> Iterator[sqlite3.Cursor]:
        if not self._lock.acquire(timeout=self._timeout_seconds):
            raise StoreUnavailable(f"SQLite file {self._path} was busy for {self._timeout_seconds:g} s in this process")
        try:
            if self._connection is None:
                self._connection = self._connect()
            yield self._connection.cursor()
        except sqlite3.Error as error:
            self._disconnect()
            raise self._translated(error) from error
        except UnicodeEncodeError as error:
            self._disconnect()
            raise StoreError(f"SQLite file {self._path}: text that was not cleaned: {error}") from error
        except BaseException:
            if self._connection is not None and self._connection.in_transaction:
                self._disconnect()
            raise
        finally:
            self._lock.release()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=self._timeout_seconds, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("pragma journal_mode = wal")
            connection.execute(f"pragma synchronous = {'normal' if self._synchronous == 'normal' else 'full'}")
            connection.execute("pragma foreign_keys = on")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _translated(self, error: sqlite3.Error) -> StoreError:
        text = str(error)
        if "no such table" in text or "no such column" in text or "has no column" in text:
            return SchemaError(f"SQLite file {self._path}: {text}")
        if isinstance(error, sqlite3.OperationalError):
            return StoreUnavailable(f"SQLite file {self._path}: {text}")
        return StoreError(f"SQLite file {self._path}: {text}")

    def close(self) -> None:
        with self._lock:
            self._disconnect()


# --- PostgreSQL

_CONNECT_WITHIN_SECONDS = 5.0
_SCHEMA_STATES = ("42P01", "42703", "3F000")
# Bugs and bad data: the same statement will fail the same way. All else that a server says may pass:
# shutdown and failover (57P0*, 08*, 25006), conflicts (40*), locks (55P03), limits (53*), time-outs (57014).
_FINAL_CLASSES = ("22", "23", "42", "0A", "21")


class PostgresConnections:
    """A small pool of psycopg connections, in autocommit so that no statement is sent that we did not ask for."""

    driver = "psycopg"

    def __init__(self, target: ConnectionTarget, begin: str, *, connections_max: int, timeout_seconds: float) -> None:
        try:
            import psycopg
            from psycopg_pool import ConnectionPool
        except ImportError as error:
            raise OptionsError(
                f"PostgreSQL needs the driver psycopg ({error}); install it with: pip install 'durablestack[all]'"
            ) from None
        self._psycopg = psycopg
        self._place = target.describe()
        self._begin = begin
        self._timeout_seconds = timeout_seconds
        self._conninfo = _postgres_conninfo(target, timeout_seconds)
        self._connection_class = _bounded_connection_class(timeout_seconds)
        self._keywords: dict[str, Any] = {"autocommit": True, "prepare_threshold": None}
        self._pool: ConnectionPool[Any] = ConnectionPool(
            self._conninfo,
            connection_class=self._connection_class,
            kwargs=self._keywords,
            min_size=0,
            max_size=connections_max,
            open=False,
            timeout=min(timeout_seconds, _CONNECT_WITHIN_SECONDS),
            reconnect_timeout=1.0,  # after that the next caller tries anew, rather than waiting in a long backoff
            num_workers=1,
        )
        self._lock = threading.Lock()

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        with self._connection() as connection:
            # without parameters, so that the statements go out in one message
            connection.execute(self._begin.encode())
            try:
                yield CursorTransaction(connection.cursor())
            except Exception:
                with suppress(self._psycopg.Error):  # the error that brought us here is the one to tell
                    connection.execute(b"rollback")
                raise
            try:
                connection.execute(b"commit")
            except self._psycopg.OperationalError as error:
                raise StoreUnavailable(f"{self._place}: at the commit: {_one_line(error)}", uncertain=True) from error

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        with self._connection() as connection:
            yield CursorTransaction(connection.cursor())

    @contextmanager
    def _connection(self) -> Iterator[psycopg.Connection[Row]]:
        try:
            connection = self._checked_out()
            try:
                yield connection
            except BaseException:
                if connection.info.transaction_status != self._psycopg.pq.TransactionStatus.IDLE:
                    connection.close()  # what it was in the middle of is unknown
                raise
            finally:
                self._pool.putconn(connection)
        except self._psycopg.Error as error:
            raise self._translated(error) from error
        except UnicodeEncodeError as error:
            raise StoreError(f"{self._place}: text that was not cleaned: {error}") from error

    def _checked_out(self) -> psycopg.Connection[Row]:
        with self._lock:
            if self._pool.closed:
                self._prove_reachable()
                self._pool.open()
        connection: psycopg.Connection[Row] = self._pool.getconn()
        return connection

    def _prove_reachable(self) -> None:
        """Connect once outside the pool, which would tell of a failure only that time ran out."""
        self._connection_class.connect(self._conninfo, **self._keywords).close()

    def _translated(self, error: psycopg.Error) -> StoreError:
        text = _one_line(error)
        state = error.sqlstate or ""
        if state in _SCHEMA_STATES:
            return SchemaError(f"{self._place}: {text}")
        if state[:2] in _FINAL_CLASSES or isinstance(error, (self._psycopg.ProgrammingError, self._psycopg.DataError)):
            return StoreError(f"{self._place}: {text}")
        return StoreUnavailable(f"{self._place}: {text}")

    def close(self) -> None:
        with self._lock:
            self._pool.close()


def _one_line(error: Exception) -> str:
    return redact(" ".join(str(error).split()))


def _bounded_connection_class(timeout_seconds: float) -> type[psycopg.Connection[Row]]:
    import psycopg

    class BoundedConnection(psycopg.Connection[Row]):
        """Gives a silent server up: neither TCP nor the server's own time-outs notice a frozen path."""

        def wait(self, gen: Any, *args: Any, **keywords: Any) -> Any:
            if keywords.get("timeout") is None and len(args) < 2:
                keywords["timeout"] = timeout_seconds
            try:
                return super().wait(gen, *args, **keywords)
            except psycopg.errors._WaitTimeout:
                self.close()
                raise psycopg.OperationalError(f"no answer within {timeout_seconds:g} s") from None

    return BoundedConnection


# Key=Value; strings as they are written for .NET: what has another name here, and what has no meaning here
_NPGSQL = {
    "applicationname": "application_name",
    "timeout": "connect_timeout",
    "rootcertificate": "sslrootcert",
    "sslcertificate": "sslcert",
}
_IGNORED = frozenset(
    "pooling minimumpoolsize maximumpoolsize minpoolsize maxpoolsize commandtimeout multiplexing enlist keepalive "
    "connectionidlelifetime connectionlifetime includeerrordetail trustservercertificate persistsecurityinfo "
    "noresetonclose maxautoprepare".split()
)


def _postgres_conninfo(target: ConnectionTarget, timeout_seconds: float) -> str:
    from psycopg.conninfo import make_conninfo

    named = {
        "host": target.host,
        "port": None if target.port is None else str(target.port),
        "user": target.user,
        "password": target.password.reveal() if target.password else None,
        "dbname": target.database,
        # a path that died is noticed by the kernel, one that froze by our own time-out
        "connect_timeout": str(min(5, math.ceil(timeout_seconds))),
        "keepalives_idle": "10",
        "keepalives_interval": "5",
        "keepalives_count": "3",
        "tcp_user_timeout": "10000",
        "target_session_attrs": "read-write",
        "application_name": "durablestack",
    }
    given = {name: value for name, value in named.items() if value is not None}
    parameters = {_NPGSQL.get(name, name): value for name, value in target.parameters.items() if name not in _IGNORED}
    try:
        return make_conninfo("", **{**given, **parameters})
    except Exception as error:  # the text may quote the string, which holds the password
        raise OptionsError(f"{target.describe()}: {redact(str(error))}") from None
