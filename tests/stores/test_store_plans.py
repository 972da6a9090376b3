"""The cost of a claim does not grow with the backlog, nor with history: the plans that the databases choose."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from exam import JOB, LEASE_DURATION, Place, age_lease, claim, claimed, enqueue_many, on_postgres, on_sqlite

from durablestack.stores.contract import Store
from durablestack.stores.sql import SqlStore
from servers import PostgresServer

FAR_FUTURE, DUE, TERMINAL = 100_000, 40_000, 100_000
PARAMETERS = {"job_names": [JOB, "another_job"], "limit": 50, "seconds": 86_400.0}
CLAIM_STATEMENTS = ("RUNS_DUE_SELECT", "RUNS_EXPIRED_SELECT", "RUNS_PRUNABLE_SELECT")

BACKLOG = """
insert into {runs} (id, job_name, status, scheduled_for_utc, attempt, max_attempts, created_at_utc, completed_at_utc)
select gen_random_uuid(), '{job}', '{status}', clock_timestamp() + make_interval(secs => {seconds} + i), 0, 3,
       clock_timestamp(), {completed}
from generate_series(1, {count}) as i
"""


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


class Postgres:
    """A look behind the store."""

    def __init__(self, place: Place, store: Store) -> None:
        assert isinstance(store, SqlStore)
        self.store = store
        self.runs = f"{place.table_prefix}durable_stack_job_runs"
        self.connection = psycopg.connect(place.database_url or "", autocommit=True)

    def run(self, statement: str) -> None:
        self.connection.execute(statement.encode())

    def plan(self, name: str) -> list[dict[str, Any]]:
        with self.store._connections.transaction() as tx:  # as a claim begins it
            ((plan,),) = tx.fetch(f"explain (format json) {self.store._sql[name]}", PARAMETERS)
        return list(nodes(plan[0]["Plan"]))

    def fill(self) -> None:
        # statistics come when the test says so
        self.run(f"alter table {self.runs} set (autovacuum_enabled = false)")
        for status, seconds, completed, count in (
            ("pending", 10_000_000, "null", FAR_FUTURE),
            ("pending", -10_000_000, "null", DUE),
            ("succeeded", -20_000_000, "clock_timestamp() - make_interval(secs => i)", TERMINAL),
        ):
            words = {"runs": self.runs, "job": JOB, "status": status, "seconds": seconds}
            self.run(BACKLOG.format(**words, completed=completed, count=count))


@pytest.fixture
def postgres(place: Place, store: Store) -> Iterator[Postgres]:
    postgres = Postgres(place, store)
    yield postgres
    # or the invariants of all these rows would be looked at
    postgres.run(f"truncate {postgres.runs}, {place.table_prefix}durable_stack_job_run_attempts")
    postgres.connection.close()


def check_plans(postgres: Postgres, circumstances: str) -> None:
    for name in CLAIM_STATEMENTS:
        kinds = {node["Node Type"] for node in postgres.plan(name)}
        assert not kinds & {"Sort", "Incremental Sort", "Seq Scan", "Hash Join"}, f"{name} {circumstances}: {kinds}"
        assert "Index Scan" in kinds, f"{name} {circumstances}: {kinds}"


@on_postgres
def test_a_claim_reads_indexes_in_their_order_whatever_the_backlog(postgres: Postgres) -> None:
    postgres.fill()
    check_plans(postgres, "without statistics")
    leases = claim(postgres.store, batch_size=500)
    assert len(leases) == 500
    check_plans(postgres, "without statistics, 500 leases")
    postgres.run(f"analyze {postgres.runs}")
    check_plans(postgres, "with statistics")
    age_lease(postgres.store, leases[0].id)
    assert len(claimed(postgres.store).expired) == 1
    assert postgres.store.prune_runs(timedelta(hours=1), 1000) == 1000


@on_postgres
def test_a_small_table_with_statistics_is_still_read_by_its_indexes_when_it_has_grown(postgres: Postgres) -> None:
    enqueue_many(postgres.store, 10)
    postgres.run(f"analyze {postgres.runs}")
    postgres.fill()
    check_plans(postgres, "with the statistics of a small table")


def test_heartbeats_touch_no_index(own_postgres: Callable[[], PostgresServer]) -> None:
    # a server of our own: the snapshot of another test would keep the dead rows in our pages
    place = Place("postgres", own_postgres().dsn, "")
    store = place.open()
    store.migrate()
    enqueue_many(store, 2000)
    leases = [run.lease for run in claim(store, batch_size=500)]
    before = updates(place, store)
    for _ in range(20):
        assert len(store.extend_leases(leases, LEASE_DURATION).held) == 500
    total, hot = (after - earlier for after, earlier in zip(updates(place, store), before, strict=True))
    store.close()
    assert total == 500 * 20
    assert hot / total >= 0.9


def updates(place: Place, store: Store) -> tuple[int, int]:
    """How many rows were updated, and how many of them without touching an index."""
    assert isinstance(store, SqlStore)
    with store._connections._ours()._connection() as connection:  # type: ignore[attr-defined]
        connection.execute("select pg_stat_force_next_flush()")  # what this connection counted is told now
    with psycopg.connect(place.database_url or "", autocommit=True) as connection:
        row = connection.execute(
            "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relname = %s",
            [f"{place.table_prefix}durable_stack_job_runs"],
        ).fetchone()
    assert row is not None
    return row[0], row[1]


# --- SQLite


@on_sqlite
@pytest.mark.parametrize("analyzed", [False, True])
@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("RUNS_DUE_SELECT", "ix_durable_stack_job_runs_due"),
        ("RUNS_EXPIRED_SELECT", "ix_durable_stack_job_runs_leased"),
        ("RUNS_OF_CLAIM_SELECT", "ix_durable_stack_job_runs_leased"),
        ("RUNS_OF_WORKER_SELECT", "ix_durable_stack_job_runs_leased"),
        ("RUNS_PRUNABLE_SELECT", "ix_durable_stack_job_runs_completed"),
        ("RUNS_SELECT_DUE_FIRST", "ix_durable_stack_job_runs_due"),
        ("BACKLOG_SELECT", "ix_durable_stack_job_runs_due"),
    ],
)
def test_sqlite_reads_the_index_in_its_order(place: Place, store: Store, name: str, index: str, analyzed: bool) -> None:
    assert isinstance(store, SqlStore)
    enqueue_many(store, 200)
    claim(store, batch_size=20)
    parameters = store.dialect.bind({**PARAMETERS, "lease_token": None, "worker_id": None})
    with store._connections.read() as tx:
        if analyzed:
            tx.run("analyze", {})
        rows = tx.fetch(f"explain query plan {store._sql[name]}", parameters)
    plan = "\n".join(row[-1] for row in rows)
    assert f"INDEX {place.table_prefix}{index}" in plan, plan
    assert "USE TEMP B-TREE FOR ORDER BY" not in plan, plan
