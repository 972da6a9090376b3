"""How many runs per second does a supervisor drain, by store, job, children and batch size, and what CPU do they cost?

    python -m benchmarks.throughput [--runs 10000] [--jobs no-op,1ms,100ms] [--children 10]
        [--batch-sizes 10,50,100,250] [--windows 1,32] [--workers 1,2] [--log-level warning]
    python -m benchmarks.throughput --runs 1000000 --watch --stores postgres --jobs no-op --batch-sizes 250 --repeat 1

Idle supervisors, `python -m durablestack.supervisor`, meet runs that become visible in one transaction; where these are
too many for one, they are there before the supervisors start, whose start is then part of their CPU. "rate" counts
from the first claim to the last outcome recorded, by the database's clock. CPU time is that of the processes from then
until all is recorded: of the supervisors, of their children, of the database's server (not that of SQLite, which is
inside the supervisor). In memory, the supervisor is in the measuring process.

Jobs: "no-op" returns at once; "1ms" and "100ms" sleep for so long, with the middle one of the batch sizes, and a
twentieth of the runs for the long one.
"of the ideal": the time that children would take who did nothing else but sleep, of the time that it took.

--watch looks at the supervisor once a second and tells what it holds after a tenth of the runs, in the end, and the
slope over the last half.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from itertools import product
from types import MappingProxyType

import anyio
import rich_click as click
from msgspec import Struct

from benchmarks import machine
from benchmarks.bench import Store, all_ready, all_succeeded, drain_seconds
from benchmarks.bench_jobs import no_op, wait
from benchmarks.harness import Figures, Harness, benchmark
from benchmarks.records import Case, Label
from benchmarks.worker import Role, Worker, pages_of, until_done, worker
from durablestack import DurableStack
from durablestack.supervisor.embedded import supervise

SECONDS_OF = {"no-op": 0.0, "1ms": 0.001, "100ms": 0.1}
LONG_JOB_SECONDS = 0.05
LONG_JOBS_FEWER = 20
ENQUEUED_AT_ONCE_MAX = 20_000

UNITS = {
    "rate": "runs/s",
    "of the ideal": "%",
    "supervisor": "CPU ms/1,000 runs",
    "children": "CPU ms/1,000 runs",
    "server": "CPU ms/1,000 runs",
    "RSS at a tenth": "MiB",
    "RSS at the end": "MiB",
    "RSS slope": "KiB/100,000 runs",
    "PSS slope": "KiB/100,000 runs",
    "descriptors at a tenth": "number",
    "descriptors at the end": "number",
}
LOOK_EVERY_SECONDS = 1.0
LOOKS_MIN = 10
FLAT_SLOPE_KIB = 256.0
FLAT_DESCRIPTORS = 2
NOTHING: Mapping[str, float] = MappingProxyType({})


@benchmark(units=UNITS, repeat=5)
@click.option("--runs", default=10_000, show_default=True, help="Short runs per measurement.")
@click.option("--jobs", default="no-op,1ms,100ms", show_default=True, help="Which jobs.")
@click.option("--children", default="10", show_default=True, help="Children per supervisor.")
@click.option("--batch-sizes", default="10,50,100,250", show_default=True, help="Runs claimed at once.")
@click.option("--windows", default="", help="Runs that a child is given at once (window_max); else the default.")
@click.option("--workers", default="1", show_default=True, help="Supervisors at the same time.")
@click.option("--log-level", default="warning", show_default=True, help="Of the supervisors.")
@click.option("--watch", is_flag=True, help="Watch what the supervisor holds while it works.")
def main(
    harness: Harness,
    runs: int,
    jobs: str,
    children: str,
    batch_sizes: str,
    windows: str,
    workers: str,
    log_level: str,
    watch: bool,
) -> None:
    """Drain queued runs."""
    sizes = batch_sizes.split(",")
    for store, job, size, count, window, supervisors in product(
        harness.stores, jobs.split(","), sizes, children.split(","), windows.split(","), workers.split(",")
    ):
        if job != "no-op" and size != sizes[len(sizes) // 2]:
            continue  # the longer a run, the less matters how many are claimed at once
        if not store.durable and (supervisors != "1" or watch):
            continue  # it is in no process of its own, and nobody shares its memory
        labels: dict[str, Label] = {"store": store.name, "job": job, "batch size": int(size), "children": int(count)}
        options = {"batch_size": int(size)}
        if window:
            labels["window"] = options["window_max"] = int(window)
        if workers != "1":
            labels["supervisors"] = int(supervisors)
        drain = Drain(
            store=store,
            seconds=SECONDS_OF[job],
            runs=runs // LONG_JOBS_FEWER if SECONDS_OF[job] > LONG_JOB_SECONDS else runs,
            options=options,
            children=int(count),
            supervisors=int(supervisors),
            log_level=log_level,
            watch=watch,
        )
        harness.case(labels, drain.measure)
    cases = harness.measure()
    if watch:
        for case in cases:
            harness.say(f"{', '.join(map(str, case.labels.values()))}: {verdict(case)}")


class Drain(Struct, frozen=True, kw_only=True):
    """One measurement: so many runs that take so long, on a store, through supervisors of a kind."""

    store: Store
    seconds: float
    runs: int
    options: dict[str, int]
    children: int
    supervisors: int
    log_level: str
    watch: bool

    def measure(self) -> Figures:
        with self.store.stack(**self.options, max_concurrent_runs=self.children) as stack:
            if not self.store.durable:
                cpu_seconds = anyio.run(self._embedded, stack)
                return self._figures(drain_seconds(stack), {"supervisor": cpu_seconds})
            at_first = self.runs > ENQUEUED_AT_ONCE_MAX
            if at_first:
                self._enqueue(stack)
            with ExitStack() as exits:
                started = [exits.enter_context(self._worker(stack)) for _ in range(self.supervisors)]
                if at_first:
                    return self._drain(stack, started)
                for each in started:
                    each.until_ready()
                before = self._used(started)
                self._enqueue(stack)
                return self._drain(stack, started, before)

    def _worker(self, stack: DurableStack) -> AbstractContextManager[Worker]:
        settings = {**self.store.options, **self.options}
        return worker(stack, settings, children=self.children, log_level=self.log_level)

    def _drain(self, stack: DurableStack, workers: Sequence[Worker], before: Mapping[str, float] = NOTHING) -> Figures:
        held = watched(stack, workers[0], self.runs) if self.watch else {}
        with machine.looking_from_elsewhere():
            until_done(stack, self.runs, workers)
        used = {role: seconds - before.get(role, 0.0) for role, seconds in self._used(workers).items()}
        return {**self._figures(drain_seconds(stack), used), **held}

    async def _embedded(self, stack: DurableStack) -> float:
        async with supervise(stack) as supervisor:
            await all_ready(supervisor)
            self._enqueue(stack)  # on the event loop, so that no claim gets in between
            before = time.process_time()
            await all_succeeded(stack, self.runs)
            return time.process_time() - before

    def _enqueue(self, stack: DurableStack) -> None:
        left = self.runs
        while left > 0:
            count = min(left, ENQUEUED_AT_ONCE_MAX)
            if self.seconds:
                stack.client.enqueue_many(wait, [self.seconds] * count)
            else:
                stack.client.enqueue_many(no_op, [None] * count)
            left -= count

    def _used(self, workers: Sequence[Worker]) -> dict[str, float]:
        """CPU time so far; what started the children is counted with them."""
        used = [each.cpu_seconds() for each in workers]
        found = {
            "supervisor": sum(each[Role.SUPERVISOR] for each in used),
            "children": sum(each[Role.CHILD] + each[Role.FORK_SERVER] for each in used),
        }
        if self.store.server_pid is not None:
            found["server"] = machine.tree_cpu_seconds(self.store.server_pid)
        return found

    def _figures(self, seconds: float, used: dict[str, float]) -> dict[str, float]:
        figures = {"rate": self.runs / seconds, **{role: cpu * 1000 / self.runs * 1000 for role, cpu in used.items()}}
        if self.seconds:
            figures["of the ideal"] = 100 * self.seconds * self.runs / self.children / self.supervisors / seconds
        return figures


# --- what a supervisor holds


def watched(stack: DurableStack, supervisor: Worker, runs: int) -> dict[str, float]:
    """Look once a second until nothing is due; nothing is told of a drain that is too short for that."""
    looks: list[tuple[float, float, float]] = []
    while stack.queries.count_due(stack.jobs.names, count_max=1):
        pages = pages_of(supervisor.pid)
        looks.append((pages.get("Rss", 0) / 1024, pages.get("Pss", 0) / 1024, float(supervisor.descriptors())))
        time.sleep(LOOK_EVERY_SECONDS)
    if len(looks) < LOOKS_MIN:
        return {}
    resident, shared, descriptors = ([look[column] for look in looks] for column in range(3))
    tenth, half = len(looks) // 10, len(looks) // 2
    per_100_000 = 100_000 / runs * len(looks)  # from one look to the next, to what 100,000 runs take
    return {
        "RSS at a tenth": resident[tenth] / 1024,
        "RSS at the end": resident[-1] / 1024,
        "RSS slope": slope(resident[half:]) * per_100_000,
        "PSS slope": slope(shared[half:]) * per_100_000,
        "descriptors at a tenth": descriptors[tenth],
        "descriptors at the end": descriptors[-1],
    }


def slope(values: Sequence[float]) -> float:
    """By how much they grow from one to the next, as the straight line through all of them does (least squares)."""
    return statistics.linear_regression(range(len(values)), values).slope


def verdict(case: Case) -> str:
    if not case.all("RSS slope"):
        return "too short to tell whether anything grows"
    grown = case.median("descriptors at the end") - case.median("descriptors at a tenth")
    flat = abs(case.median("RSS slope")) <= FLAT_SLOPE_KIB and grown <= FLAT_DESCRIPTORS
    return "flat" if flat else "NOT FLAT"


if __name__ == "__main__":
    main()
