"""The cost of a claim does not grow with the backlog, nor with history: the plans that the databases choose."""

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from exam import JOB, LEASE_DURATION, Place, claim, enqueue_many, on_postgres, on_sqlite
from msgspec import Struct
from psycopg import sql

from durablestack.stores.contract import Store
from durablestack.stores.sql import SqlStore
from servers import PostgresServer

FAR_FUTURE, DUE, TERMINAL, FAILED, LEASED, BATCH = 100_000, 40_000, 100_000, 20_000, 200, 20
BEATS = 100
RECURRING_JOB, SLOTS = "clean_up", 2_000
BUFFERS_PER_ROW, BUFFERS_BESIDES = 50, 100
"""A row that is written has entries in some indexes, each a few pages deep; the whole table has 5,000 and more."""

FILL = """
insert into {runs} (
  id, job_name, status, scheduled_for_utc, attempt, max_attempts, created_at_utc, completed_at_utc, slot_utc,
  recurring_job_name
)
select gen_random_uuid(), '{job}', '{status}', clock_timestamp() + make_interval(secs => {seconds} + i), 0, 3,
       clock_timestamp(), {completed}, {slot}, {recurring}
from generate_series(1, {count}) as i
"""
FILL_ATTEMPTS = """
insert into {attempts} (run_id, attempt, ended_at_utc, outcome)
select id, number, clock_timestamp(), 'failed'
from {runs}, generate_series(1, 2) as number
where status = 'failed'
"""
NO_STATISTICS = (
    "delete from pg_statistic where starelid in ('{runs}'::regclass, '{attempts}'::regclass)",
    "update pg_class set reltuples = -1, relpages = 0 where oid in ('{runs}'::regclass, '{attempts}'::regclass)",
)


class Hot(Struct, frozen=True):
    """A statement that is carried out for each batch, each beat or each poll."""

    name: str
    ids: str = "leased"
    rows: int = BATCH
    """How many rows it may look at, whatever else there is."""
    ordered: bool = False
    """Whether it stops after so many, in the order of an index: a sort would read all first."""
    reads: bool = False
    """Whether the store carries it out by itself, outside of any transaction."""


HOT = (
    Hot("RUNS_DUE_SELECT", ordered=True),
    Hot("RUNS_DUE_FROM_MARK_SELECT", ordered=True),
    Hot("RUNS_CLAIM", rows=2 * BATCH, ordered=True),
    Hot("RUNS_CLAIM_FROM_MARK", rows=2 * BATCH, ordered=True),
    Hot("EXPIRED_LOOK", rows=LEASED, ordered=True),
    Hot("RUNS_EXPIRED_SELECT", rows=LEASED, ordered=True),
    Hot("RUNS_LEASE", ids="pending"),
    Hot("RUNS_OF_WORKER_SELECT", rows=LEASED, ordered=True),
    Hot("LEASES_SELECT_FOR_UPDATE"),
    Hot("LEASES_EXTEND"),
    Hot("REQUESTS_SELECT", reads=True),
    Hot("RUNS_SUCCEED"),
    Hot("RUNS_SUCCEED_SHOWN"),
    Hot("RUNS_RELEASE"),
    Hot("RUN_FAIL", rows=1),
    Hot("RUN_RETRY", rows=1),
    Hot("RUN_EXPIRED_UPDATE", rows=1),
    Hot("RUN_OUTPUT_UPDATE", rows=1),
    Hot("ATTEMPTS_FORGET", ids="failed", rows=2),
    Hot("BACKLOG_SELECT", ordered=True),
    Hot("RUNS_PRUNABLE_SELECT", ordered=True),
    Hot("ATTEMPTS_DELETE", ids="failed", rows=2 * BATCH),
    Hot("RUNS_DELETE", ids="failed"),
    Hot("RUN_OF_SLOT_SELECT", rows=1),
    Hot("RUNS_ACTIVE_SELECT", ordered=True),
    Hot("RUN_SELECT", rows=1, reads=True),
    Hot("ATTEMPTS_SELECT", ids="failed", rows=2, reads=True),
    Hot("RUNS_SELECT_DUE_FIRST", ordered=True, reads=True),
    Hot("RUNS_SELECT_RECENT", ordered=True, reads=True),
)


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


def looked_at(node: dict[str, Any]) -> int:
    """How many rows the node has read from a table or an index."""
    if "Relation Name" not in node or "Scan" not in node["Node Type"]:
        return 0
    removed = sum(count for name, count in node.items() if name.startswith("Rows Removed by"))
    return (node["Actual Rows"] + removed) * node["Actual Loops"]


