"""What a store needs of a connection, and how any DB-API cursor gives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

Row = tuple[Any, ...]


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
