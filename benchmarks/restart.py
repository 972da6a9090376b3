"""How soon is a supervisor at work after its start, and a slot after its child was killed?

    python -m benchmarks.restart [--children 10] [--start-methods forkserver,spawn]

Runs wait in the queue. From executing `python -m durablestack.supervisor` until the first of them begins ("first run
begins"), until its outcome stands in the database ("first run recorded"), and until each child is busy ("all busy").
Then a busy child is killed (SIGKILL): until another run begins in its slot ("slot busy again"), and until what became
of the killed one stands in the database ("death recorded").
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import rich_click as click

from benchmarks.bench import Store
from benchmarks.bench_jobs import Stamp, stamp
from benchmarks.harness import Figures, Harness, benchmark
from benchmarks.worker import worker
from durablestack import DurableStack, RunStatus

PATIENCE_SECONDS = 60.0
LOOK_EVERY_SECONDS = 0.002
LONG_SECONDS = 120.0

Seen = TypeVar("Seen")

UNITS = {
    "first run begins": "ms",
    "first run recorded": "ms",
    "all busy": "ms",
    "slot busy again": "ms",
    "death recorded": "ms",
}


@benchmark(units=UNITS, repeat=5, stores=("sqlite", "postgres", "mysql"))
@click.option("--children", default=10, type=click.IntRange(1), show_default=True, help="Child processes.")
@click.option("--start-methods", default="forkserver,spawn", show_default=True, help="How children are started.")
def main(harness: Harness, children: int, start_methods: str) -> None:
    """Measure the start of a supervisor, and of a child in the place of one that was killed."""
    for store in (store for store in harness.stores if store.durable):
        for method in start_methods.split(","):
            harness.case({"store": store.name, "start method": method}, measure, store, method, children)
    harness.measure()


def measure(store: Store, start_method: str, children: int) -> Figures:
    with tempfile.TemporaryDirectory(prefix="durablestack-bench-") as folder, store.stack() as stack:
        first, others = Path(folder) / "first", Path(folder) / "others"
        stack.client.enqueue(stamp, Stamp(str(first), 0.0))
        stack.client.enqueue_many(stamp, [Stamp(str(others), LONG_SECONDS)] * (children + 1))
        settings = {
            **store.options,
            "start_method": start_method,
            "retry_delay": 3600,  # what was killed is not tried again while we look
            "shutdown_drain_timeout_seconds": 0,
        }
        began_at = time.time()
        with worker(stack, settings, children=children):
            first_at = until(lambda: _stamps(first))[0].at
            until(lambda: stack.queries.count_runs()[RunStatus.SUCCEEDED])
            recorded_at = time.time()
            busy = until(lambda: stamps if len(stamps := _stamps(others)) == children else [])
            killed_at = time.time()
            os.kill(busy[0].pid, signal.SIGKILL)
            again_at = until(lambda: _stamps(others)[children:])[0].at
            until(lambda: _ended_once(stack))
            death_at = time.time()
    moments = {
        "first run begins": first_at - began_at,
        "first run recorded": recorded_at - began_at,
        "all busy": max(each.at for each in busy) - began_at,
        "slot busy again": again_at - killed_at,
        "death recorded": death_at - killed_at,
    }
    return {name: seconds * 1000 for name, seconds in moments.items()}


class Noted(NamedTuple):
    """A line that the job `stamp` wrote."""

    pid: int
    at: float


def _stamps(file: Path) -> list[Noted]:
    if not file.exists():
        return []
    lines = (line.split() for line in file.read_text().splitlines())
    return [Noted(int(pid), float(at)) for pid, at in lines]


def _ended_once(stack: DurableStack) -> bool:
    """Whether a run waits for its second attempt."""
    return any(run.attempt for run in stack.queries.get_runs_by_status(RunStatus.PENDING))


def until(look: Callable[[], Seen]) -> Seen:
    """What there is to see, as soon as there is something.

    Raises:
        TimeoutError: there is nothing for too long.
    """
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while not (seen := look()):
        if time.monotonic() > give_up_at:
            raise TimeoutError(f"not within {PATIENCE_SECONDS:g} s")
        time.sleep(LOOK_EVERY_SECONDS)
    return seen


if __name__ == "__main__":
    main()
