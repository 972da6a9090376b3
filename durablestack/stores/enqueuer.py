"""How runs get into the database, in a transaction of ours or of the caller's, and listeners are told of them."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from durablestack.runs import NewRun

from . import inserts
from .connections import Connections, Transaction
from .connections.callers import async_driver_connection, in_callers_transaction, may_notify
from .connections.transaction import AlreadyThere
from .dialects import Dialect
from .hints import NO_HINTS, PER_SECOND_MAX, PER_SECOND_OF_CALLERS, HintRate
from .rows import new_run_parameters
from .session import Session


class Enqueuer:
    """Those that listen to the channel get a hint, if the database has a statement for that."""

    def __init__(
        self,
        connections: Connections,
        statements: Mapping[str, str],
        dialect: Dialect,
        session: Callable[[Transaction], Session],
        channel: str,
    ) -> None:
        self._connections = connections
        self._statements = statements
        self._bind = dialect.bind
        self._session = session
        self._channel = channel
        self.hints = self._callers_hints = NO_HINTS
        if "HINT" in statements:
            self.hints, self._callers_hints = HintRate(PER_SECOND_MAX), HintRate(PER_SECOND_OF_CALLERS)

    # --- in a transaction of our own

    def enqueue(self, runs: Sequence[NewRun]) -> None:
        began_at = time.monotonic()
        try:
            if inserts.goes_alone(runs):
                hinted = self._enqueue_alone(runs)
            else:
                hinted = self._copy(runs) if self._copies(runs) else self._enqueue(runs)
        except AlreadyThere:  # was one of them: it is left as it is
            hinted = self._enqueue(runs)
        if hinted:
            self.hints.took((time.monotonic() - began_at) / len(runs))

    def _copies(self, runs: Sequence[NewRun]) -> bool:
        return "RUNS_COPY" in self._statements and inserts.may_be_copied(runs)

    def _copy(self, runs: Sequence[NewRun]) -> bool:
        with self._transaction() as tx:
            inserts.copy(tx, runs)
            return self._hint(tx, runs, self.hints)

    def _enqueue(self, runs: Sequence[NewRun]) -> bool:
        with self._transaction() as tx:
            return self._insert(tx, runs, self.hints)

    def _enqueue_alone(self, runs: Sequence[NewRun]) -> bool:
        (parameters,) = new_run_parameters(runs)
        text = self.hints.take(runs)
        if text is None:
            self._connections.run_alone(self._statements["RUN_INSERT"], self._bind(parameters))
        else:
            hinted = {**parameters, "channel": self._channel, "text": text}
            self._connections.run_alone(self._statements["RUN_INSERT_HINTED"], self._bind(hinted))
        return text is not None

    # --- in that of others

    def enqueue_with(self, connection: Any, runs: Sequence[NewRun]) -> None:
        """On a caller's connection. What he commits is his affair."""
        tx = in_callers_transaction(connection, self._connections.driver, self._connections.execute_many)
        self._insert(self._session(tx), runs, self._callers_hints if tx.may_notify else NO_HINTS)

    async def enqueue_with_async(self, connection: Any, runs: Sequence[NewRun]) -> None:
        driver_connection = await async_driver_connection(connection, self._connections.driver)
        cursor = driver_connection.cursor()
        alike = "RUNS_INSERT" in self._statements and inserts.are_alike(runs)
        if not alike:
            parameters = [self._bind(each) for each in new_run_parameters(runs)]
            await _awaited(cursor.executemany(self._statements["RUN_INSERT"], parameters))
        for portion in inserts.insert_portions(runs) if alike else ():
            await _awaited(cursor.execute(self._statements["RUNS_INSERT"], self._bind(portion)))
        if may_notify(driver_connection) and (text := self._callers_hints.take(runs)) is not None:
            await _awaited(cursor.execute(self._statements["HINT"], {"channel": self._channel, "text": text}))

    def insert_one(self, tx: Session, run: NewRun) -> None:
        self._insert(tx, [run], self.hints)

    def _insert(self, tx: Session, runs: Sequence[NewRun], hints: HintRate) -> bool:
        """Return whether listeners are told, once it is committed."""
        inserts.insert(tx, runs)
        return self._hint(tx, runs, hints)

    @contextmanager
    def _transaction(self) -> Iterator[Session]:
        with self._connections.transaction() as tx:
            yield self._session(tx)

    def _hint(self, tx: Session, runs: Sequence[NewRun], hints: HintRate) -> bool:
        text = hints.take(runs)
        if text is not None:
            tx.run("HINT", channel=self._channel, text=text)
        return text is not None


async def _awaited(value: Any) -> Any:
    """A caller's connection may be synchronous too."""
    return await value if inspect.isawaitable(value) else value
