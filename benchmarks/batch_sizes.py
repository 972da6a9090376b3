"""What does a larger batch bring? Exchanges per second of the store alone, and runs per second from end to end.

    python -m benchmarks.batch_sizes [--runs 2000] [--sizes 1,10,50,100,250] [--children 4] [--stores ...]

"store alone": one thread records successes and claims the next runs in the same transaction, and nothing is executed;
the store's own bound. "end to end": a supervisor with child processes drains queued no-op runs; from the first claim to
the last outcome recorded, by the database's clock. A batch that is larger than what the children may hold at once is
never filled: the reason why both are shown.
"""

from __future__ import annotations

import anyio
import rich_click as click

from benchmarks.bench import Store, all_ready, all_succeeded, drain_seconds
from benchmarks.bench_jobs import no_op
from benchmarks.harness import Figures, Harness, benchmark
from benchmarks.limits import exchange_of, fill, measured
from durablestack import DurableStack
from durablestack.supervisor.embedded import supervise

UNITS = {"exchanges": "exchanges/s", "store alone": "runs/s", "end to end": "runs/s"}


@benchmark(units=UNITS)
@click.option("--runs", default=2_000, show_default=True, help="Runs per measurement.")
@click.option("--sizes", default="1,10,50,100,250", show_default=True, help="Batch sizes.")
@click.option("--children", default=4, show_default=True, help="Child processes for the end-to-end figures.")
def main(harness: Harness, runs: int, sizes: str, children: int) -> None:
    """Compare batch sizes on each store that is available."""
    for store in harness.stores:
        for size in map(int, sizes.split(",")):
            harness.case({"store": store.name, "batch size": size}, both, store, runs, size, children)
    harness.measure()


def both(store: Store, runs: int, size: int, children: int) -> Figures:
    with store.stack() as stack:
        fill(stack.store, runs)
        alone, _ = measured(exchange_of(stack.store), runs, size)
    with store.stack(batch_size=size, max_concurrent_runs=children, poll_interval_seconds=0.2) as stack:
        anyio.run(drain, stack, runs)
        return {"exchanges": alone / size, "store alone": alone, "end to end": runs / drain_seconds(stack)}


async def drain(stack: DurableStack, runs: int) -> None:
    async with supervise(stack) as supervisor:
        await all_ready(supervisor)
        await stack.async_client.enqueue_many(no_op, [None] * runs)
        await all_succeeded(stack, runs)


if __name__ == "__main__":
    main()
