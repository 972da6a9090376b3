"""Connections to SQL Server, by mssql-python, or by pymssql where a connection string says driver=pymssql."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from durablestack.errors import OptionsError, SchemaError, StoreError, StoreUnavailable
from durablestack.options import ConnectionTarget

from .pooled import Driver, PooledConnections, is_final_kind
from .sqlserver_options import odbc_connection_string, pymssql_keywords

_CONNECT_WITHIN_SECONDS = 5.0
_SCHEMA = {207, 208}  # no such column, no such table
_DUPLICATE = {2601, 2627}  # only who lost the race for one id meets it: the row is there when it comes again
# Bugs, bad data and missing rights that pymssql files under OperationalError: they will fail the same way again.
# All else may pass: 1205 deadlock, 1222 lock, 3960 conflict, 3906 read-only, 40613 and its like on Azure, dead lines.
_FINAL = {229, 230, 241, 242, 245, 257, 262, 650, 1934, 2628, 8114, 8115, 8152}
# mssql-python tells no numbers, so that the words have to do; these are all wrapped as errors of the statement
_PASSING_TEXTS = (
    "lock request time out",
    "deadlock",
    "serialization failure",
    "timeout expired",
    "snapshot isolation transaction aborted",
    "is not currently available",
    "currently busy",
    "not enough resources",
    "resource id",
    "cannot open database",
    "read-only",
    "shutdown is in progress",
    "in the middle of a restore",
    "communication link failure",
)
# The first line is what indexes with a condition ask of each session that writes. An error ends the transaction, not
# its statement alone; and counts of rows would be results of their own, which nobody here reads.
_SETTINGS = (
    "set quoted_identifier on; set ansi_nulls on; set ansi_padding on; set ansi_warnings on; set arithabort on; "
    "set concat_null_yields_null on; set numeric_roundabort off; "
    "set xact_abort on; set nocount on; set implicit_transactions off"
)
_SCHEMA_TEXTS = ("invalid object name", "invalid column name")
_DUPLICATE_TEXTS = ("primary key constraint", "unique key constraint", "duplicate key")


class MssqlPython:
    """Microsoft's own driver, as a pool needs it."""

    module = "mssql_python"

    def __init__(self, target: ConnectionTarget) -> None:
        try:
            mssql_python: Any = import_module("mssql_python")
        except ImportError as error:
            raise OptionsError(
                f"SQL Server needs the driver mssql-python ({error}); install it with: "
                "pip install 'durablestack[sqlserver]'"
            ) from None
        self._mssql = mssql_python
        self.place = target.describe()
        self.error: type[Exception] = mssql_python.exceptions.Exception
        self._connection_string = odbc_connection_string(target)

    def connect(self, timeout_seconds: float) -> Any:
        within = math.ceil(min(timeout_seconds, _CONNECT_WITHIN_SECONDS))
        connection = self._mssql.connect(self._connection_string, autocommit=True, timeout=within)
        self.limit(connection, timeout_seconds)
        return _set_up(self, connection, timeout_seconds)

    def limit(self, connection: Any, seconds: float) -> None:
        connection.timeout = max(1, math.ceil(seconds))

    def execute_many(self, cursor: Any, statement: str, parameters: Sequence[Mapping[str, Any]]) -> None:
        cursor.executemany(statement, parameters)

    def may_be_done(self, error: Exception) -> bool:
        return True  # it tells no numbers; and nothing of ours is decided at the commit, but whether it arrives

    def translated(self, text: str, error: Exception) -> StoreError:
        return translated_by_words(text, error)


def translated_by_words(text: str, error: Exception) -> StoreError:
    """What an error of mssql-python means."""
    said = text.lower()
    if "failed to load the driver" in said:
        return StoreError(f"{text}; on Debian and Ubuntu: apt-get install libltdl7 libkrb5-3 libgssapi-krb5-2")
    if any(words in said for words in _SCHEMA_TEXTS):
        return _schema_error(text)
    if any(words in said for words in (*_PASSING_TEXTS, *_DUPLICATE_TEXTS)):
        return StoreUnavailable(text)
    return StoreError(text) if is_final_kind(error) else StoreUnavailable(text)


class Pymssql:
    """A free driver that needs nothing of the system, as a pool needs it."""

    module = "pymssql"

    def __init__(self, target: ConnectionTarget) -> None:
        try:
            pymssql: Any = import_module("pymssql")
        except ImportError as error:
            raise OptionsError(
                f"driver=pymssql needs the driver pymssql ({error}); install it with: pip install pymssql"
            ) from None
        self._pymssql = pymssql
        self.place = target.describe()
        self.error: type[Exception] = pymssql.Error
        self._keywords = pymssql_keywords(target)

    def connect(self, timeout_seconds: float) -> Any:
        within = math.ceil(min(timeout_seconds, _CONNECT_WITHIN_SECONDS))
        connection = self._pymssql.connect(
            **self._keywords, login_timeout=within, timeout=max(1, math.ceil(timeout_seconds))
        )
        return _set_up(self, connection, timeout_seconds)

    def limit(self, connection: Any, seconds: float) -> None:
        return  # the time that it was connected with holds for each statement

    def execute_many(self, cursor: Any, statement: str, parameters: Sequence[Mapping[str, Any]]) -> None:
        cursor.executemany(statement, parameters)

    def may_be_done(self, error: Exception) -> bool:
        return True  # nothing of ours is decided at the commit, but whether it arrives

    def translated(self, text: str, error: Exception) -> StoreError:
        return translated_by_number(text, error)


def translated_by_number(text: str, error: Exception) -> StoreError:
    """What an error of pymssql means."""
    number = _number(error)
    if number in _SCHEMA:
        return _schema_error(text)
    if number in _DUPLICATE:
        return StoreUnavailable(text)
    final = number in _FINAL or is_final_kind(error)
    return StoreError(text) if final else StoreUnavailable(text)


def sqlserver_connections(
    target: ConnectionTarget, begin: str, *, connections_max: int, timeout_seconds: float
) -> PooledConnections:
    """By the driver that the connection string names."""
    driver: Driver
    match target.parameters.get("driver", "mssql-python").lower().replace("_", "-"):
        case "pymssql":
            driver = Pymssql(target)
        case "mssql-python":
            driver = MssqlPython(target)
        case _:
            raise OptionsError(f"{target.describe()}: driver is neither mssql-python nor pymssql")
    return PooledConnections(driver, begin, connections_max=connections_max, timeout_seconds=timeout_seconds)


def _set_up(driver: Driver, connection: Any, timeout_seconds: float) -> Any:
    try:
        settings = f"set transaction isolation level read committed; set lock_timeout {int(timeout_seconds * 1000)}"
        connection.cursor().execute(f"{_SETTINGS}; {settings}")
        _check_json(driver, connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _check_json(driver: Driver, connection: Any) -> None:
    cursor = connection.cursor()
    try:
        cursor.execute("select count(*) from openjson('[1]')")
        cursor.fetchall()
    except driver.error as error:
        raise StoreError(
            f"{driver.place}: it takes SQL Server 2016 or later, and a database of compatibility level 130 or higher"
        ) from error


def _schema_error(text: str) -> SchemaError:
    return SchemaError(f"{text}; `durablestack migrate` makes and updates the tables")


def _number(error: Exception) -> int:
    """Of an error at a statement the first part, of one at connecting the first part of the first part."""
    first = error.args[0] if error.args else 0
    if isinstance(first, tuple) and first:
        first = first[0]
    return first if isinstance(first, int) else 0
