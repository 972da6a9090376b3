"""A few connections of a driver that knows nothing of pools, deadlines or what its errors mean for us.

checked out ──> begin ──> statements ──> commit ──> free, for as long as it may sit idle
     │                        └─ any error: rolled back and closed, never used again
     └─ none free, and as many as there may be: wait, within the time for one operation
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from durablestack.errors import StoreError, StoreUnavailable
from durablestack.options import redact

from ..steps import Result, Waits
from .transaction import CursorTransaction, ExecuteMany, Transaction

_IDLE_SECONDS_MAX = 30.0
"""Servers, proxies and firewalls forget connections; to connect anew costs less than to find out which."""

_FINAL_KINDS = {"ProgrammingError", "DataError", "IntegrityError", "NotSupportedError"}


class Turns:
    """So many at once, and who waits is let in by turns: a semaphore would let in whoever comes at the right moment,
    again and again, while others wait for all of their time."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._lock = threading.Lock()
        self._waiting: deque[threading.Event] = deque()

    def take(self, timeout_seconds: float) -> bool:
        """Wait for a turn; False if none came in time."""
        with self._lock:
            if self._free:
                self._free -= 1
                return True
            called = threading.Event()
            self._waiting.append(called)
        if called.wait(timeout_seconds):
            return True
        with self._lock:
            if called.is_set():  # in the moment in which we gave up
                return True
            self._waiting.remove(called)
        return False

    def give_back(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1


class Driver(Protocol):
    """A DB-API module. Its connections are in autocommit, so that no statement is sent that we did not ask for."""

    module: str
    place: str
    error: type[Exception]
    """The root of the module's errors."""

    def connect(self, timeout_seconds: float) -> Any:
        """A connection whose statements take no longer, and on which `begin` means READ COMMITTED."""

    def limit(self, connection: Any, seconds: float) -> None:
        """Give the next statement so long, as far as the module can."""

    def execute_many(self, cursor: Any, statement: str, parameters: Sequence[Mapping[str, Any]]) -> None:
        """The statement once for each of these."""

    def may_be_done(self, error: Exception) -> bool:
        """Whether a commit that ended with this error may have happened all the same."""

    def translated(self, text: str, error: Exception) -> StoreError:
        """What the error means for the caller: again later, the schema, or again is no use."""


class PooledConnections:
    """Each used by one thread at a time."""

    def __init__(self, driver: Driver, begin: str, *, connections_max: int, timeout_seconds: float) -> None:
        self.driver = driver.module
        self.execute_many: ExecuteMany | None = driver.execute_many
        self._driver = driver
        self._begin = begin
        self._connections_max = connections_max
        self._timeout_seconds = timeout_seconds
        self._turns = Turns(connections_max)
        self._lock = threading.Lock()
        self._free: list[tuple[Any, float]] = []  # the last one returned is the first one taken
        self._closed = False

    def prepare(self) -> None:
        return

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        with self._connection() as tx:
            tx.run(self._begin, {})
            yield tx
            try:
                tx.run("commit", {})
            except self._driver.error as error:
                if not self._driver.may_be_done(error):
                    raise
                text = f"{self._driver.place}: at the commit: {_in_words(error)}"
                raise StoreUnavailable(text, uncertain=True) from error

    def waits_of_transaction(self, say: Callable[[Transaction], Result]) -> Waits[Result] | None:
        return None

    def run_alone(self, statement: str, parameters: Mapping[str, Any]) -> None:
        with self.transaction() as tx:
            tx.run(statement, parameters)

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        with self._connection() as tx:
            yield tx

    @contextmanager
    def _connection(self) -> Iterator[Transaction]:
        """A connection for one operation, of however many statements, within the time for one."""
        give_up_at = time.monotonic() + self._timeout_seconds
        place = self._driver.place
        if not self._turns.take(self._timeout_seconds):
            raise StoreUnavailable(
                f"{place}: all {self._connections_max} connections were busy for {self._timeout_seconds:g} s"
            )
        try:
            connection = self._taken() or self._driver.connect(self._timeout_seconds)

            def new_cursor() -> Any:
                self._driver.limit(connection, max(0.001, give_up_at - time.monotonic()))
                return connection.cursor()

            try:
                yield CursorTransaction(new_cursor, self._driver.execute_many)
            except BaseException:
                self._give_up(connection)
                raise
            self._put_back(connection)
        except self._driver.error as error:
            raise self._driver.translated(f"{place}: {_in_words(error)}", error) from error
        except UnicodeEncodeError as error:
            raise StoreError(f"{place}: text that was not cleaned: {error}") from error
        finally:
            self._turns.give_back()

    def _taken(self) -> Any:
        while True:
            with self._lock:
                if not self._free:
                    return None
                connection, idle_since = self._free.pop()
            if time.monotonic() - idle_since < _IDLE_SECONDS_MAX:
                return connection
            self._close(connection)

    def _put_back(self, connection: Any) -> None:
        with self._lock:
            if not self._closed:
                self._free.append((connection, time.monotonic()))
                return
        self._close(connection)

    def _give_up(self, connection: Any) -> None:
        """Rolled back before the error is told: who hears of it may try again at once, and must not meet our locks."""
        with suppress(self._driver.error):  # the error that brought us here is the one to tell
            self._driver.limit(connection, 1.0)
            connection.cursor().execute("rollback")
        self._close(connection)

    def _close(self, connection: Any) -> None:
        with suppress(self._driver.error, OSError):  # it may be closed, or dead
            connection.close()

    def listen(self, channel: str) -> None:
        return None

    def close(self) -> None:
        with self._lock:
            self._closed = True
            free, self._free = self._free, []
        for connection, _ in free:
            self._close(connection)


def is_final_kind(error: Exception) -> bool:
    """Whether the class of a DB-API error says that the same statement will fail the same way again."""
    return any(kind.__name__ in _FINAL_KINDS for kind in type(error).__mro__)


def _in_words(error: Exception) -> str:
    """`number: words`, whether the driver tells them apart, in a tuple, or as bytes, and however often."""
    parts = error.args[0] if error.args and isinstance(error.args[0], tuple) else error.args
    text = ": ".join(part.decode(errors="replace") if isinstance(part, bytes) else str(part) for part in parts)
    lines = dict.fromkeys(line.strip() for line in text.splitlines())
    return redact("; ".join(line for line in lines if line))
