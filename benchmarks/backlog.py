"""Does a claim cost more, the more there is? The time of one claim by the number of runs that wait and that have ended.

    python -m benchmarks.backlog [--pending 1000,100000,1000000] [--ended 5000000] [--old-snapshot 100000]

Each table is filled once, by a few statements, and measured in turns: a batch is claimed, which is timed, and recorded,
and as many runs are enqueued again, which is not. A claim is one transaction on a connection of its own, from asking
until its commit is answered, for runs that have all been due for long. "ended" are runs that have succeeded and are
kept; with "old snapshot", so many of them ended while somebody kept a transaction open from before, so that the
database cannot clean up behind them. The databases beside PostgreSQL get a tenth of each.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta
from uuid import uuid4

import psycopg
import rich_click as click

from benchmarks.bench import Store
from benchmarks.harness import Figures, Harness, benchmark
from benchmarks.records import Label
from durablestack import DurableStack
from durablestack.ids import new_run_id
from durablestack.runs import NewRun, Run, Succeeded
from durablestack.stores.contract import Claim
from durablestack.stores.sql import SqlStore

JOB = "no-op"
LEASE_DURATION = timedelta(minutes=10)
FEW = 1_000
OTHERS_FEWER = 10
ROWS_PER_STATEMENT = 1_000_000
TIMEOUT_SECONDS = 300.0

DIGITS = " union all ".join(f"select {digit} as d" for digit in range(10))
DIGITS_TABLES = ", ".join(f"({DIGITS}) as d{place}" for place in range(6))
DIGITS_SUM = " + ".join(f"d{place}.d * {10**place}" for place in range(6))
WORDS = {
    "postgres": {
        "id": "(lpad(to_hex(i), 12, '0') || '70008000' || lpad(to_hex(i), 12, '0'))::uuid",
        "long_ago": "clock_timestamp() - make_interval(days => 10) + make_interval(secs => i * 0.01)",
        "numbers": "generate_series({first}, {last}) as i",
    },
    "mysql": {
        "id": "unhex(concat(lpad(hex(i), 12, '0'), '70008000', lpad(hex(i), 12, '0')))",
        "long_ago": "utc_timestamp(6) - interval 10 day + interval i * 10000 microsecond",
        "numbers": f"(select {DIGITS_SUM} + {{first}} as i from {DIGITS_TABLES}) as numbers where i <= {{last}}",
    },
    "sqlite": {
        "id": "printf('%08x-%04x-7000-8000-%012x', i >> 16, i & 65535, i)",
        "long_ago": "strftime('%Y-%m-%d %H:%M:%f000', 'now', '-10 days', printf('%.2f seconds', i * 0.01))",
        "numbers": (
            "(with recursive numbers(i) as (select {first} union all select i + 1 from numbers where i < {last}) "
            "select i from numbers)"
        ),
    },
}
FILL = """
insert into {runs} (
  id, job_name, status, payload, scheduled_for_utc, attempt, max_attempts, created_at_utc, completed_at_utc
)
select {id}, '{job}', '{status}', 'null', {long_ago}, {attempt}, 3, {long_ago}, {completed}
from {numbers}
"""
END = """
update {runs} set status = 'succeeded', completed_at_utc = scheduled_for_utc
where status = 'pending' and id in (select id from {runs} order by id limit {count})
"""
SETTLE = {"postgres": "vacuum analyze {runs}", "mysql": "analyze table {runs}", "sqlite": "analyze"}


@benchmark(units={"claim p50": "ms", "claim p99": "ms"}, repeat=9, stores=("postgres", "sqlite", "mysql"))
@click.option("--pending", default="1000,100000,1000000", show_default=True, help="Runs that wait.")
@click.option("--ended", default=5_000_000, show_default=True, help="Runs that have ended, beside the most that wait.")
@click.option("--old-snapshot", default=100_000, show_default=True, help="Runs that ended under an old snapshot.")
@click.option("--claims", default=100, show_default=True, help="Claims per repetition.")
@click.option("--batch-size", default=50, show_default=True, help="Runs per claim.")
def main(harness: Harness, pending: str, ended: int, old_snapshot: int, claims: int, batch_size: int) -> None:
    """Claim from small and from large tables."""
    sizes = [int(size) for size in pending.split(",")]
    with ExitStack() as exits:
        for store in harness.stores:
            fewer = 1 if store.name == "PostgreSQL" else OTHERS_FEWER
            tables = [(max(FEW, size // fewer), 0, 0) for size in sizes] + [(sizes[-1] // fewer, ended // fewer, 0)]
            if store.name == "PostgreSQL" and old_snapshot:
                tables.append((sizes[-1], 0, old_snapshot))
            for waiting, done, kept in tables:
                harness.say(f"{store.name}: filling a table with {waiting:,} pending, {done + kept:,} ended")
                stack = exits.enter_context(filled(store, waiting, done, kept))
                labels: dict[str, Label] = {
                    "store": store.name,
                    "pending": waiting,
                    "ended": done or kept,
                    "old snapshot": "no",
                }
                if kept:
                    labels["old snapshot"] = "yes"
                harness.case(labels, claim_times, stack, claims, batch_size)
        cases = harness.measure()
    for case in cases:
        few = next(each for each in cases if each.labels["store"] == case.labels["store"])
        ratio = case.median("claim p50") / few.median("claim p50")
        what = ", ".join(f"{label} {value}" for label, value in case.labels.items())
        harness.say(f"{what}: {ratio:.2f} x the claim of the first table (p50)")


def claim_times(stack: DurableStack, claims: int, batch_size: int) -> Figures:
    store = stack.store
    taken: list[float] = []
    for _ in range(claims):
        claim = Claim(
            worker_name="benchmark",
            lease_token=uuid4(),
            job_names=[JOB],
            batch_size=batch_size,
            lease_duration=LEASE_DURATION,
            end_expired=False,
        )
        began = time.perf_counter()
        runs: list[Run] = store.claim_due_runs(claim).runs
        taken.append((time.perf_counter() - began) * 1_000)
        store.record([Succeeded(run.lease) for run in runs])
        store.enqueue([NewRun(id=new_run_id(), job_name=JOB, payload="null") for _ in runs])
        if len(runs) != batch_size:
            raise ValueError(f"{len(runs)} runs were claimed, and not {batch_size}")
    taken.sort()
    return {"claim p50": taken[len(taken) // 2], "claim p99": taken[int(len(taken) * 0.99)]}


@contextmanager
def filled(store: Store, pending: int, ended: int, kept: int) -> Iterator[DurableStack]:
    """A table with so many runs; of those that ended, so many entries stay where they were, as long as this lasts."""
    with store.stack(operation_timeout_seconds=TIMEOUT_SECONDS) as stack:
        fill(stack, "succeeded", 1, ended)
        fill(stack, "pending", ended + 1, pending + kept)
        carry_out(stack, SETTLE)
        if not kept:
            yield stack
            return
        with closing(psycopg.connect(store.options["database_url"])) as somebody:
            somebody.execute("set transaction isolation level repeatable read")
            somebody.execute("select 1 from pg_class limit 1")
            carry_out(stack, {"postgres": END}, count=kept)
            yield stack


def fill(stack: DurableStack, status: str, first: int, count: int) -> None:
    has_ended = status == "succeeded"
    for begin in range(first, first + count, ROWS_PER_STATEMENT):
        last = min(begin + ROWS_PER_STATEMENT, first + count) - 1
        templates = {
            name: FILL.replace("{completed}", words["long_ago"] if has_ended else "null")
            .replace("{id}", words["id"])
            .replace("{long_ago}", words["long_ago"])
            .replace("{numbers}", words["numbers"].format(first=begin, last=last))
            for name, words in WORDS.items()
        }
        carry_out(stack, templates, job=JOB, status=status, attempt=int(has_ended))


def carry_out(stack: DurableStack, templates: dict[str, str], **words: object) -> None:
    """The statement of this database, past the store."""
    store = stack.store
    assert isinstance(store, SqlStore)
    runs = store.dialect.quoted(f"{store.prefix}durable_stack_job_runs")
    with store._connections.read() as tx:
        tx.run(templates[store.dialect.name].format(runs=runs, **words), {})


if __name__ == "__main__":
    main()
