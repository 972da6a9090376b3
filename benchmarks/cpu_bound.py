"""64 runs of about 100 ms of pure Python: how close do 2 children on 2 cores come to the ideal?

    python -m benchmarks.cpu_bound [--runs 64] [--children 2] [--repeat 5]

ideal = CPU time that the runs used, added up, / number of children. The ratio is wall time / ideal; 1.0 cannot be
beaten. Supervisor and children are bound to as many cores as there are children. The wall time counts from the first
claim to the last outcome recorded, by the database's clock.
"""

from __future__ import annotations

import os
import statistics
import time

import anyio
import rich_click as click
from rich.console import Console
from rich.table import Table

from benchmarks.bench import all_succeeded, describe_machine, fresh_stack, stores
from benchmarks.bench_jobs import burn
from durablestack import DurableStack, Run
from durablestack.supervisor.embedded import supervise

RATIO_MAX = 1.10


@click.command()
@click.option("--runs", default=64, help="How many runs.")
@click.option("--children", default=2, help="Child processes, and cores.")
@click.option("--repeat", default=5, help="Measurements per store.")
def main(runs: int, children: int, repeat: int) -> None:
    """Print wall time / ideal for CPU-bound runs, on each store that is available."""
    console = Console()
    describe_machine(console)
    cores = set(sorted(os.sched_getaffinity(0))[:children])
    os.sched_setaffinity(0, cores)
    rounds = _rounds_for(0.1)
    table = Table(title=f"{runs} runs of ~100 ms CPU, {children} children on {len(cores)} cores, {repeat} repetitions")
    for heading in ("store", "median wall / ideal", "best", "worst", f"at most {RATIO_MAX}"):
        table.add_column(heading)
    with stores(console) as available:
        for name, store in available.items():
            ratios = []
            for _ in range(repeat):
                with fresh_stack(store, max_concurrent_runs=children, poll_interval_seconds=0.5) as stack:
                    ratios.append(anyio.run(_measure, stack, runs, children, rounds))
            median = statistics.median(ratios)
            verdict = "yes" if median <= RATIO_MAX else "NO"
            table.add_row(name, f"{median:.3f}", f"{min(ratios):.3f}", f"{max(ratios):.3f}", verdict)
    console.print(table)


async def _measure(stack: DurableStack, runs: int, children: int, rounds: int) -> float:
    run_ids = await stack.async_client.enqueue_many(burn, [rounds] * runs)
    async with supervise(stack):
        await all_succeeded(stack, runs)
    done = [run for run_id in run_ids if (run := stack.queries.get_run(run_id)) is not None]
    cpu_seconds = sum(float(run.stdout_tail or "nan") for run in done)
    return _wall_seconds(done) / (cpu_seconds / children)


def _wall_seconds(runs: list[Run]) -> float:
    began = min(run.started_at for run in runs if run.started_at)
    ended = max(run.completed_at for run in runs if run.completed_at)
    return (ended - began).total_seconds()


def _rounds_for(seconds: float) -> int:
    began, rounds = time.process_time(), 0
    while time.process_time() - began < 1.0:
        sum(range(1000))
        rounds += 1
    return int(rounds * seconds)


if __name__ == "__main__":
    main()
