"""What does a larger batch bring? Claims per second of the store alone, and runs per second from end to end.

    python -m benchmarks.batch_sizes [--runs 2000] [--sizes 1,10,50,200] [--children 4]

"store alone": one thread claims and records success, nothing is executed; the store's own bound.
"end to end": a supervisor with child processes drains queued no-op runs; from the first claim to the last outcome
recorded, by the database's clock. A run is claimed only for an idle slot, so that batches beyond the number of
children make no difference there: the reason why both are shown. Store by store the sizes take turns.
"""

from __future__ import annotations

import statistics
import time
from datetime import timedelta
from uuid import uuid4

import anyio
import rich_click as click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.bench import all_succeeded, describe_machine, fresh_stack, stores
from benchmarks.bench_jobs import no_op
from durablestack import DurableStack
from durablestack.runs import Succeeded
from durablestack.stores.contract import Claim
from durablestack.supervisor.embedded import supervise


@click.command()
@click.option("--runs", default=2_000, help="Runs per measurement.")
@click.option("--sizes", default="1,10,50,200", help="Batch sizes, separated by commas.")
@click.option("--children", default=4, help="Child processes for the end-to-end figures.")
@click.option("--repeat", default=3, help="Measurements of each figure; medians are shown.")
def main(runs: int, sizes: str, children: int, repeat: int) -> None:
    """Compare batch sizes on each store that is available."""
    console = Console()
    describe_machine(console)
    batch_sizes = [int(size) for size in sizes.split(",")]
    table = Table(title=f"{runs} no-op runs, {children} children, medians of {repeat}")
    for heading in ("store", "batch size", "claims/s", "runs/s, store alone", "runs/s, end to end", "against size 1"):
        table.add_column(heading, justify="left" if heading == "store" else "right")
    with stores(console) as available, Progress(console=console, transient=True) as progress:
        task = progress.add_task("measuring", total=len(available) * len(batch_sizes) * repeat * 2)
        for name, store in available.items():
            alone: dict[int, list[float]] = {size: [] for size in batch_sizes}
            whole: dict[int, list[float]] = {size: [] for size in batch_sizes}
            for _ in range(repeat):
                for size in batch_sizes:
                    with fresh_stack(store) as stack:
                        alone[size].append(_store_alone(stack, runs, size))
                    progress.advance(task)
                    with fresh_stack(
                        store, batch_size=size, max_concurrent_runs=children, poll_interval_seconds=0.2
                    ) as stack:
                        whole[size].append(anyio.run(_end_to_end, stack, runs))
                    progress.advance(task)
            for size in batch_sizes:
                rate, end_to_end = statistics.median(alone[size]), statistics.median(whole[size])
                first = statistics.median(alone[batch_sizes[0]])
                figures = [f"{value:,.0f}" for value in (rate / size, rate, end_to_end)]
                table.add_row(name, str(size), *figures, f"{rate / first:.1f} x")
            table.add_section()
    console.print(table)


def _store_alone(stack: DurableStack, runs: int, batch_size: int) -> float:
    """Runs per second through claim and record."""
    stack.client.enqueue_many(no_op, [None] * runs)
    began, done = time.perf_counter(), 0
    while done < runs:
        claim = Claim(
            worker_name="benchmark",
            lease_token=uuid4(),
            job_names=stack.jobs.names,
            batch_size=batch_size,
            lease_duration=timedelta(seconds=30),
        )
        claimed = stack.store.claim_due_runs(claim).runs
        done += len(stack.store.record([Succeeded(run.lease) for run in claimed]))
    return runs / (time.perf_counter() - began)


async def _end_to_end(stack: DurableStack, runs: int) -> float:
    """Runs per second through a supervisor and its children."""
    run_ids = await stack.async_client.enqueue_many(no_op, [None] * runs)
    async with supervise(stack):
        await all_succeeded(stack, runs)
    done = [run for run_id in run_ids if (run := stack.queries.get_run(run_id)) is not None]
    began = min(run.started_at for run in done if run.started_at)
    ended = max(run.completed_at for run in done if run.completed_at)
    return runs / (ended - began).total_seconds()


if __name__ == "__main__":
    main()
