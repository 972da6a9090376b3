"""From options to a store."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from durablestack.options import DurableStackOptions, StorageProvider

from .connections import Connections
from .connections.forks import PerProcess
from .connections.mysql import mysql_connections
from .connections.postgres import PostgresConnections
from .connections.sqlite import SqliteConnections
from .connections.sqlserver import sqlserver_connections
from .contract import Store
from .dialects import MYSQL, POSTGRES, SQLITE, SQLSERVER
from .memory import InMemoryStore
from .sql import SqlStore


def open_store(
    options: DurableStackOptions, *, connections_max: int = 2, timeout_seconds: float | None = None
) -> Store:
    """A store for the provider of the options. It connects when it is first used.

    Raises:
        OptionsError: the provider's driver is not installed, or does not take what the connection string says.
    """
    timeout_seconds = timeout_seconds or options.operation_timeout_seconds
    connect: Callable[..., Connections]
    provider, target = options.effective_provider, options.connection_target()
    prefix = options.database_table_prefix or ""
    if target is None:
        return InMemoryStore()
    match provider:
        case StorageProvider.POSTGRES:
            # the server is to give up before we do: what it says of a transaction is certain, our own time-out is not
            begin = POSTGRES.begin.format(timeout_ms=int(timeout_seconds * 800))
            dialect, connect = POSTGRES, partial(PostgresConnections, target, begin, connections_max=connections_max)
        case StorageProvider.MY_SQL:
            dialect, connect = MYSQL, partial(mysql_connections, target, MYSQL.begin, connections_max=connections_max)
        case StorageProvider.SQL_SERVER:
            dialect = SQLSERVER
            connect = partial(sqlserver_connections, target, SQLSERVER.begin, connections_max=connections_max)
        case StorageProvider.SQLITE:
            synchronous = options.sqlite.synchronous
            dialect, connect = SQLITE, partial(SqliteConnections, target, SQLITE.begin, synchronous=synchronous)
        case StorageProvider.IN_MEMORY:
            raise AssertionError(f"{provider} has no connection")
    connections = PerProcess(partial(connect, timeout_seconds=timeout_seconds))
    return SqlStore(connections, dialect, prefix, wake_on_enqueue=options.wake_on_enqueue)
