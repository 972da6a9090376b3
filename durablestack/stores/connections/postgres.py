"""Connections to PostgreSQL, by psycopg and its pool."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from durablestack.errors import OptionsError, SchemaError, StoreError, StoreUnavailable
from durablestack.options import ConnectionTarget, redact

from ..steps import Result, Waits
from .postgres_listener import PostgresListener
from .transaction import AlreadyThere, CursorTransaction, ExecuteMany, Row, Transaction

if TYPE_CHECKING:
    import psycopg

    from .postgres_pipeline import Pipeline

_CONNECT_WITHIN_SECONDS = 5.0
_AT_ONCE_SECONDS = 0.05  # for somebody else may take it in the same instant
_SCHEMA_STATES = ("42P01", "42703", "3F000")
# Bugs and bad data: the same statement will fail the same way. All else that a server says may pass:
# shutdown and failover (57P0*, 08*, 25006), conflicts (40*), locks (55P03), limits (53*), time-outs (57014).
_FINAL_CLASSES = ("22", "23", "42", "0A", "21")
# A prepared statement is not known, is known already, is something else, or cannot be had: somebody in between hands
# out sessions. It is the statement that fails, and so nothing was done.
_UNPREPARED_STATES = ("26000", "42P05", "08P01", "0A000")


class _Committing:
    """Whether a commit was sent, or is about to be."""

    __slots__ = ("begun",)

    def __init__(self) -> None:
        self.begun = False


class PostgresConnections:
    """A small pool of psycopg connections, in autocommit so that no statement is sent that we did not ask for."""

    driver = "psycopg"
    execute_many: ExecuteMany | None = None

    def __init__(self, target: ConnectionTarget, begin: str, *, connections_max: int, timeout_seconds: float) -> None:
        try:
            import psycopg
            from psycopg_pool import ConnectionPool

            from .postgres_pipeline import Pipeline
        except ImportError as error:
            raise OptionsError(
                f"PostgreSQL needs the driver psycopg ({error}); install it with: pip install 'durablestack[all]'"
            ) from None
        self._psycopg = psycopg
        self._place = target.describe()
        self._pipeline_of = Pipeline
        self._begin = [statement.strip() for statement in begin.split(";")]
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
        # whether the server keeps statements for us; written when it is first reached, and when it knows one no more
        self._prepares = False

    def prepare(self) -> None:
        return

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Statements are sent without waiting, as far as nobody asks for their rows: two journeys, not five."""
        with self._committing() as (tx, committing):
            self._begin_in(tx)
            yield tx
            committing.begun = True
            tx.end(b"commit")

    def waits_of_transaction(self, say: Callable[[Transaction], Result]) -> Waits[Result] | None:
        if self._pool.closed or not self._pool.get_stats()["pool_available"]:
            return None
        return self._waits_of_transaction(say)

    def _waits_of_transaction(self, say: Callable[[Transaction], Result]) -> Waits[Result]:
        with self._committing(waits=False) as (tx, committing):
            self._begin_in(tx)
            said = say(tx)
            yield from tx.sends_what_is_long()
            committing.begun = True
            yield from tx.ends(b"commit")
            return said

    def _begin_in(self, tx: Pipeline) -> None:
        for statement in self._begin:
            tx.run(statement, {})

    def run_alone(self, statement: str, parameters: Mapping[str, Any]) -> None:
        """It is committed with its end, in one journey."""
        with self._committing() as (tx, committing):
            tx.check()
            tx.run(statement, parameters)
            committing.begun = True
            tx.end()

    @contextmanager
    def _committing(self, *, waits: bool = True) -> Iterator[tuple[Pipeline, _Committing]]:
        """A transaction, and the mark to be set before its commit is sent. `waits`: this thread may."""
        committing = _Committing()
        with self._connection(waits=waits) as connection:
            tx = self._pipeline_of(connection, connection.keeper if self._prepares else None, waits=waits)
            try:
                yield tx, committing
            except self._psycopg.OperationalError as error:
                if committing.begun and error.sqlstate is None:  # no answer: done or not
                    text = f"{self._place}: at the commit: {_one_line(error)}"
                    raise StoreUnavailable(text, uncertain=True) from error
                raise
            except Exception:
                raise
            except BaseException:  # we are interrupted, and wait for nothing that the server is at
                connection.close()
                raise
            finally:
                tx.leave()
                if waits:
                    self._roll_back(connection)

    def _roll_back(self, connection: Any) -> None:
        """After an error; after a commit there is nothing to roll back."""
        status = self._psycopg.pq.TransactionStatus
        if connection.pgconn.transaction_status in (status.INTRANS, status.INERROR):
            with suppress(self._psycopg.Error):  # the error that brought us here is the one to tell
                connection.execute(b"rollback")

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        with self._connection() as connection:
            yield CursorTransaction(connection.cursor)

    @contextmanager
    def _connection(self, *, waits: bool = True) -> Iterator[Any]:
        """A connection for one operation, of however many statements, within the time for one."""
        give_up_at = time.monotonic() + self._timeout_seconds
        try:
            connection = self._checked_out() if waits else self._pool.getconn(timeout=_AT_ONCE_SECONDS)
            connection.give_up_at = give_up_at
            try:
                yield connection
            except BaseException as error:
                if self._prepares and isinstance(error, self._psycopg.Error) and error.sqlstate in _UNPREPARED_STATES:
                    connection.close()
                    self._prepares = False  # for good
                    raise StoreUnavailable(f"{self._place}: {_one_line(error)}") from error
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
        """Connect once outside the pool, which would tell of a failure only that time ran out.

        A pooler in between would give us other sessions, with other statements prepared; it tells of another process
        at the start than the one that answers.
        """
        with self._connection_class.connect(self._conninfo, **self._keywords) as connection:
            answers = connection.execute("select pg_backend_pid()").fetchone()
            self._prepares = answers == (connection.info.backend_pid,)

    def _translated(self, error: psycopg.Error) -> StoreError:
        text = _one_line(error)
        state = error.sqlstate or ""
        if state in _SCHEMA_STATES:
            return SchemaError(f"{self._place}: {text}; `durablestack migrate` makes and updates the tables")
        if isinstance(error, self._psycopg.errors.UniqueViolation):
            return AlreadyThere(f"{self._place}: {text}")
        if state[:2] in _FINAL_CLASSES or isinstance(error, (self._psycopg.ProgrammingError, self._psycopg.DataError)):
            return StoreError(f"{self._place}: {text}")
        return StoreUnavailable(f"{self._place}: {text}")

    def listen(self, channel: str) -> PostgresListener:
        return PostgresListener(self._conninfo, channel, tell=self._tell, translated=self._translated)

    def _tell(self, channel: str) -> None:
        with self.read() as tx:
            tx.run("select pg_notify(%(channel)s, '')", {"channel": channel})

    def close(self) -> None:
        with self._lock:
            self._pool.close()


def _one_line(error: Exception) -> str:
    return redact("; ".join(line.strip() for line in str(error).splitlines() if line.strip()))


def _bounded_connection_class(timeout_seconds: float) -> type[psycopg.Connection[Row]]:
    import psycopg

    from .postgres_pipeline import Keeper

    class BoundedConnection(psycopg.Connection[Row]):
        """Gives a silent server up: neither TCP nor the server's own time-outs notice a frozen path."""

        give_up_at = math.inf

        def __init__(self, *args: Any, **keywords: Any) -> None:
            super().__init__(*args, **keywords)
            self.keeper = Keeper()

        def wait(self, gen: Any, *args: Any, **keywords: Any) -> Any:
            if keywords.get("timeout") is None and len(args) < 2:
                keywords["timeout"] = max(0.0, min(timeout_seconds, self.give_up_at - time.monotonic()))
            try:
                return super().wait(gen, *args, **keywords)
            except psycopg.errors._WaitTimeout:
                self.give_up()

        def give_up(self) -> NoReturn:
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
