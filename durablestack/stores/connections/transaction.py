"""What a store needs of a connection, and how any DB-API cursor gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from durablestack.errors import StoreError

from ..steps import Result, Waits

if TYPE_CHECKING:
    from ..contract import Listener

Row = tuple[Any, ...]


class AlreadyThere(StoreError):
    """A row with this key is."""


ExecuteMany = Callable[[Any, str, Sequence[Mapping[str, Any]]], None]
"""What a cursor's `executemany` does, where that has a better way: cursor, statement, parameters."""


class Transaction(Protocol):
    def ask(self, statement: str, parameters: Mapping[str, Any]) -> Callable[[], list[Row]]:
        """Send a statement; its rows are there when they are asked for, with psycopg after the commit too."""

    def fetch(self, statement: str, parameters: Mapping[str, Any]) -> list[Row]: ...
    def run(self, statement: str, parameters: Mapping[str, Any]) -> None: ...

    def count(self, statement: str, parameters: Mapping[str, Any]) -> int:
        """Run a statement; return how many rows it has found to write to."""

    def run_many(self, statement: str, parameters: Sequence[Mapping[str, Any]]) -> None: ...

    def copy(self, statement: str, portions: Callable[[str], Iterable[bytes]]) -> None:
        """Load rows, in its own form, where the database has a statement for it; AlreadyThere if one of them is.

        `portions` makes them, and is told the encoding of text.
        """


class Connections(Protocol):
    driver: str
    """The module whose connections a caller may hand in."""

    execute_many: ExecuteMany | None
    """What is done in their transactions too."""

    def prepare(self) -> None:
        """Make what must be there before there can be tables."""

    def transaction(self) -> AbstractContextManager[Transaction]: ...

    def waits_of_transaction(self, say: Callable[[Transaction], Result]) -> Waits[Result] | None:
        """A transaction for who waits elsewhere: `say` may only `ask` and `run`, and what it returns may tell the rows
        once all waits are over. None where there is no such way, or it would have to wait for a connection."""

    def run_alone(self, statement: str, parameters: Mapping[str, Any]) -> None:
        """A transaction of one statement, whose rows nobody asks for; short enough to do without a `begin`."""

    def read(self) -> AbstractContextManager[Transaction]: ...

    def listen(self, channel: str) -> Listener | None:
        """A way to hear that somebody has written, told by that name or seen otherwise; None where there is none."""

    def close(self) -> None: ...


class CursorTransaction:
    """A transaction by way of DB-API cursors.

    A cursor for each statement: where statements are sent without waiting for each other, a cursor that was used
    before would hand out the rows of the earlier one.
    """

    def __init__(
        self,
        new_cursor: Callable[[], Any],
        execute_many: ExecuteMany | None = None,
        *,
        may_notify: bool = True,
    ) -> None:
        self.may_notify = may_notify
        self._new_cursor = new_cursor
        self._execute_many = execute_many or (lambda cursor, statement, rows: cursor.executemany(statement, rows))

    def ask(self, statement: str, parameters: Mapping[str, Any]) -> Callable[[], list[Row]]:
        cursor = self._new_cursor()
        cursor.execute(statement, parameters)
        return cache(lambda: [tuple(row) for row in cursor.fetchall()])

    def fetch(self, statement: str, parameters: Mapping[str, Any]) -> list[Row]:
        cursor = self._new_cursor()
        cursor.execute(statement, parameters)
        return [tuple(row) for row in cursor.fetchall()]

    def run(self, statement: str, parameters: Mapping[str, Any]) -> None:
        self._new_cursor().execute(statement, parameters)

    def count(self, statement: str, parameters: Mapping[str, Any]) -> int:
        cursor = self._new_cursor()
        cursor.execute(statement, parameters)
        return int(cursor.rowcount)

    def run_many(self, statement: str, parameters: Sequence[Mapping[str, Any]]) -> None:
        if parameters:
            self._execute_many(self._new_cursor(), statement, parameters)

    def copy(self, statement: str, portions: Callable[[str], Iterable[bytes]]) -> None:
        cursor = self._new_cursor()
        with cursor.copy(statement) as copy:
            for portion in portions(cursor.connection.info.encoding):
                copy.write(portion)
