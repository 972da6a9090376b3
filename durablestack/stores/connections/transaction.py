"""What a store needs of a connection, and how any DB-API cursor gives it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

Row = tuple[Any, ...]
ExecuteMany = Callable[[Any, str, Sequence[Mapping[str, Any]]], None]
"""What a cursor's `executemany` does, where that has a better way: cursor, statement, parameters."""


class Transaction(Protocol):
    def fetch(self, statement: str, parameters: Mapping[str, Any]) -> list[Row]: ...
    def run(self, statement: str, parameters: Mapping[str, Any]) -> None: ...
    def run_many(self, statement: str, parameters: Sequence[Mapping[str, Any]]) -> None: ...


class Connections(Protocol):
    driver: str
    """The module whose connections a caller may hand in."""

    def prepare(self) -> None:
        """Make what must be there before there can be tables."""

    def transaction(self) -> AbstractContextManager[Transaction]: ...
    def read(self) -> AbstractContextManager[Transaction]: ...
    def close(self) -> None: ...


class CursorTransaction:
    """A transaction by way of DB-API cursors.

    A cursor for each statement: where statements are sent without waiting for each other, a cursor that was used
    before would hand out the rows of the earlier one.
    """

    def __init__(self, new_cursor: Callable[[], Any], execute_many: ExecuteMany | None = None) -> None:
        self._new_cursor = new_cursor
        self._execute_many = execute_many or (lambda cursor, statement, rows: cursor.executemany(statement, rows))

    def fetch(self, statement: str, parameters: Mapping[str, Any]) -> list[Row]:
        cursor = self._new_cursor()
        cursor.execute(statement, parameters)
        return [tuple(row) for row in cursor.fetchall()]

    def run(self, statement: str, parameters: Mapping[str, Any]) -> None:
        self._new_cursor().execute(statement, parameters)

    def run_many(self, statement: str, parameters: Sequence[Mapping[str, Any]]) -> None:
        if parameters:
            self._execute_many(self._new_cursor(), statement, parameters)