class Postgres:
    """A look behind the store."""

    def __init__(self, place: Place, store: Store) -> None:
        assert isinstance(store, SqlStore)
        self.store = store
        self.tables = {"runs": place.runs, "attempts": f"{place.table_prefix}durable_stack_job_run_attempts"}
        self.connection = psycopg.connect(place.database_url or "", autocommit=True)

    def run(self, statement: str, **words: object) -> None:
        self.connection.execute(statement.format(**self.tables, **words).encode())

    def ids(self, status: str) -> list[UUID]:
        statement = f"select id from {self.tables['runs']} where status = %s order by id limit {BATCH}"
        return [id for (id,) in self.connection.execute(statement.encode(), [status])]

    def fill(self) -> None:
        for status, seconds, completed, count in (
            ("pending", 10_000_000, "null", FAR_FUTURE),
            ("pending", -10_000_000, "null", DUE),
            ("succeeded", -20_000_000, "clock_timestamp() - make_interval(secs => i)", TERMINAL),
            ("failed", -20_000_000, "clock_timestamp() - make_interval(secs => i)", FAILED),
        ):
            words = {"job": JOB, "status": status, "seconds": seconds, "completed": completed, "count": count}
            self.run(FILL, **words, slot="null", recurring="null")
        slots = {
            "job": RECURRING_JOB,
            "recurring": f"'{RECURRING_JOB}'",
            "slot": "'2026-01-01'::timestamptz + i * interval '1 m'",
        }
        self.run(FILL, **slots, status="pending", seconds=20_000_000, completed="null", count=SLOTS)
        self.run(FILL_ATTEMPTS)

    def plan(self, hot: Hot, plan_cache_mode: str) -> list[dict[str, Any]]:
        """What the statement did, as the store begins it; its writes are rolled back."""
        statement, arguments = self._prepared(self.store._sql[hot.name], self._parameters(hot))
        connections = self.store._connections
        with connections.read() if hot.reads else connections.transaction() as tx:
            tx.run(f"set plan_cache_mode = {plan_cache_mode}", {})
            tx.run(f"prepare hot as {statement}", {})
            ((plan,),) = tx.fetch(f"explain (analyze, buffers, format json) execute hot{arguments}", {})
            tx.run("deallocate hot", {})
            if not hot.reads:
                tx.run("rollback", {})
        return list(nodes(plan[0]["Plan"]))

    def _parameters(self, hot: Hot) -> dict[str, Any]:
        ids = self.ids(hot.ids)
        return {
            **dict.fromkeys(("id", "run_id"), ids[0]),
            **dict.fromkeys(("lease_token", "worker_id", "mark_id"), ids[0]),
            **dict.fromkeys(("attempt", "crashed", "terminal"), 1),
            **dict.fromkeys(("error_type", "error_message", "error_detail", "stdout_tail", "stderr_tail"), "x"),
            **dict.fromkeys(("ids", "tokens"), ids),
            **dict.fromkeys(("stdout_tails", "stderr_tails"), ["x"] * BATCH),
            "job_names": [JOB, "another_job"],
            "may_wait": [JOB],
            "job_name": RECURRING_JOB,
            **dict.fromkeys(("limit", "begin_max"), BATCH),
            "mark_scheduled_for": datetime.now(UTC) - timedelta(seconds=9_980_000),
            "seconds": 3_600.0,
            "slot": datetime(2026, 1, 1, 12, tzinfo=UTC),
            "status": "failed",
            "worker_name": "w",
        }

    def _prepared(self, statement: str, parameters: dict[str, Any]) -> tuple[str, str]:
        """The statement with numbered parameters, and the list of their values."""
        names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", statement)))
        text = re.sub(r"%\((\w+)\)s", lambda found: f"${names.index(found[1]) + 1}", statement)
        values = [sql.Literal(parameters[name]).as_string(self.connection) for name in names]
        return text, f"({', '.join(values)})" if values else ""


def broken(postgres: Postgres, circumstances: str) -> Iterator[str]:
    """What is wrong with the plans of the hot statements."""
    for hot in HOT:
        for plan_cache_mode in ("force_custom_plan", "force_generic_plan"):
            plan = postgres.plan(hot, plan_cache_mode)
            kinds = {node["Node Type"] for node in plan}
            rows = sum(map(looked_at, plan))
            buffers = plan[0]["Shared Hit Blocks"] + plan[0]["Shared Read Blocks"]
            told = f"{hot.name}, {circumstances}, {plan_cache_mode}: {rows} rows, {buffers} buffers, {kinds}"
            if kinds & {"Seq Scan", "Hash"} or (hot.ordered and kinds & {"Sort", "Incremental Sort"}):
                yield f"{told}: not by an index in its order"
            elif not 0 < rows <= hot.rows or buffers > BUFFERS_PER_ROW * hot.rows + BUFFERS_BESIDES:
                yield f"{told}: too much or nothing"


@on_postgres
def test_what_is_done_for_each_batch_reads_no_more_whatever_the_backlog_and_the_statistics(place: Place) -> None:
    store = place.open()
    store.migrate()
    postgres = Postgres(place, store)
    for table in postgres.tables.values():  # statistics come when the test says so
        postgres.run(f"alter table {table} set (autovacuum_enabled = false)")
    enqueue_many(store, LEASED)
    assert len(claim(store, batch_size=LEASED)) == LEASED
    postgres.run("analyze {runs}, {attempts}")
    postgres.fill()
    found = list(broken(postgres, "with the statistics of a small table"))
    for statement in NO_STATISTICS:
        postgres.run(statement)
    found += broken(postgres, "without statistics")
    postgres.run("analyze {runs}, {attempts}")
    found += broken(postgres, "with statistics")
    postgres.connection.close()
    assert not found, "\n".join(found)
    assert store.prune_runs(timedelta(hours=1), 1000) == 1000
    store.close()


