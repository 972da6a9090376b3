"""64 runs of about 100 ms of pure Python: how close do 2 and 10 children come to what 2 cores can do?

    python -m benchmarks.cpu_bound [--runs 64] [--children 2,10] [--cores 2] [--repeat 5]

ideal = CPU time that the runs used, added up, / number of cores; efficiency = ideal / wall time, and 1.0 cannot be
beaten. On a machine that has other work too, "of the rest" is the same for the cores that others left to us.
Supervisor, children and database are bound to these cores; this process looks on from another one, if there is any.
The wall time counts from the first claim to the last outcome recorded, by the database's clock.
"""

from __future__ import annotations

import os
import time

import anyio
import rich_click as click

from benchmarks.bench import Store, all_ready, all_succeeded, drain_seconds
from benchmarks.bench_jobs import burn
from benchmarks.harness import Figures, Harness, benchmark
from benchmarks.machine import Watch, looking_from_elsewhere
from benchmarks.worker import until_done, worker
from durablestack import DurableStack
from durablestack.queries import TAKE_MAX
from durablestack.supervisor.embedded import supervise

EFFICIENCY_MIN = 0.97
RUN_SECONDS = 0.1


UNITS = {"efficiency": "ideal / wall", "of the rest": "ideal / wall", "wall": "s", "ideal": "s"}


@benchmark(units=UNITS, repeat=5, cores=2)
@click.option("--runs", default=64, type=click.IntRange(1, TAKE_MAX), show_default=True, help="How many runs.")
@click.option("--children", default="2,10", show_default=True, help="Child processes.")
def main(harness: Harness, runs: int, children: str) -> None:
    """How much of the cores CPU-bound runs get, on each store that is available."""
    rounds = _rounds_for(RUN_SECONDS)
    for store in harness.stores:
        for count in map(int, children.split(",")):
            harness.case({"store": store.name, "children": count}, measure, store, runs, count, rounds)
    for case in harness.measure():
        where = f"{case.labels['store']}, {case.labels['children']} children"
        verdict = "yes" if case.median("efficiency") >= EFFICIENCY_MIN else "NO"
        harness.say(f"{where}: at least {EFFICIENCY_MIN}: {verdict}")


def measure(store: Store, runs: int, children: int, rounds: int) -> Figures:
    with store.stack(max_concurrent_runs=children, poll_interval_seconds=0.5) as stack:
        if store.durable:
            others_cores = _beside(stack, store, runs, rounds)
        else:
            others_cores = anyio.run(_in_this_process, stack, runs, rounds)
        cpu_seconds = sum(float(run.stdout_tail or "nan") for run in stack.queries.get_recent_runs(take=runs))
        wall, cores = drain_seconds(stack), len(os.sched_getaffinity(0))
    ideal, rest = cpu_seconds / cores, cpu_seconds / max(cores - others_cores, 0.1)
    return {"efficiency": ideal / wall, "of the rest": rest / wall, "wall": wall, "ideal": ideal}


def _beside(stack: DurableStack, store: Store, runs: int, rounds: int) -> float:
    """Drained by a supervisor of its own; how many cores others kept busy meanwhile."""
    with worker(stack, store.options, children=stack.options.max_concurrent_runs) as supervisor:
        supervisor.until_ready()
        stack.client.enqueue_many(burn, [rounds] * runs)
        watch = Watch()
        with looking_from_elsewhere():
            until_done(stack, runs, [supervisor], look_every_seconds=0.5)
        return watch.others()


async def _in_this_process(stack: DurableStack, runs: int, rounds: int) -> float:
    async with supervise(stack) as supervisor:
        await all_ready(supervisor)
        await stack.async_client.enqueue_many(burn, [rounds] * runs)
        watch = Watch()
        await all_succeeded(stack, runs)
        return watch.others()


def _rounds_for(seconds: float) -> int:
    """How much work that is, on a core that is not disturbed too much."""
    began, rounds = time.process_time(), 0
    while time.process_time() - began < 1.0:
        sum(range(1000))
        rounds += 1
    return int(rounds * seconds)


if __name__ == "__main__":
    main()
