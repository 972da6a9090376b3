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
import tempfile
from pathlib import Path

import anyio
import rich_click as click
from msgspec import Struct

from benchmarks.bench import Store, all_ready, all_succeeded
from benchmarks.bench_jobs import Burn, burn
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
    with (
        store.stack(max_concurrent_runs=children) as stack,
        tempfile.NamedTemporaryFile() as notes,
    ):
        fire = Fire(stack, store, notes.name, runs, children)
        others_cores = fire.beside() if store.durable else anyio.run(fire.in_this_process)
        wall, cpu_seconds = fire.wall_seconds(), fire.cpu_seconds(runs)
    cores = len(os.sched_getaffinity(0))
    ideal, rest = cpu_seconds / cores, cpu_seconds / max(cores - others_cores, 0.1)
    return {"efficiency": ideal / wall, "of the rest": rest / wall, "wall": wall, "ideal": ideal}


class Fire(Struct, frozen=True):
    """One measurement. What each run used it notes in a file: to print it would be work for the supervisor too."""

    stack: DurableStack
    store: Store
    notes: str
    runs: int
    children: int

    def beside(self) -> float:
        """Drained by a supervisor of its own; return how many cores others kept busy meanwhile."""
        stack = self.stack
        settings = {**self.store.options, "poll_interval_seconds": stack.options.poll_interval_seconds}
        with worker(stack, settings, children=self.children) as supervisor:
            supervisor.until_ready()
            self._try()
            until_done(stack, self.children, [supervisor])
            self._burn()
            watch = Watch()
            with looking_from_elsewhere():
                until_done(stack, self.children + self.runs, [supervisor], look_every_seconds=0.5)
            return watch.others()

    async def in_this_process(self) -> float:
        async with supervise(self.stack) as supervisor:
            await all_ready(supervisor)
            self._try()  # on the event loop, so that no claim gets in between
            await all_succeeded(self.stack, self.children)
            self._burn()
            watch = Watch()
            await all_succeeded(self.stack, self.children + self.runs)
            return watch.others()

    def _try(self) -> None:
        self.stack.client.enqueue_many(burn, [Burn(self.notes, ROUNDS_AT_FIRST)] * self.children)

    def _burn(self) -> None:
        """As much work each time as takes these children so long, on these cores, all of them at work."""
        rounds = int(ROUNDS_AT_FIRST * RUN_SECONDS * self.children / self.cpu_seconds(self.children))
        self.stack.client.enqueue_many(burn, [Burn(self.notes, rounds)] * self.runs)

    def wall_seconds(self) -> float:
        """From the first claim to the last outcome recorded."""
        found = [
            (run.started_at, run.completed_at)
            for run in self.stack.queries.get_recent_runs(take=self.runs)
            if run.started_at is not None and run.completed_at is not None
        ]
        return (max(ended for _, ended in found) - min(began for began, _ in found)).total_seconds()

    def cpu_seconds(self, count: int) -> float:
        """Of the latest runs, added up."""
        return sum(map(float, Path(self.notes).read_text().split()[-count:]))


if __name__ == "__main__":
    main()
