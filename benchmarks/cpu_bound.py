"""64 runs of 100 ms of pure Python: how close do 2 and 10 children come to what 2 cores can do?

    python -m benchmarks.cpu_bound [--runs 64] [--children 2,10] [--cores 2] [--repeat 5]

ideal = CPU time that the runs used, added up, / number of cores; efficiency = ideal / wall time, and 1.0 cannot be
beaten. On a machine that has other work too, "of the rest" is the same for the cores that others left to us.
Supervisor, children and database are bound to these cores; this process looks on from another one, if there is any.
How much work 100 ms are is learnt from one run of each child before, when all of them are at work.
The wall time counts from the first claim to the last outcome recorded, by the database's clock.
"""

from __future__ import annotations

import os
from datetime import datetime

import anyio
import rich_click as click
from msgspec import Struct

from benchmarks.bench import Store, all_ready, all_succeeded
from benchmarks.bench_jobs import burn
from benchmarks.harness import Figures, Harness, benchmark
from benchmarks.machine import Watch, looking_from_elsewhere
from benchmarks.worker import until_done, worker
from durablestack import DurableStack
from durablestack.queries import TAKE_MAX
from durablestack.supervisor.embedded import supervise

EFFICIENCY_MIN = 0.97
RUN_SECONDS = 0.1
ROUNDS_AT_FIRST = 8_000

UNITS = {"efficiency": "ideal / wall", "of the rest": "ideal / wall", "wall": "s", "ideal": "s"}


class _Burned(Struct, frozen=True):
    """A run that has succeeded, when by the clock of the database, and the CPU time that it told."""

    started_at: datetime
    completed_at: datetime
    cpu_seconds: float


@benchmark(units=UNITS, repeat=5, cores=2)
@click.option("--runs", default=64, type=click.IntRange(1, TAKE_MAX), show_default=True, help="How many runs.")
@click.option("--children", default="2,10", show_default=True, help="Child processes.")
def main(harness: Harness, runs: int, children: str) -> None:
    """How much of the cores CPU-bound runs get, on each store that is available."""
    for store in harness.stores:
        for count in map(int, children.split(",")):
            harness.case({"store": store.name, "children": count}, measure, store, runs, count)
    for case in harness.measure():
        where = f"{case.labels['store']}, {case.labels['children']} children"
        verdict = "yes" if case.median("efficiency") >= EFFICIENCY_MIN else "NO"
        harness.say(f"{where}: at least {EFFICIENCY_MIN}: {verdict}")


def measure(store: Store, runs: int, children: int) -> Figures:
    with store.stack(max_concurrent_runs=children, poll_interval_seconds=0.5) as stack:
        if store.durable:
            burned, others_cores = _beside(stack, store, runs)
        else:
            burned, others_cores = anyio.run(_in_this_process, stack, runs)
    cpu_seconds = sum(run.cpu_seconds for run in burned)
    began, ended = min(run.started_at for run in burned), max(run.completed_at for run in burned)
    wall, cores = (ended - began).total_seconds(), len(os.sched_getaffinity(0))
    ideal, rest = cpu_seconds / cores, cpu_seconds / max(cores - others_cores, 0.1)
    return {"efficiency": ideal / wall, "of the rest": rest / wall, "wall": wall, "ideal": ideal}


def _beside(stack: DurableStack, store: Store, runs: int) -> tuple[list[_Burned], float]:
    """Drained by a supervisor of its own; and how many cores others kept busy meanwhile."""
    children = stack.options.max_concurrent_runs
    with worker(stack, store.options, children=children) as supervisor:
        supervisor.until_ready()
        stack.client.enqueue_many(burn, [ROUNDS_AT_FIRST] * children)
        until_done(stack, children, [supervisor])
        stack.client.enqueue_many(burn, [_rounds_for(RUN_SECONDS, stack)] * runs)
        watch = Watch()
        with looking_from_elsewhere():
            until_done(stack, children + runs, [supervisor], look_every_seconds=0.5)
        return _latest(stack, runs), watch.others()


async def _in_this_process(stack: DurableStack, runs: int) -> tuple[list[_Burned], float]:
    children = stack.options.max_concurrent_runs
    async with supervise(stack) as supervisor:
        await all_ready(supervisor)
        await stack.async_client.enqueue_many(burn, [ROUNDS_AT_FIRST] * children)
        await all_succeeded(stack, children)
        await stack.async_client.enqueue_many(burn, [_rounds_for(RUN_SECONDS, stack)] * runs)
        watch = Watch()
        await all_succeeded(stack, children + runs)
        return _latest(stack, runs), watch.others()


def _rounds_for(seconds: float, stack: DurableStack) -> int:
    """How much work that is for these children, on these cores, all of them at work: as the first runs told."""
    tried = _latest(stack, stack.options.max_concurrent_runs)
    return int(ROUNDS_AT_FIRST * seconds * len(tried) / sum(run.cpu_seconds for run in tried))


def _latest(stack: DurableStack, count: int) -> list[_Burned]:
    """Those that were enqueued last."""
    return [
        _Burned(run.started_at, run.completed_at, float(run.stdout_tail or "nan"))
        for run in stack.queries.get_recent_runs(take=count)
        if run.started_at is not None and run.completed_at is not None
    ]


if __name__ == "__main__":
    main()
