"""How many runs per second can be enqueued: one by one, many at once, and in a transaction of the caller's own?

    python -m benchmarks.enqueue [--runs 20000] [--singles 500] [--payload-bytes 50] [--stores ...]

"one by one": each with a transaction of its own. "many": `enqueue_many`, arguments and ids included. "caller's": the
same through a connection of the caller, who commits. "COPY": the same rows, ready in PostgreSQL's binary form, copied
into the table, which is its fastest way to load them; "share" is what "many" reaches of it. "CPU" is that of this
process in "many".
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any
from urllib.parse import unquote, urlsplit

import psycopg
import pymysql
import rich_click as click

from benchmarks.bench import Store
from benchmarks.bench_jobs import Stamp, stamp
from benchmarks.harness import Figures, Harness, benchmark
from durablestack import DurableStack
from durablestack.stores.inserts import copy_portions
from durablestack.stores.sql import SqlStore

UNITS = {
    "one by one": "runs/s",
    "many": "runs/s",
    "caller's": "runs/s",
    "COPY": "runs/s",
    "share": "%",
    "CPU": "us/run",
}


@benchmark(units=UNITS, repeat=5)
@click.option("--runs", default=20_000, show_default=True, help="Runs that are enqueued at once.")
@click.option("--singles", default=500, show_default=True, help="Runs that are enqueued one by one.")
@click.option("--payload-bytes", default=50, show_default=True, help="The length of the text in their arguments.")
def main(harness: Harness, runs: int, singles: int, payload_bytes: int) -> None:
    """Enqueue, and execute nothing."""
    for store in harness.stores:
        harness.case({"store": store.name}, enqueued, store, runs, singles, Stamp("x" * payload_bytes, 0.0))
    harness.measure()


def enqueued(store: Store, runs: int, singles: int, args: Stamp) -> Figures:
    figures: dict[str, float] = {}
    with store.stack() as stack:
        stack.client.enqueue(stamp, args)  # connects
        figures["one by one"] = rate(singles, lambda: one_by_one(stack, singles, args))
    with store.stack() as stack:
        stack.client.enqueue(stamp, args)
        cpu_began = time.process_time()
        figures["many"] = rate(runs, lambda: stack.client.enqueue_many(stamp, [args] * runs))
        figures["CPU"] = (time.process_time() - cpu_began) / runs * 1e6
    if not store.durable:
        return figures
    with store.stack() as stack, closing(connected(store.options["database_url"])) as connection:
        figures["caller's"] = rate(runs, lambda: in_a_transaction(stack, connection, [args] * runs))
    if isinstance(connection, psycopg.Connection):
        with store.stack() as stack, psycopg.connect(store.options["database_url"]) as connection:
            assert isinstance(stack.store, SqlStore)
            dialect = stack.store.dialect
            statement = dialect.render("RUNS_COPY", dialect.own["RUNS_COPY"], stack.store.prefix)
            new_runs = stack.client.new_runs(stamp, [args] * runs, None)
            rows = b"".join(copy_portions(new_runs, stack.store.now(), "utf-8"))
            figures["COPY"] = rate(runs, lambda: copied(connection, statement, rows))
            figures["share"] = figures["many"] / figures["COPY"] * 100
    return figures


def rate(runs: int, work: Callable[[], Sequence[Any] | None]) -> float:
    began = time.perf_counter()
    work()
    return runs / (time.perf_counter() - began)


def one_by_one(stack: DurableStack, runs: int, args: Stamp) -> None:
    for _ in range(runs):
        stack.client.enqueue(stamp, args)


def in_a_transaction(stack: DurableStack, connection: Any, many_args: Sequence[Stamp]) -> None:
    stack.client.enqueue_many(stamp, many_args, connection=connection)
    connection.commit()


def copied(connection: psycopg.Connection[Any], statement: str, rows: bytes) -> None:
    with connection.cursor() as cursor, cursor.copy(statement.encode()) as copy:
        copy.write(rows)
    connection.commit()


def connected(url: str) -> Any:
    """The driver's own connection, as an application has it."""
    place = urlsplit(url)
    match place.scheme:
        case "sqlite":
            return sqlite3.connect(url.removeprefix("sqlite:///"))
        case "mysql":
            return pymysql.connect(
                host=place.hostname,
                port=place.port or 3306,
                user=unquote(place.username or ""),
                password=unquote(place.password or ""),
                database=place.path.removeprefix("/"),
            )
        case _:
            return psycopg.connect(url)


if __name__ == "__main__":
    main()
