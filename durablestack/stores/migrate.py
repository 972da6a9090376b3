"""Creates and updates the tables: frozen SQL files, applied in order, under the database's own lock."""

from __future__ import annotations

import re
import zlib
from importlib.resources import files

from durablestack.errors import SchemaError, StoreUnavailable

from .connections import Connections, Transaction
from .dialects import Dialect
from .statements import TEMPLATES

SCHEMA_VERSION = 3
COMPATIBLE_FROM = {1: 1, 2: 1, 3: 1}
"""For each version of the schema, the oldest version of this library's schema that can still work with it."""

_VERSIONS_COLUMNS = """(
    version integer not null primary key,
    compatible_from integer not null,
    applied_at_utc {timestamp} not null
)"""


def migrate(connections: Connections, dialect: Dialect, prefix: str) -> list[int]:
    """Apply what is missing; return the versions applied.

    All of it or nothing, but for MySQL, where each statement commits by itself and is repeated after a failure.
    Any number of processes may do this at once: one works, the others wait and find it done.
    """
    connections.prepare()
    if _current_version(connections, dialect, prefix) >= SCHEMA_VERSION:
        return []  # no DDL, no lock, no rights needed for either
    key = zlib.crc32(f"durablestack {prefix}".encode())
    with connections.transaction() as tx:
        if tx.fetch(dialect.migration_lock.format(key=key), {})[0][-1] != 1:
            raise StoreUnavailable("another process has been creating or updating the tables for too long")
        tx.run(_create_versions(dialect, prefix), {})
        applied = {version for version, _ in tx.fetch(_rendered(dialect, prefix, "MIGRATIONS_SELECT"), {})}
        missing = [version for version in range(1, SCHEMA_VERSION + 1) if version not in applied]
        for version in missing:
            _apply(tx, dialect, prefix, version)
        if dialect.migration_unlock:
            tx.fetch(dialect.migration_unlock.format(key=key), {})
    verify(connections, dialect, prefix)
    return missing


def _create_versions(dialect: Dialect, prefix: str) -> str:
    migrations = dialect.quoted(f"{prefix}durable_stack_schema_migrations")
    return dialect.create_table.format(migrations) + _VERSIONS_COLUMNS.format(timestamp=dialect.timestamp)


def verify(connections: Connections, dialect: Dialect, prefix: str) -> None:
    """Raise SchemaError unless the tables are there, in a version that this code can work with."""
    versions = _versions(connections, dialect, prefix)
    current = max(versions, default=0)
    if current < SCHEMA_VERSION:
        tables = f"tables {prefix}durable_stack_*"
        older = f"the {tables} are of version {current}, and this version needs {SCHEMA_VERSION}"
        raise SchemaError(
            f"{older if current else f'there are no {tables}'}: run `durablestack migrate`, with the same --app or "
            "--database-url"
        )
    if versions[current] > SCHEMA_VERSION:
        raise SchemaError(
            f"the tables {prefix}durable_stack_* are of version {current}, made by a newer version of durablestack; "
            f"it works with version {versions[current]} and later, this is {SCHEMA_VERSION}: update durablestack"
        )
    with connections.read() as tx:
        for probe in ("RUNS_PROBE", "JOBS_PROBE", "ATTEMPTS_PROBE", "WORKERS_PROBE"):
            tx.fetch(_rendered(dialect, prefix, probe), {})


def _current_version(connections: Connections, dialect: Dialect, prefix: str) -> int:
    return max(_versions(connections, dialect, prefix), default=0)


def _versions(connections: Connections, dialect: Dialect, prefix: str) -> dict[int, int]:
    try:
        with connections.read() as tx:
            return dict(tx.fetch(_rendered(dialect, prefix, "MIGRATIONS_SELECT"), {}))
    except SchemaError:  # no such table: nothing has been applied yet
        return {}


def _apply(tx: Transaction, dialect: Dialect, prefix: str, version: int) -> None:
    for statement in statements_of(dialect, prefix, version):
        tx.run(statement, {})
    tx.run(
        _rendered(dialect, prefix, "MIGRATION_INSERT"),
        dialect.bind({"version": version, "compatible_from": COMPATIBLE_FROM[version]}),
    )


def _rendered(dialect: Dialect, prefix: str, name: str) -> str:
    return dialect.render(name, TEMPLATES[name], prefix)


def statements_of(dialect: Dialect, prefix: str, version: int) -> list[str]:
    """The file of one version. `{prefix}name` is a name with its prefix, quoted; `{prefix}` alone is the prefix."""
    folder = files("durablestack.stores").joinpath("migrations", dialect.migrations)
    file = next(file for file in folder.iterdir() if file.name.startswith(f"{version:03}_"))
    script = re.sub(r"--[^\n]*", "", file.read_text(encoding="utf-8"))
    script = re.sub(r"\{prefix\}(\w+)", lambda found: dialect.quoted(prefix + found[1]), script)
    script = script.replace("{prefix}", prefix)
    return [statement for statement in map(str.strip, script.split(";")) if statement]
