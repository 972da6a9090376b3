"""The caller's own connection: the driver's, or what SQLAlchemy or Django wrap round it."""

from __future__ import annotations

import inspect
from typing import Any

from durablestack.errors import StoreError

from .transaction import CursorTransaction, ExecuteMany


def in_callers_transaction(connection: Any, driver: str, execute_many: ExecuteMany | None = None) -> CursorTransaction:
    """The caller's own transaction: it is neither committed nor rolled back here.

    Raises:
        StoreError: the connection is not one of the store's driver, or is asynchronous.
    """
    if inspect.iscoroutinefunction(getattr(connection, "commit", None)):
        raise StoreError(
            f"connection= is a {type(connection).__module__}.{type(connection).__qualname__}, "
            "which is asynchronous; hand it to the asynchronous client"
        )
    connection = driver_connection(connection, driver)
    return CursorTransaction(connection.cursor, execute_many, may_notify=may_notify(connection))


def may_notify(connection: Any) -> bool:
    """Whether the transaction of a driver's connection can be committed with a notification in it."""
    return getattr(connection, "_tpc", None) is None  # PostgreSQL prepares none that has one


def driver_connection(connection: Any, driver: str) -> Any:
    """The driver's own connection in what a caller hands in: it, or SQLAlchemy's or Django's wrapper round it.

    Raises:
        StoreError: there is none of this driver in it.
    """
    while not _is_of(driver, connection):
        if _waits_to_begin(connection):
            connection.begin()
        connection = _opened(connection, _wrapped(connection), driver)
    return connection


async def async_driver_connection(connection: Any, driver: str) -> Any:
    """The same, where it may have to be awaited: in SQLAlchemy's asynchronous session or connection.

    Raises:
        StoreError: there is none of this driver in it.
    """
    while not _is_of(driver, connection):
        if _waits_to_begin(connection):
            await _awaited(connection.begin())
        connection = _opened(connection, await _awaited(_wrapped(connection)), driver)
    return connection


def _is_of(driver: str, connection: Any) -> bool:
    return any(kind.__module__.partition(".")[0] == driver for kind in type(connection).__mro__)


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _waits_to_begin(connection: Any) -> bool:
    """SQLAlchemy's connection begins when it executes, and commits only what it has begun."""
    return hasattr(connection, "exec_driver_sql") and not connection.in_transaction()


def _wrapped(connection: Any) -> Any:
    for name in ("get_raw_connection", "driver_connection", "connection"):
        wrapped = getattr(connection, name, None)
        if wrapped is not None:
            return wrapped() if inspect.ismethod(wrapped) else wrapped  # a connection may be callable: sqlite3's is
    return None


def _opened(connection: Any, wrapped: Any, driver: str) -> Any:
    if wrapped is None or wrapped is connection:  # psycopg's is its own `connection`
        raise StoreError(
            f"connection= is a {type(connection).__module__}.{type(connection).__qualname__}; "
            f"this store takes connections of {driver}, or a SQLAlchemy connection or session over one"
        )
    return wrapped
