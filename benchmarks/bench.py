"""What the benchmark scripts share: databases to measure on, and what else the machine is doing."""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import psycopg
from anyio import to_thread
from rich.console import Console

from durablestack import DurableStack, RunStatus

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from mariadb import provide_mysql
from servers import Absent, Available, provide_postgres

JOBS = "benchmarks.bench_jobs"


@contextmanager
def stores(console: Console) -> Iterator[dict[str, dict[str, Any]]]:
    """Each store that can be had here: its name, and the options that lead to it."""
    found, found_mysql = provide_postgres(), provide_mysql()
    with tempfile.TemporaryDirectory(prefix="durablestack-bench-") as folder:
        named: dict[str, dict[str, Any]] = {
            "in memory": {"storage_provider": "in_memory"},
            "SQLite": {"database_url": f"sqlite:///{folder}/bench.db"},
        }
        match found:
            case Available(dsn=dsn):
                named["PostgreSQL"] = {"database_url": dsn}
                with psycopg.connect(dsn) as connection:
                    for setting in ("fsync", "synchronous_commit"):
                        row = connection.execute(f"show {setting}").fetchone()
                        console.print(f"PostgreSQL: {setting} = {row[0] if row else '?'}")
            case Absent(reason=reason):
                console.print(f"not measured: PostgreSQL: {reason}", style="yellow")
        match found_mysql:
            case Available(dsn=dsn):
                named["MySQL"] = {"database_url": dsn}
                with DurableStack(JOBS, database_url=dsn) as stack:
                    facts = stack.store.server_facts()
                settings = ("version", "innodb_flush_log_at_trx_commit", "log_bin", "sync_binlog")
                console.print("MySQL:", ", ".join(f"{name} = {facts[name]}" for name in settings))
            case Absent(reason=reason):
                console.print(f"not measured: MySQL: {reason}", style="yellow")
        try:
            yield named
        finally:
            for each in (found, found_mysql):
                if isinstance(each, Available) and each.server is not None:
                    each.server.close()


@contextmanager
def fresh_stack(store: dict[str, Any], **options: Any) -> Iterator[DurableStack]:
    """A stack with tables of its own."""
    with DurableStack(JOBS, database_table_prefix=f"b{secrets.token_hex(4)}_", **store, **options) as stack:
        stack.migrate()
        yield stack


async def all_succeeded(stack: DurableStack, runs: int) -> None:
    """Wait until so many runs have succeeded."""
    while (await to_thread.run_sync(stack.queries.count_runs))[RunStatus.SUCCEEDED] < runs:
        await anyio.sleep(0.5)  # seldom: what is measured is timed by the database, not by this look


def describe_machine(console: Console) -> None:
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    console.print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, load before: {load}")
