"""Databases to measure on: each started for the benchmark, with the durability that it promises by default.

    postgres    PostgreSQL with its defaults: fsync, full_page_writes and synchronous_commit are on
    mysql       MariaDB or MySQL, innodb_flush_log_at_trx_commit = 1, written through to the disk, no binary log
    sqlite      a file, write-ahead log, synchronous = full
    memory      the process itself

With durability "off" each of them promises nothing (PostgreSQL and MariaDB as the tests start them, SQLite with
synchronous = normal, which is the least that we offer). A server that is named in DURABLESTACK_TEST_POSTGRES or
DURABLESTACK_TEST_MYSQL is taken as it is.
"""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread
from msgspec import Struct
from rich.console import Console

from durablestack import DurableStack, RunStatus
from durablestack.stores.sql import SqlStore
from durablestack.supervisor.tree import Supervisor
from mariadb import MYSQL_DSN_VARIABLE, start_mariadb
from servers import POSTGRES_DSN_VARIABLE, Absent, Available, Server, ServerAbsent, start_postgres

JOBS = "benchmarks.bench_jobs"
READY_SECONDS = 60.0
DONE_SECONDS = 600.0
STORES = ("memory", "sqlite", "postgres", "mysql")

POSTGRES_DEFAULTS = {"fsync": "on", "full_page_writes": "on", "shared_buffers": "128MB"}
MARIADB_DEFAULTS = {"innodb-flush-log-at-trx-commit": "1", "innodb-flush-method": "fsync", "sync-binlog": "1"}


class Store(Struct, frozen=True, kw_only=True):
    """A database to measure on. `options` lead to it; `facts` are its version and what it promises."""

    name: str
    options: dict[str, Any]
    facts: dict[str, str] = {}
    server: Server | None = None

    @property
    def durable(self) -> bool:
        """Whether another process can use it too."""
        return "database_url" in self.options

    @property
    def server_pid(self) -> int | None:
        """The process of a server that is ours; the guard beside it does nothing."""
        return min(self.server.pids) if self.server is not None else None

    @contextmanager
    def stack(self, *targets: str, **options: Any) -> Iterator[DurableStack]:
        """A stack with tables of its own, which are dropped in the end. Its jobs: benchmarks.bench_jobs."""
        with fresh_stack(self.options, *targets, **options) as stack:
            yield stack
            drop_tables(stack)


@contextmanager
def open_stores(names: Sequence[str], durability: str, say: Callable[[str], None]) -> Iterator[list[Store]]:
    """Those of the stores that can be had here; `say` is told which cannot."""
    opened: list[Store] = []
    with ExitStack() as exits:
        folder = exits.enter_context(tempfile.TemporaryDirectory(prefix="durablestack-bench-"))
        for name in names:
            match _open(name, durability, Path(folder)):
                case Store() as store:
                    if store.server is not None:
                        exits.callback(store.server.close)
                    opened.append(_with_facts(store))
                case Absent(reason=reason):
                    say(f"not measured: {name}: {reason}")
        yield opened


def _open(name: str, durability: str, folder: Path) -> Store | Absent:
    durable = durability == "default"
    match name:
        case "memory":
            return Store(name="in memory", options={"storage_provider": "in_memory"})
        case "sqlite":
            url = f"sqlite:///{folder}/bench.db"
            synchronous = "full" if durable else "normal"
            return Store(name="SQLite", options={"database_url": url, "sqlite": {"synchronous": synchronous}})
        case "postgres":
            found = _serve(POSTGRES_DSN_VARIABLE, lambda: start_postgres(POSTGRES_DEFAULTS if durable else {}))
            title = "PostgreSQL"
        case "mysql":
            found = _serve(MYSQL_DSN_VARIABLE, lambda: start_mariadb(MARIADB_DEFAULTS if durable else {}))
            title = "MySQL"
        case _:
            return Absent(f"there are only {', '.join(STORES)}")
    if isinstance(found, Absent):
        return found
    return Store(name=title, options={"database_url": found.dsn}, server=found.server)


def _serve(variable: str, start: Callable[[], Server]) -> Available | Absent:
    if dsn := os.environ.get(variable):
        return Available(dsn)
    try:
        server = start()
    except ServerAbsent as absent:
        return Absent(str(absent))
    return Available(server.dsn, server)


def _with_facts(store: Store) -> Store:
    with store.stack() as stack:
        facts = stack.store.server_facts()
    facts.pop("server_version_num", None)
    title = "MariaDB" if "mariadb" in facts.get("version", "").lower() else store.name
    return Store(name=title, options=store.options, facts=facts, server=store.server)


@contextmanager
def fresh_stack(store: dict[str, Any], *targets: str, **options: Any) -> Iterator[DurableStack]:
    """A stack with tables of its own, which stay."""
    prefix = f"b{secrets.token_hex(4)}_"
    with DurableStack(*(targets or (JOBS,)), database_table_prefix=prefix, **store, **options) as stack:
        stack._warned_of_memory = True  # that nobody else has our memory, we know
        stack.migrate()
        yield stack


def drop_tables(stack: DurableStack) -> None:
    """Nothing of one measurement is left to be vacuumed during the next."""
    store = stack.store
    if isinstance(store, SqlStore):
        with store._connections.transaction() as tx:
            for table in ("job_run_attempts", "job_runs", "jobs", "workers", "schema_migrations"):
                tx.run(f"drop table if exists {store.dialect.quoted(f'{store.prefix}durable_stack_{table}')}", {})


def drain_seconds(stack: DurableStack) -> float:
    """From the first claim to the last outcome recorded, by the database's clock."""
    store = stack.store
    if isinstance(store, SqlStore):
        table = store.dialect.quoted(f"{store.prefix}durable_stack_job_runs")
        with store._connections.read() as tx:
            (row,) = tx.fetch(f"select min(started_at_utc), max(completed_at_utc) from {table}", {})
        began, ended = map(store.dialect.to_datetime, row)
    else:
        runs = stack.store._tables.runs.values()  # type: ignore[attr-defined]  # the in-memory store's own
        began = min((run.started_at for run in runs if run.started_at), default=None)
        ended = max((run.completed_at for run in runs if run.completed_at), default=None)
    if began is None or ended is None:
        raise ValueError("no run has ended")
    return (ended - began).total_seconds()


async def all_ready(supervisor: Supervisor) -> None:
    """Wait until each child of a supervisor in this process is there to execute runs.

    Raises:
        TimeoutError: that takes too long.
    """
    with anyio.fail_after(READY_SECONDS):
        while any(executor.pid is None for executor in supervisor.pool.executors):
            await anyio.sleep(0.05)


async def all_succeeded(stack: DurableStack, runs: int) -> None:
    """Wait until so many runs have succeeded.

    Raises:
        TimeoutError: that takes too long.
    """
    with anyio.fail_after(DONE_SECONDS):
        while (await to_thread.run_sync(stack.queries.count_runs))[RunStatus.SUCCEEDED] < runs:
            await anyio.sleep(0.5)  # seldom: what is measured is timed by the database, not by this look


# --- for scripts that do not go through the harness


@contextmanager
def stores(console: Console) -> Iterator[dict[str, dict[str, Any]]]:
    """Each store that can be had here: its name, and the options that lead to it."""
    with open_stores(STORES, "default", lambda text: console.print(text, style="yellow")) as opened:
        for store in opened:
            if store.facts:
                console.print(f"{store.name}:", ", ".join(f"{name} = {fact}" for name, fact in store.facts.items()))
        yield {store.name: store.options for store in opened}


def describe_machine(console: Console) -> None:
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    console.print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, load before: {load}")
