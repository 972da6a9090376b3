"""From options to a store."""

from __future__ import annotations

from durablestack.errors import OptionsError
from durablestack.options import DurableStackOptions, StorageProvider

from .connections import Connections
from .connections.postgres import PostgresConnections
from .connections.sqlite import SqliteConnections
from .contract import Store
from .dialects import POSTGRES, SQLITE
from .memory import InMemoryStore
from .sql import SqlStore


def open_store(
    options: DurableStackOptions, *, connections_max: int = 2, timeout_seconds: float | None = None
) -> Store:
    """A store for the provider of the options. It connects when it is first used.

    Raises:
        OptionsError: the provider is not available here, or its driver is not installed.
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
        case StorageProvider.SQLITE:
            connections = SqliteConnections(
                target, SQLITE.begin, synchronous=options.sqlite.synchronous, timeout_seconds=timeout_seconds
            )
            return SqlStore(connections, SQLITE, prefix)
    raise OptionsError(
        f"storage_provider = {provider.value!r} is not available in this version; allowed: in_memory, postgres, sqlite"
    )
