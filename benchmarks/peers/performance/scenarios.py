"""What is measured of a contender, once: the same definitions for all of them, see benchmarks/peers_performance.py."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from msgspec import Struct

from benchmarks.harness import Figures
from benchmarks.machine import looking_from_elsewhere
from benchmarks.peers.performance.crew import Crew, NotMeasured
from benchmarks.peers.performance.footprint import own_seconds, tree_memory, tree_seconds
from processes import still_running

DRAIN_SECONDS_MAX = 30.0
"""Who has not drained the queue by then is measured by what it has done."""

LOOK_SECONDS_MIN, LOOK_SECONDS_MAX = 0.001, 0.25

LATENCY_PER_SECOND = 20
WARM_UP_SECONDS = 1.0
BURN_JOBS, BURN_SECONDS, BURN_CORES = 64, 0.1, 2
IDLE_JOBS, IDLE_SECONDS = 20, 1.0
ONE_BY_ONE = 1_000


class Load(Struct, frozen=True):
    """How much there is to do."""

    runs: int = 10_000
    latency_seconds: float = 5.0


def drain(crew: Crew, load: Load) -> Figures:
    crew.enqueue("no_op", None, load.runs)
    crew.place.settle()
    queued = crew.not_done()
    with crew.worker() as worker, looking_from_elsewhere():
        (began,) = crew.until_noted("first", 1, worker)
        usage = _Usage(crew, worker)
        ended, left = _until_done(crew, worker, began, queued)
        done = queued - left
        if not done:
            raise NotMeasured(f"nothing done within {DRAIN_SECONDS_MAX:g} s")
        return {"drain": done / (ended - began), **usage.milliseconds_per_thousand(done)}


class _Usage:
    """CPU time since the first job started, of the worker's family, of its first process, and of the server."""

    def __init__(self, crew: Crew, worker: int) -> None:
        self._server, self._worker = crew.place.server_pid, worker
        self._began = self._seconds()

    def milliseconds_per_thousand(self, jobs: int) -> Figures:
        used = {name: seconds - self._began[name] for name, seconds in self._seconds().items()}
        return {name: 1000 * seconds / jobs * 1000 for name, seconds in used.items()}

    def _seconds(self) -> dict[str, float]:
        seconds = {"worker_cpu": tree_seconds(self._worker), "parent_cpu": own_seconds(self._worker)}
        return seconds if self._server is None else {**seconds, "server_cpu": tree_seconds(self._server)}


def _until_done(crew: Crew, worker: int, began: float, queued: int) -> tuple[float, int]:
    """When the store first told that nothing is left, or the time was over; and how many were left.

    Looking costs the server something, so each look comes when half of the time has gone that the rest will take.
    """
    while True:
        left, now = crew.not_done(), time.monotonic()
        if left == 0 or now - began > DRAIN_SECONDS_MAX:
            return now, left
        if not still_running(worker):
            raise NotMeasured(f"the worker ended, {left} of {queued} jobs were not done")
        time.sleep(look_again_after(now - began, queued, left))


def look_again_after(seconds: float, queued: int, left: int) -> float:
    """Half of what the rest will take, if it goes on as it went."""
    if left >= queued:
        return LOOK_SECONDS_MIN
    return min(max(seconds * left / (queued - left) / 2, LOOK_SECONDS_MIN), LOOK_SECONDS_MAX)


def latency(crew: Crew, load: Load) -> Figures:
    with crew.worker() as worker:
        crew.enqueue("tell", 0.0, 1)
        crew.until_noted("latencies", 1, worker)
        warm_up = round(WARM_UP_SECONDS * LATENCY_PER_SECOND)
        count = warm_up + round(load.latency_seconds * LATENCY_PER_SECOND)
        crew.adapter("trickle", str(LATENCY_PER_SECOND), str(count))
        found = crew.until_noted("latencies", 1 + count, worker)[1 + warm_up :]
    cuts = statistics.quantiles(found, n=100, method="inclusive")
    return {"latency_p50": cuts[49] * 1000, "latency_p99": cuts[98] * 1000}


def cpu(crew: Crew, load: Load) -> Figures:
    rounds = _rounds_for(BURN_SECONDS)
    with _bound_to(BURN_CORES):
        crew.enqueue("burn", rounds, BURN_JOBS)
        queued = crew.not_done()
        with crew.worker() as worker, looking_from_elsewhere():
            (began,) = crew.until_noted("first", 1, worker)
            done, left = _until_done(crew, worker, began, queued)
            if left:
                raise NotMeasured(f"{left} of {BURN_JOBS} jobs not done within {DRAIN_SECONDS_MAX:g} s")
            ended = max(done, *crew.until_noted("ended", BURN_JOBS, worker))
    return {"cpu_efficiency": sum(crew.notes("burnt")) / BURN_CORES / (ended - began)}


def memory(crew: Crew, load: Load) -> Figures:
    with crew.worker() as worker:
        crew.enqueue("tell", 0.0, IDLE_JOBS)
        crew.until_noted("latencies", IDLE_JOBS, worker)
        time.sleep(IDLE_SECONDS)
        return {"memory": tree_memory(worker) / 2**20}


def enqueue(crew: Crew, load: Load) -> Figures:
    each = crew.enqueue("no_op", None, ONE_BY_ONE, "each")
    bulk = crew.enqueue("no_op", None, load.runs, "bulk only")
    found = {"enqueue_one": each.get("per_second"), "enqueue_bulk": bulk.get("per_second")}
    return {name: rate for name, rate in found.items() if rate is not None}


Scenario = Callable[[Crew, Load], Figures]
SCENARIOS: dict[str, Scenario] = {scenario.__name__: scenario for scenario in (drain, latency, cpu, memory, enqueue)}

UNITS = {
    "drain": "jobs/s",
    "worker_cpu": "ms/1,000",
    "parent_cpu": "ms/1,000",
    "server_cpu": "ms/1,000",
    "latency_p50": "ms",
    "latency_p99": "ms",
    "cpu_efficiency": "ideal/wall",
    "memory": "MiB",
    "enqueue_one": "jobs/s",
    "enqueue_bulk": "jobs/s",
}


@contextmanager
def _bound_to(cores: int) -> Iterator[None]:
    """Us and all that we start; the servers are where they were."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _rounds_for(seconds: float) -> int:
    began, rounds = time.process_time(), 0
    while time.process_time() - began < 0.5:
        sum(range(1000))
        rounds += 1
    return int(rounds * seconds / 0.5)
