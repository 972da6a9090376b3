"""From options to a store."""

from __future__ import annotations

from durablestack.options import DurableStackOptions, StorageProvider

from .connections import Connections
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
    provider, target = options.effective_provider, options.connection_target()
    prefix = options.database_table_prefix or ""
    if target is None:
        return InMemoryStore()
    connections: Connections
    match provider:
        case StorageProvider.POSTGRES:
            begin = POSTGRES.begin.format(timeout_ms=int(timeout_seconds * 1000))
            connections = PostgresConnections(
                target, begin, connections_max=connections_max, timeout_seconds=timeout_seconds
            )
            return SqlStore(connections, POSTGRES, prefix)
        case StorageProvider.MY_SQL:
            connections = mysql_connections(
                target, MYSQL.begin, connections_max=connections_max, timeout_seconds=timeout_seconds
            )
            return SqlStore(connections, MYSQL, prefix)
        case StorageProvider.SQL_SERVER:
            connections = sqlserver_connections(
                target, SQLSERVER.begin, connections_max=connections_max, timeout_seconds=timeout_seconds
            )
            return SqlStore(connections, SQLSERVER, prefix)
        case StorageProvider.SQLITE:
            connections = SqliteConnections(
                target, SQLITE.begin, synchronous=options.sqlite.synchronous, timeout_seconds=timeout_seconds
            )
            return SqlStore(connections, SQLITE, prefix)
    raise AssertionError(f"{provider} keeps runs in memory, and has no connection")
