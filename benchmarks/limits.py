"""What is the most that could be had: claim and completion by hand-written SQL on our tables, and pipes to children?

    python -m benchmarks.limits [--sizes 1,10,50,100,250,500] [--children 10] [--windows 1,4,16] [--stores ...]

"by hand" is one client that completes the runs of its last claim and claims the next, in one transaction, on the
tables and indexes that we have, without a check, an event or an object that is not needed. "exchange" is the store's
own, which fences, decides and makes runs of rows; "share" is what it reaches of the other. The client's CPU time is
shown for both. In memory there is nothing to be written by hand.

"pipe": one process answers children that do nothing but send back what they get; so many frames are under way to each.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import psycopg
import pymysql
import rich_click as click

from benchmarks.bench import Store
from benchmarks.harness import Figures, Harness, benchmark
from durablestack.ids import new_run_ids
from durablestack.runs import NewRun, Outcome, Succeeded
from durablestack.stores.contract import Claim
from durablestack.stores.sql import SqlStore

JOB = "no-op"
LEASE_DURATION = timedelta(seconds=30)
FRAME_BYTES = 64
PIPE_SECONDS = 1.0

Exchange = Callable[[Sequence[Any], int], list[Any]]
"""Completes the runs with these ids, and claims so many more; returns the ids of the latter."""

POSTGRES = """
with done as (
  update {runs} as run
  set status = 'succeeded', completed_at_utc = clock_timestamp(), last_token = lease_token, lease_owner = null,
      lease_token = null, lease_until_utc = null
  from unnest(%(ids)s::uuid[]) as ended (id)
  where run.id = ended.id and run.lease_token is not null
), due as materialized (
  select id from {runs} where status = 'pending' and scheduled_for_utc <= (select clock_timestamp())
  order by scheduled_for_utc, id limit %(size)s for update skip locked
)
update {runs} as run
set status = 'leased', attempt = attempt + 1, lease_owner = 'by hand', lease_token = %(token)s,
    lease_until_utc = clock_timestamp() + interval '30 s', started_at_utc = clock_timestamp()
from due where run.id = due.id
returning run.id, run.job_name, run.payload, run.attempt, run.max_attempts
"""
POSTGRES_SETTINGS = ("enable_seqscan", "enable_bitmapscan", "enable_hashjoin", "enable_mergejoin")

SQLITE_NOW = "strftime('%Y-%m-%d %H:%M:%f000', 'now')"
SQLITE_COMPLETE = f"""
update {{runs}} set status = 'succeeded', completed_at_utc = {SQLITE_NOW}, last_token = lease_token,
  lease_owner = null, lease_token = null, lease_until_utc = null
where id in (select value from json_each(?))
"""
SQLITE_CLAIM = f"""
update {{runs}} set status = 'leased', attempt = attempt + 1, lease_owner = 'by hand', lease_token = ?,
  lease_until_utc = strftime('%Y-%m-%d %H:%M:%f000', 'now', '30 seconds'), started_at_utc = {SQLITE_NOW}
where id in (
  select id from {{runs}} where status = 'pending' and scheduled_for_utc <= {SQLITE_NOW}
  order by scheduled_for_utc, id limit ?
)
returning id, job_name, payload, attempt, max_attempts
"""

MYSQL_COMPLETE = """
update {runs} force index (primary) set status = 'succeeded', completed_at_utc = utc_timestamp(6),
  last_token = lease_token, lease_owner = null, lease_token = null, lease_until_utc = null
where id in %s
"""
MYSQL_DUE = """
select id, job_name, payload, attempt, max_attempts from {runs} force index ({due})
where status = 'pending' and scheduled_for_utc <= utc_timestamp(6)
order by scheduled_for_utc, id limit %s for update skip locked
"""
MYSQL_CLAIM = """
update {runs} force index (primary) set status = 'leased', attempt = attempt + 1, lease_owner = 'by hand',
  lease_token = %s, lease_until_utc = utc_timestamp(6) + interval 30 second, started_at_utc = utc_timestamp(6)