def test_heartbeats_touch_no_index_and_the_table_does_not_grow(own_postgres: Callable[[], PostgresServer]) -> None:
    # a server of our own: the snapshot of another test would keep the dead rows in our pages
    place = Place("postgres", own_postgres().dsn, "")
    store = place.open()
    store.migrate()
    enqueue_many(store, 5_000)
    leases = [run.lease for run in claim(store, batch_size=1_000)]
    before = written(place, store)
    for beat in range(BEATS):
        assert len(store.extend_leases(leases, LEASE_DURATION).held) == 1_000
        if beat == BEATS // 10:
            settled = written(place, store)
    after = written(place, store)
    store.close()
    assert after.updates - before.updates == 1_000 * BEATS
    assert (after.hot - before.hot) / (after.updates - before.updates) >= 0.95
    assert after.bytes <= 1.1 * settled.bytes


class Written(Struct, frozen=True):
    """How many rows were updated, how many of them without touching an index, and how large the table is."""

    updates: int
    hot: int
    bytes: int


def written(place: Place, store: Store) -> Written:
    assert isinstance(store, SqlStore)
    with store._connections._ours()._connection() as connection:  # type: ignore[attr-defined]
        connection.execute("select pg_stat_force_next_flush()")  # what this connection counted is told now
    with psycopg.connect(place.database_url or "", autocommit=True) as connection:
        row = connection.execute(
            "select n_tup_upd, n_tup_hot_upd, pg_total_relation_size(relid) "
            "from pg_stat_user_tables where relname = %s",
            [place.runs],
        ).fetchone()
    assert row is not None
    return Written(*row)


# --- SQLite

SQLITE_PARAMETERS = {
    **dict.fromkeys(("lease_token", "worker_id", "mark_id", "worker_name"), "x"),
    "ids": ["x", "y"],
    "job_names": [JOB, "another_job"],
    "job_name": RECURRING_JOB,
    "limit": 50,
    "mark_scheduled_for": "2026-01-01 00:00:00.000000",
    "seconds": 86_400.0,
    "slot": "2026-01-01 00:00:00.000000",
}


def sqlite_plan(store: Store, name: str, *, analyzed: bool) -> str:
    assert isinstance(store, SqlStore)
    enqueue_many(store, 200)
    claim(store, batch_size=20)
    with store._connections.read() as tx:
        if analyzed:
            tx.run("analyze", {})
        rows = tx.fetch(f"explain query plan {store._sql[name]}", store.dialect.bind(SQLITE_PARAMETERS))
    return "\n".join(row[-1] for row in rows)


@on_sqlite
@pytest.mark.parametrize("analyzed", [False, True])
@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("RUNS_DUE_SELECT", "ix_durable_stack_job_runs_due"),
        ("EXPIRED_LOOK", "ix_durable_stack_job_runs_leased"),
        ("RUNS_EXPIRED_SELECT", "ix_durable_stack_job_runs_leased"),
        ("RUNS_OF_CLAIM_SELECT", "ix_durable_stack_job_runs_leased"),
        ("RUNS_OF_WORKER_SELECT", "ix_durable_stack_job_runs_leased"),
        ("RUNS_PRUNABLE_SELECT", "ix_durable_stack_job_runs_completed"),
        ("RUNS_SELECT_DUE_FIRST", "ix_durable_stack_job_runs_due"),
        ("RUNS_ACTIVE_SELECT", "ix_durable_stack_job_runs_recurring"),
        ("BACKLOG_SELECT", "ix_durable_stack_job_runs_due"),
    ],
)
def test_sqlite_reads_the_index_in_its_order(place: Place, store: Store, name: str, index: str, analyzed: bool) -> None:
    plan = sqlite_plan(store, name, analyzed=analyzed)
    assert f"INDEX {place.table_prefix}{index}" in plan, plan
    assert "USE TEMP B-TREE FOR ORDER BY" not in plan, plan


@on_sqlite
@pytest.mark.parametrize("analyzed", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        *("LEASES_SELECT_FOR_UPDATE", "RUNS_LEASE", "LEASES_EXTEND", "REQUESTS_SELECT", "RUNS_SUCCEED"),
        *("RUNS_RELEASE", "RUNS_DELETE", "ATTEMPTS_DELETE", "RUN_OF_SLOT_SELECT"),
    ],
)
def test_sqlite_finds_rows_by_their_keys(place: Place, store: Store, name: str, analyzed: bool) -> None:
    plan = sqlite_plan(store, name, analyzed=analyzed)
    assert f"SEARCH {place.table_prefix}durable_stack_job_run" in plan, plan
    assert f"SCAN {place.table_prefix}durable_stack_job_run" not in plan, plan
