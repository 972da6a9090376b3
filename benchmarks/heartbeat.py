"""What does a heartbeat cost, and what does it leave behind? 1,000 leases are renewed, again and again.

    python -m benchmarks.heartbeat [--leases 1000] [--beats 1000]

A beat is one transaction that renews all of them. "HOT" is the share of the renewed rows for which PostgreSQL touched
no index, and "growth" is by how much the table and its indexes are larger after the last beat than after the first
tenth: what a beat leaves behind is to be used again by those that follow.
"""

from __future__ import annotations

import time
from contextlib import closing
from datetime import timedelta
from uuid import uuid4

import psycopg
import rich_click as click
from msgspec import Struct

from benchmarks.bench import Store
from benchmarks.harness import Figures, Harness, benchmark
from durablestack.ids import new_run_id
from durablestack.runs import Lease, NewRun
from durablestack.stores.contract import Claim
from durablestack.stores.sql import SqlStore

JOB = "no-op"
LEASE_DURATION = timedelta(minutes=10)
WAITING_PER_LEASE = 4
STATISTICS = """
select n_tup_upd, n_tup_hot_upd, pg_total_relation_size(relid) from pg_stat_user_tables where relname = %s
"""
UNITS = {"beat p50": "ms", "beat p99": "ms", "HOT": "%", "growth": "KiB"}


@benchmark(units=UNITS, repeat=3, stores=("postgres", "sqlite", "mysql"))
@click.option("--leases", default=1_000, show_default=True, help="Leases renewed at once.")
@click.option("--beats", default=1_000, show_default=True, help="How often per repetition.")
def main(harness: Harness, leases: int, beats: int) -> None:
    """Renew leases."""
    for store in harness.stores:
        harness.case({"store": store.name, "leases": leases, "beats": beats}, beat, store, leases, beats)
    harness.measure()


class Written(Struct, frozen=True):
    """What PostgreSQL has counted: rows updated, those of them without an index, and the size of all in bytes."""

    updates: int
    hot: int
    size: int


def beat(store: Store, count: int, beats: int) -> Figures:
    with store.stack() as stack:
        runs = [NewRun(id=new_run_id(), job_name=JOB) for _ in range(count * (1 + WAITING_PER_LEASE))]
        stack.store.enqueue(runs)
        claim = Claim(
            worker_name="benchmark",
            lease_token=uuid4(),
            job_names=[JOB],
            batch_size=count,
            lease_duration=LEASE_DURATION,
        )
        leases = [run.lease for run in stack.store.claim_due_runs(claim).runs]
        assert isinstance(stack.store, SqlStore)
        first, settled = written(store, stack.store), None
        taken: list[float] = []
        for number in range(beats):
            taken.append(beat_seconds(stack.store, leases) * 1_000)
            if number == beats // 10:
                settled = written(store, stack.store)
        last = written(store, stack.store)
    taken.sort()
    times = {"beat p50": taken[len(taken) // 2], "beat p99": taken[int(len(taken) * 0.99)]}
    if first is None or settled is None or last is None:
        return times
    hot = 100 * (last.hot - first.hot) / (last.updates - first.updates)
    return {**times, "HOT": hot, "growth": (last.size - settled.size) / 1024}


def beat_seconds(store: SqlStore, leases: list[Lease]) -> float:
    began = time.perf_counter()
    held = store.extend_leases(leases, LEASE_DURATION).held
    seconds = time.perf_counter() - began
    if len(held) != len(leases):
        raise ValueError(f"{len(held)} of {len(leases)} leases were renewed")
    return seconds


def written(store: Store, sql_store: SqlStore) -> Written | None:
    """None where nobody counts."""
    if store.name != "PostgreSQL":
        return None
    with sql_store._connections.read() as tx:
        tx.fetch("select pg_stat_force_next_flush()", {})  # what this connection has counted is told now
    with closing(psycopg.connect(store.options["database_url"])) as connection:
        row = connection.execute(STATISTICS, [f"{sql_store.prefix}durable_stack_job_runs"]).fetchone()
    return Written(*row) if row else None


if __name__ == "__main__":
    main()
