"""How long after an enqueue by another process does its run begin, while the worker is idle and under load?

    python -m benchmarks.latency [--rates 20,1000] [--seconds 10] [--hints on,off] [--children 10] [--threads 4]

An idle supervisor with ready children; this process enqueues one run at a time, at so many per second and at uneven
moments. The time counts from before the enqueue to the first line of the job, in its child. "enqueue": how much of
that the enqueue itself took, whose commit is on the disk when it returns. "supervisor": its CPU time, in hundredths of
a core. With hints off (wake_on_enqueue = false) what is enqueued is found by polling, every 5 seconds at least, and
sooner after other work.
"""

from __future__ import annotations

import os
import random
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import rich_click as click

from benchmarks.bench import Store
from benchmarks.harness import Figures, Harness, benchmark
from benchmarks.latency_jobs import NOTE, STARTS_VARIABLE, note_the_start
from benchmarks.worker import Role, worker
from durablestack import DurableStack

JOBS = "benchmarks.latency_jobs"
WARM_UP_RUNS = 40
LAST_STARTS_WITHIN_SECONDS = 30.0

UNITS = {
    "p50": "ms",
    "p95": "ms",
    "p99": "ms",
    "max": "ms",
    "enqueue p50": "ms",
    "enqueue p99": "ms",
    "rate": "runs/s",
    "supervisor": "% of a core",
    "supervisor at rest": "% of a core",
}


@benchmark(units=UNITS, repeat=3, stores=("postgres", "sqlite", "mysql"))
@click.option("--rates", default="20,1000", show_default=True, help="Enqueues per second.")
@click.option("--seconds", default=10.0, show_default=True, help="How long, each.")
@click.option("--hints", default="on,off", show_default=True, help="Whether the worker hears of enqueues.")
@click.option("--children", default=10, show_default=True, help="Children of the supervisor.")
@click.option("--threads", default=4, show_default=True, help="Threads that enqueue, where one is too slow.")
@click.option("--rest", default=0.0, show_default=True, help="Seconds of doing nothing, to measure what that costs.")
def main(harness: Harness, rates: str, seconds: float, hints: str, children: int, threads: int, rest: float) -> None:
    """From enqueue to start."""
    for store, rate, hint in product(harness.stores, map(float, rates.split(",")), hints.split(",")):
        labels = {"store": store.name, "enqueues/s": int(rate), "hints": hint}
        senders = 1 if rate <= 100 else threads
        harness.case(labels, latencies, store, rate, seconds, hint == "on", children, senders, rest)
    harness.measure()


def latencies(
    store: Store, rate: float, seconds: float, hints: bool, children: int, senders: int, rest_seconds: float
) -> Figures:
    settings = {**store.options, "wake_on_enqueue": hints, "poll_interval_seconds": 5.0}
    with (
        starts_file() as starts,
        store.stack(JOBS, wake_on_enqueue=hints) as stack,
        worker(stack, settings, children=children, target=JOBS) as supervisor,
    ):
        supervisor.until_ready()
        warm_up(stack, starts)
        at_rest = supervisor.cpu_seconds()[Role.SUPERVISOR]
        time.sleep(rest_seconds)
        before = supervisor.cpu_seconds()[Role.SUPERVISOR]
        began_at = time.monotonic()
        sent = enqueue_at(stack, rate, seconds, senders)
        sending_seconds = time.monotonic() - began_at
        used = supervisor.cpu_seconds()[Role.SUPERVISOR] - before
        started = until_started(starts, WARM_UP_RUNS + len(sent))
    waited = sorted(started[number] - asked_at for number, (asked_at, _) in sent.items())
    enqueued = sorted(answered_at - asked_at for asked_at, answered_at in sent.values())
    figures = {
        "p50": percentile(waited, 50),
        "p95": percentile(waited, 95),
        "p99": percentile(waited, 99),
        "max": waited[-1] * 1000,
        "enqueue p50": percentile(enqueued, 50),
        "enqueue p99": percentile(enqueued, 99),
        "rate": len(sent) / sending_seconds,
        "supervisor": 100 * used / sending_seconds,
    }
    if rest_seconds:
        figures["supervisor at rest"] = 100 * (before - at_rest) / rest_seconds
    return figures


@contextmanager
def starts_file() -> Iterator[Path]:
    """Where the jobs of workers that are started meanwhile note when they began."""
    with tempfile.NamedTemporaryFile(prefix="durablestack-starts-") as file:
        os.environ[STARTS_VARIABLE] = file.name
        yield Path(file.name)
        del os.environ[STARTS_VARIABLE]


def warm_up(stack: DurableStack, starts: Path) -> None:
    """Each child has executed the job, each connection is there; then it is quiet for a while."""
    for number in range(WARM_UP_RUNS):
        stack.client.enqueue(note_the_start, -1 - number)
        time.sleep(0.01)
    until_started(starts, WARM_UP_RUNS)
    time.sleep(0.5)


def enqueue_at(stack: DurableStack, rate: float, seconds: float, senders: int) -> dict[int, tuple[float, float]]:
    """Of each run that was enqueued: when it was to be, and when that was answered."""
    sent: dict[int, tuple[float, float]] = {}

    def send(numbers: Sequence[int]) -> None:
        at = time.monotonic()
        for number in numbers:
            at += random.uniform(0.5, 1.5) * senders / rate
            time.sleep(max(0.0, at - time.monotonic()))
            asked_at = time.monotonic()
            stack.client.enqueue(note_the_start, number)
            sent[number] = (asked_at, time.monotonic())

    count = int(rate * seconds)
    threads = [threading.Thread(target=send, args=(range(first, count, senders),)) for first in range(senders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sent


def until_started(starts: Path, count: int) -> dict[int, float]:
    """When each run began, once there are so many."""
    give_up_at = time.monotonic() + LAST_STARTS_WITHIN_SECONDS
    while (found := starts.stat().st_size // NOTE.size) < count:
        if time.monotonic() > give_up_at:
            raise RuntimeError(f"{found} of {count} runs have begun")
        time.sleep(0.05)
    return dict(NOTE.iter_unpack(starts.read_bytes()))


def percentile(ascending: Sequence[float], percent: float) -> float:
    """In milliseconds: so much of all is less."""
    return ascending[min(len(ascending) - 1, int(len(ascending) * percent / 100))] * 1000


if __name__ == "__main__":
    main()
