"""How soon is a crash dealt with? Seconds from SIGKILL to what should follow, with real processes.

    python -m benchmarks.recovery [--repeat 10]

"recorded": a child is killed in the middle of a run; until its outcome stands in the database.
"refilled": the same; until the slot has a child again.
"children gone": the supervisor is killed; until none of its children is left, one of which holds the GIL.
"restarted": the supervisor is killed with 20 runs in hand, with the default lease of 30 s, and started again at once;
from there until all of them have succeeded.
"host gone": the same, but the dead worker is made one of another machine; from the kill, once.
"""

from __future__ import annotations

import os
import signal
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import rich_click as click
from msgspec.structs import replace
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.bench import describe_machine, stores
from durablestack import RunStatus
from durablestack.supervisor.incarnation import this_worker
from processes import still_running
from workers import bench, eventually

LIMITS_SECONDS = {
    "recorded": 1.0,
    "refilled": 1.0,
    "children gone": 1.0,
    "restarted": 5.0,
    "host gone": 30.0 + 5.0 * 1.2 + 1.0,  # lease, poll interval with its jitter, and a second
}
RUNS_IN_HAND = 20


@click.command()
@click.option("--repeat", default=10, help="Measurements per store.")
def main(repeat: int) -> None:
    """Measure recovery after SIGKILL on each durable store that is available."""
    console = Console()
    describe_machine(console)
    table = Table(title=f"seconds after SIGKILL, {repeat} repetitions")
    for heading in ("store", "what", "median", "worst", "at most"):
        table.add_column(heading)
    with stores(console) as available, Progress(console=console, transient=True) as progress:
        durable = {name: store for name, store in available.items() if "database_url" in store}
        task = progress.add_task("measuring", total=len(durable) * repeat)
        for name, store in durable.items():
            found: dict[str, list[float]] = {kind: [] for kind in LIMITS_SECONDS}
            for number in range(repeat):
                measured = {**_crashes(store, number), "restarted": _restart(store, number, host_gone=False)}
                for kind, seconds in measured.items():
                    found[kind].append(seconds)
                progress.advance(task)
            found["host gone"].append(_restart(store, repeat, host_gone=True))
            for kind, seconds_of in found.items():
                limit = LIMITS_SECONDS[kind]
                verdict = f"{limit:g}: " + ("yes" if max(seconds_of) <= limit else "NO")
                table.add_row(name, kind, f"{statistics.median(seconds_of):.3f}", f"{max(seconds_of):.3f}", verdict)
    console.print(table)


def _settings(store: dict[str, Any], prefix: str, children: int) -> dict[str, str]:
    return {
        "DURABLESTACK__DATABASE_URL": store["database_url"],
        "DURABLESTACK__DATABASE_TABLE_PREFIX": prefix,
        "DURABLESTACK__MAX_CONCURRENT_RUNS": str(children),
        "DURABLESTACK__RETRY_DELAY": "3600",
    }


def _crashes(store: dict[str, Any], number: int) -> dict[str, float]:
    settings = _settings(store, f"r{os.getpid()}_{number}_", children=2)
    with tempfile.TemporaryDirectory() as folder, bench(Path(folder), settings) as made:
        worker = made.worker()
        worker.until_ready(children=2)
        run_id = made.client.enqueue("sleeps", {"seconds": 60.0})
        victim = made.until_noted(run_id, "start").pid
        os.kill(victim, signal.SIGKILL)
        killed_at = time.monotonic()
        eventually(lambda: made.run(run_id).status is not RunStatus.LEASED)
        recorded = time.monotonic() - killed_at
        eventually(lambda: len(worker.children()) == 2)
        refilled = time.monotonic() - killed_at
        made.until_noted(made.client.enqueue("spins-holding-the-gil"), "start")
        children = worker.children()
        worker.kill()
        killed_at = time.monotonic()
        eventually(lambda: not any(map(still_running, children)))
        gone = time.monotonic() - killed_at
    return {"recorded": recorded, "refilled": refilled, "children gone": gone}


def _restart(store: dict[str, Any], number: int, *, host_gone: bool) -> float:
    settings = _settings(store, f"s{os.getpid()}_{number}_", children=RUNS_IN_HAND)
    with tempfile.TemporaryDirectory() as folder, bench(Path(folder), settings) as made:
        first = made.worker()
        run_ids = [made.client.enqueue("slow-at-first") for _ in range(RUNS_IN_HAND)]
        for run_id in run_ids:
            made.until_noted(run_id, "start")
        first.kill()
        began_at = time.monotonic()
        if host_gone:
            (dead,) = made.stack.store.find_workers(this_worker("me").boot_id)
            made.stack.store.forget_worker(dead.id)
            made.stack.store.register_worker(replace(dead, boot_id="of another machine"))
        made.worker()
        for run_id in run_ids:
            made.until(run_id, RunStatus.SUCCEEDED, within_seconds=60)
        return time.monotonic() - began_at


if __name__ == "__main__":
    main()
