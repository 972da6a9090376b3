"""A transaction, spoken to in our own words: statements by their names, parameters as Python has them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from .connections import Transaction
from .connections.transaction import Row
from .dialects import Dialect
from .rows import Rows

Answer = Callable[[], list[Row]]
"""The rows of a statement that was sent."""


class Session:
    def __init__(self, tx: Transaction, statements: Mapping[str, str], dialect: Dialect, rows: Rows) -> None:
        self._tx = tx
        self._statements = statements
        self.dialect = dialect
        self.rows = rows

    def knows(self, statement: str) -> bool:
        """Whether the database has it."""
        return statement in self._statements

    def now(self) -> datetime:
        return self.rows.instant(self.fetch("CLOCK_SELECT")[0][0])

    def ask(self, statement: str, /, **parameters: Any) -> Answer:
        return self._tx.ask(self._statements[statement], self.dialect.bind(parameters))

    def fetch(self, statement: str, /, **parameters: Any) -> list[Row]:
        return self._tx.fetch(self._statements[statement], self.dialect.bind(parameters))

    def run(self, statement: str, /, **parameters: Any) -> None:
        self._tx.run(self._statements[statement], self.dialect.bind(parameters))

    def count(self, statement: str, /, **parameters: Any) -> int:
        return self._tx.count(self._statements[statement], self.dialect.bind(parameters))

    def copy(self, statement: str, portions: Callable[[str], Iterable[bytes]], /) -> None:
        self._tx.copy(self._statements[statement], portions)

    def run_many(self, statement: str, parameters: Iterable[Mapping[str, Any]], /) -> None:
        self._tx.run_many(self._statements[statement], [self.dialect.bind(each) for each in parameters])
