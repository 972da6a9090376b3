"""Connections to PostgreSQL, by psycopg and its pool."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from durablestack.errors import OptionsError, SchemaError, StoreError, StoreUnavailable
from durablestack.options import ConnectionTarget, redact

from .transaction import CursorTransaction, Row, Transaction

if TYPE_CHECKING:
    import psycopg

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
        self._begin = [statement.strip().encode() for statement in begin.split(";")]
        self._timeout_seconds = timeout_seconds
        self._conninfo = _postgres_conninfo(target, timeout_seconds)
        self._connection_class = _bounded_connection_class(timeout_seconds)
        self._keywords: dict[str, Any] = {"autocommit": True, "prepare_threshold": None}
        self._new_pool = partial(
            ConnectionPool[Any],
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
        self._pool = self._new_pool()
        self._lock = threading.Lock()

    def prepare(self) -> None:
        return

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Statements are sent without waiting, as far as nobody asks for their rows: two journeys, not five."""
        committing = False
        with self._connection() as connection:
            try:
                with connection.pipeline():
                    for statement in self._begin:
                        connection.execute(statement)
                    yield CursorTransaction(connection.cursor)
                    committing = True
                    connection.execute(b"commit")
            except self._psycopg.OperationalError as error:
                if committing and error.sqlstate is None:  # no answer: done or not
                    text = f"{self._place}: at the commit: {_one_line(error)}"
                    raise StoreUnavailable(text, uncertain=True) from error
                raise
            finally:
                self._roll_back(connection)

    def _roll_back(self, connection: psycopg.Connection[Row]) -> None:
        """After an error; after a commit there is nothing to roll back."""
        status = self._psycopg.pq.TransactionStatus
        if connection.info.transaction_status in (status.INTRANS, status.INERROR):
            with suppress(self._psycopg.Error):  # the error that brought us here is the one to tell
                connection.execute(b"rollback")

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        with self._connection() as connection:
            yield CursorTransaction(connection.cursor)

    @contextmanager
    def _connection(self) -> Iterator[psycopg.Connection[Row]]:
        """A connection for one operation, of however many statements, within the time for one."""
        give_up_at = time.monotonic() + self._timeout_seconds
        try:
            connection = self._checked_out()
            connection.give_up_at = give_up_at
            try:
                yield connection
            except BaseException as error:
                if connection.info.transaction_status != self._psycopg.pq.TransactionStatus.IDLE:
                    connection.close()  # what it was in the middle of is unknown
                if isinstance(error, self._psycopg.errors.ReadOnlySqlTransaction):
                    connection.close()  # the next one may lead to the server that has taken over
                raise
            finally:
                self._pool.putconn(connection)
        except self._psycopg.Error as error:
            raise self._translated(error) from error
        except UnicodeEncodeError as error:
            raise StoreError(f"{self._place}: text that was not cleaned: {error}") from error

    def _checked_out(self) -> Any:
        with self._lock:
            if self._pool.closed:
                self._prove_reachable()
                try:
                    self._pool.open()
                except RuntimeError as error:  # there is no room for its threads, and it would never have any
                    self._pool = self._new_pool()
                    raise StoreUnavailable(f"{self._place}: {error}") from error
        return self._pool.getconn()

    def _prove_reachable(self) -> None:
        """Connect once outside the pool, which would tell of a failure only that time ran out."""
        self._connection_class.connect(self._conninfo, **self._keywords).close()

    def _translated(self, error: psycopg.Error) -> StoreError:
        text = _one_line(error)
        state = error.sqlstate or ""
        if state in _SCHEMA_STATES:
            return SchemaError(f"{self._place}: {text}; `durablestack migrate` makes and updates the tables")
        if state[:2] in _FINAL_CLASSES or isinstance(error, (self._psycopg.ProgrammingError, self._psycopg.DataError)):
            return StoreError(f"{self._place}: {text}")
        return StoreUnavailable(f"{self._place}: {text}")

    def close(self) -> None:
        with self._lock:
            self._pool.close()


def _one_line(error: Exception) -> str:
    return redact("; ".join(line.strip() for line in str(error).splitlines() if line.strip()))


def _bounded_connection_class(timeout_seconds: float) -> type[psycopg.Connection[Row]]:
    import psycopg

    class BoundedConnection(psycopg.Connection[Row]):
        """Gives a silent server up: neither TCP nor the server's own time-outs notice a frozen path."""

        give_up_at = math.inf

        def wait(self, gen: Any, *args: Any, **keywords: Any) -> Any:
            if keywords.get("timeout") is None and len(args) < 2:
                keywords["timeout"] = max(0.0, min(timeout_seconds, self.give_up_at - time.monotonic()))
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
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_IGNORED = {
    "commandtimeout",
    "connectionidlelifetime",
    "connectionlifetime",
    "enlist",
    "includeerrordetail",
    "keepalive",
    "maxautoprepare",
    "maximumpoolsize",
    "maxpoolsize",
    "minimumpoolsize",
    "minpoolsize",
    "multiplexing",
    "noresetonclose",
    "persistsecurityinfo",
    "pooling",
    "trustservercertificate",
}


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
    if "sslmode" in parameters:
        parameters["sslmode"] = _ssl_mode(target, parameters["sslmode"])
    try:
        return make_conninfo("", **{**given, **parameters})
    except Exception as error:  # the text may quote the string, which holds the password
        raise OptionsError(f"{target.describe()}: {redact(str(error))}") from None


def _ssl_mode(target: ConnectionTarget, written: str) -> str:
    """libpq's word for it: `VerifyFull` is `verify-full` there."""
    simple = written.lower().replace("-", "").replace("_", "")
    for mode in _SSL_MODES:
        if mode.replace("-", "") == simple:
            return mode
    raise OptionsError(f"{target.describe()}: sslmode = {written!r} is none of {', '.join(_SSL_MODES)}")
