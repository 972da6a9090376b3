"""Connections to SQLite, by the standard library's driver."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from durablestack.errors import SchemaError, StoreError, StoreUnavailable
from durablestack.options import ConnectionTarget

from ..steps import Result, Waits
from .sqlite_listener import SqliteListener
from .transaction import CursorTransaction, ExecuteMany, Transaction

_LOCKED_SECONDS = 0.01


class SqliteConnections:
    """One connection, used by one thread at a time: SQLite has a single writer anyway."""

    driver = "sqlite3"
    execute_many: ExecuteMany | None = None

    def __init__(self, target: ConnectionTarget, begin: str, *, synchronous: str, timeout_seconds: float) -> None:
        self._path = Path(target.database or "").absolute()
        self._may_create = False
        self._begin = begin
        self._synchronous = synchronous
        self._timeout_seconds = timeout_seconds
        self._connection: sqlite3.Connection | None = None
        self._logs_ahead = False  # as far as this connection knows
        self._file: tuple[int, int] | None = None  # the one that the connection is to
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Let the next connection make the file. No other does: a mistyped name should be told, not followed."""
        self._may_create = True

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        with self._locked() as connection:
            if not self._logs_ahead:
                self._use_write_ahead_log(connection)
            connection.execute(self._begin)
            try:
                yield CursorTransaction(connection.cursor)
            except BaseException:
                with suppress(sqlite3.Error):  # the error that brought us here is the one to tell
                    connection.execute("rollback")
                raise
            connection.execute("commit")

    def waits_of_transaction(self, say: Callable[[Transaction], Result]) -> Waits[Result] | None:
        return None

    def run_alone(self, statement: str, parameters: Mapping[str, Any]) -> None:
        with self.transaction() as tx:
            tx.run(statement, parameters)

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        with self._locked() as connection:
            yield CursorTransaction(connection.cursor)

    @contextmanager
    def _locked(self) -> Iterator[sqlite3.Connection]:
        if not self._lock.acquire(timeout=self._timeout_seconds):
            raise StoreUnavailable(f"SQLite file {self._path} was busy for {self._timeout_seconds:g} s in this process")
        try:
            if self._file != self._file_there():  # deleted or replaced: what we write would be seen by nobody
                self._disconnect()
            if self._connection is None:
                self._connection = self._connect()
                self._file, self._may_create = self._file_there(), False
            yield self._connection
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

    def _file_there(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:  # not there, or not for us: which it is, SQLite says
            return None
        return found.st_dev, found.st_ino

    def _connect(self) -> sqlite3.Connection:
        if not self._may_create and not self._path.exists():
            raise SchemaError(
                f"there is no SQLite file {self._path} (is this the right folder?); stack.migrate() makes it, or "
                "`durablestack migrate` with the same --app or --database-url"
            )
        connection = sqlite3.connect(
            self._path, timeout=self._timeout_seconds, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute(f"pragma synchronous = {'normal' if self._synchronous == 'normal' else 'full'}")
            connection.execute("pragma foreign_keys = on")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _use_write_ahead_log(self, connection: sqlite3.Connection) -> None:
        """The mode stays with the file, so that it is for those who write: who only looks may have the wrong one.
        Changing it needs the file alone, for which SQLite itself does not wait."""
        give_up_at = time.monotonic() + self._timeout_seconds
        while True:
            try:
                if connection.execute("pragma journal_mode").fetchone() != ("wal",):
                    connection.execute("pragma journal_mode = wal")
                self._logs_ahead = True
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > give_up_at:
                    raise
            time.sleep(_LOCKED_SECONDS)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection, self._logs_ahead = None, False

    def _translated(self, error: sqlite3.Error) -> StoreError:
        text = f"SQLite file {self._path}: {error}"
        if "no such table" in text or "no such column" in text or "has no column" in text:
            return SchemaError(f"{text}; `durablestack migrate` makes and updates the tables")
        if "unable to open" in text and not self._path.parent.is_dir():
            return StoreUnavailable(f"{text}: there is no such folder")
        if "locked" in text:
            text += " by another transaction; if it is your own, pass its connection as connection="
        return StoreUnavailable(text) if isinstance(error, sqlite3.OperationalError) else StoreError(text)

    def listen(self, channel: str) -> SqliteListener:
        return SqliteListener(self._path)

    def close(self) -> None:
        with self._lock:
            self._disconnect()