where id in %s
"""


@benchmark(units={"by hand": "runs/s", "exchange": "runs/s", "share": "%", "CPU by hand": "us/run", "CPU": "us/run"})
@click.option("--sizes", default="1,10,50,100,250,500", show_default=True, help="Runs in each transaction.")
@click.option("--children", default=10, show_default=True, help="Processes at the other ends of the pipes.")
@click.option("--windows", default="1,4,16", show_default=True, help="Frames under way to each of them.")
def main(harness: Harness, sizes: str, children: int, windows: str) -> None:
    """Compare exchanges with what the databases can do at most."""
    for store in harness.stores:
        for size in map(int, sizes.split(",")):
            harness.case({"limit": store.name, "at once": size}, both, store, size)
    for window in map(int, windows.split(",")):
        harness.case({"limit": f"pipe, {children} children", "at once": window}, pipes, children, window)
    harness.measure()


def both(store: Store, size: int) -> Figures:
    """One after the other, on tables of their own: the pair has met the same circumstances."""
    runs = min(20_000, max(400, 100 * size))
    figures: dict[str, float] = {}
    if store.durable:
        with store.stack() as stack:
            assert isinstance(stack.store, SqlStore)
            fill(stack.store, runs)
            table = stack.store.dialect.quoted(f"{stack.store.prefix}durable_stack_job_runs")
            url = store.options["database_url"]
            with BY_HAND[urlsplit(url).scheme](url, table) as exchange:
                figures["by hand"], figures["CPU by hand"] = measured(exchange, runs, size)
    with store.stack() as stack:
        fill(stack.store, runs)
        figures["exchange"], figures["CPU"] = measured(exchange_of(stack.store), runs, size)
    if "by hand" in figures:
        figures["share"] = figures["exchange"] / figures["by hand"] * 100
    return figures


def fill(store: Any, runs: int) -> None:
    store.enqueue([NewRun(id=run_id, job_name=JOB) for run_id in new_run_ids(runs)])


def measured(exchange: Exchange, runs: int, size: int) -> tuple[float, float]:
    """Runs per second through claim and completion, and microseconds of our CPU for each."""
    began, cpu_began = time.perf_counter(), time.process_time()
    held: list[Any] = []
    left = runs
    while left or held:
        held = exchange(held, size)
        left -= len(held)
    return runs / (time.perf_counter() - began), (time.process_time() - cpu_began) / runs * 1e6


def exchange_of(store: Any) -> Exchange:
    def exchange(held: Sequence[Any], size: int) -> list[Any]:
        outcomes: list[Outcome] = [Succeeded(run.lease) for run in held]
        claim = Claim(
            worker_name="benchmark",
            lease_token=uuid4(),
            job_names=[JOB],
            batch_size=size,
            lease_duration=LEASE_DURATION,
            end_expired=False,
        )
        return list(store.exchange(outcomes, claim).claimed.runs)

    return exchange


# --- by hand


@contextmanager
def postgres_by_hand(url: str, table: str) -> Iterator[Exchange]:
    statement = POSTGRES.format(runs=table)
    with psycopg.connect(url, autocommit=True) as connection:
        for setting in POSTGRES_SETTINGS:
            connection.execute(f"set {setting} = off")

        def exchange(held: Sequence[Any], size: int) -> list[Any]:
            asked = {"ids": list(held), "size": size, "token": uuid4()}
            return [row[0] for row in connection.execute(statement, asked, prepare=True, binary=True)]

        yield exchange


@contextmanager
def sqlite_by_hand(url: str, table: str) -> Iterator[Exchange]:
    complete, claim = SQLITE_COMPLETE.format(runs=table), SQLITE_CLAIM.format(runs=table)
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as connection:
        connection.execute("pragma synchronous = full")

        def exchange(held: Sequence[Any], size: int) -> list[Any]:
            connection.execute("begin immediate")
            if held:
                connection.execute(complete, [json.dumps(held)])
            rows = connection.execute(claim, [str(uuid4()), size]).fetchall()
            connection.execute("commit")
            return [row[0] for row in rows]

        yield exchange


@contextmanager
def mysql_by_hand(url: str, table: str) -> Iterator[Exchange]:
    due = f"{table.strip('`').removesuffix('durable_stack_job_runs')}ix_durable_stack_job_runs_due"
    place = urlsplit(url)
    connection = pymysql.connect(
        host=place.hostname,
        port=place.port or 3306,
        user=unquote(place.username or ""),
        password=unquote(place.password or ""),
        database=place.path.removeprefix("/"),
        autocommit=True,
    )
    with closing(connection), connection.cursor() as cursor:
        cursor.execute("set session transaction isolation level read committed")

        def exchange(held: Sequence[Any], size: int) -> list[Any]:
            cursor.execute("start transaction")
            if held:
                cursor.execute(MYSQL_COMPLETE.format(runs=table), [held])
            cursor.execute(MYSQL_DUE.format(runs=table, due=due), [size])
            ids = [row[0] for row in cursor.fetchall()]
            if ids:
                cursor.execute(MYSQL_CLAIM.format(runs=table), [uuid4().bytes, ids])
            cursor.execute("commit")
            return ids

        yield exchange


BY_HAND = {"postgresql": postgres_by_hand, "sqlite": sqlite_by_hand, "mysql": mysql_by_hand}


# --- pipes


def pipes(children: int, window: int) -> Figures:
    """Frames to and from processes, as fast as one process can."""
    sides = [socket.socketpair() for _ in range(children)]
    pids = [_echoing_child(index, sides) for index in range(children)]
    for _, other in sides:
        other.close()
    with selectors.DefaultSelector() as selector:
        for ours, _ in sides:
            selector.register(ours, selectors.EVENT_READ)
            ours.sendall(bytes(FRAME_BYTES * window))
        count, cpu_began, ends_at = 0, time.process_time(), time.perf_counter() + PIPE_SECONDS
        while time.perf_counter() < ends_at:
            for key, _ in selector.select():
                assert isinstance(key.fileobj, socket.socket)
                chunk = key.fileobj.recv(65_536)
                count += len(chunk) // FRAME_BYTES
                key.fileobj.sendall(chunk)
        cpu_seconds = time.process_time() - cpu_began
    for ours, _ in sides:
        ours.close()
    for pid in pids:
        os.waitpid(pid, 0)
    return {"by hand": count / PIPE_SECONDS, "CPU by hand": cpu_seconds / count * 1e6}


def _echoing_child(index: int, sides: Sequence[tuple[socket.socket, socket.socket]]) -> int:
    pid = os.fork()
    if pid:
        return pid
    for number, (ours, other) in enumerate(sides):
        ours.close()
        if number != index:
            other.close()
    side = sides[index][1]
    try:
        while chunk := side.recv(65_536):
            side.sendall(chunk)
    except OSError:  # the other side has seen enough
        pass
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
