"""A transaction, spoken to in our own words: statements by their names, parameters as Python has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .connections import Transaction
from .connections.transaction import Row
from .dialects import Dialect


class Session:
    def __init__(self, tx: Transaction, statements: Mapping[str, str], dialect: Dialect) -> None:
        self._tx = tx
        self._statements = statements
        self._dialect = dialect

    def fetch(self, statement: str, /, **parameters: Any) -> list[Row]:
        return self._tx.fetch(self._statements[statement], self._dialect.bind(parameters))

    def run(self, statement: str, /, **parameters: Any) -> None:
        self._tx.run(self._statements[statement], self._dialect.bind(parameters))

    def run_many(self, statement: str, parameters: Iterable[Mapping[str, Any]], /) -> None:
        self._tx.run_many(self._statements[statement], [self._dialect.bind(each) for each in parameters])
