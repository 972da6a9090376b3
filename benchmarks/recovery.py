"""How soon is a crash dealt with? Seconds from SIGKILL to what should follow, with real processes.

    python -m benchmarks.recovery [--repeat 10]

"recorded": a child is killed in the middle of a run; until its outcome stands in the database.
"refilled": the same; until the slot has a child again.
"children gone": the supervisor is killed; until none of its children is left, one of which holds the GIL.
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
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.bench import describe_machine, stores
from durablestack import RunStatus
from processes import still_running
from workers import bench, eventually

KINDS = ("recorded", "refilled", "children gone")
LIMIT_SECONDS = 1.0


@click.command()
@click.option("--repeat", default=10, help="Measurements per store.")
def main(repeat: int) -> None:
    """Measure recovery after SIGKILL on each durable store that is available."""
    console = Console()
    describe_machine(console)
    table = Table(title=f"seconds after SIGKILL, {repeat} repetitions")
    for heading in ("store", "what", "median", "worst", f"at most {LIMIT_SECONDS:g}"):
        table.add_column(heading)
    with stores(console) as available, Progress(console=console, transient=True) as progress:
        durable = {name: store for name, store in available.items() if "database_url" in store}
        task = progress.add_task("measuring", total=len(durable) * repeat)
        for name, store in durable.items():
            found: dict[str, list[float]] = {kind: [] for kind in KINDS}
            for number in range(repeat):
                for kind, seconds in _measure(store, number).items():
                    found[kind].append(seconds)
                progress.advance(task)
            for kind, seconds_of in found.items():
                verdict = "yes" if max(seconds_of) <= LIMIT_SECONDS else "NO"
                table.add_row(name, kind, f"{statistics.median(seconds_of):.3f}", f"{max(seconds_of):.3f}", verdict)
    console.print(table)


def _measure(store: dict[str, Any], number: int) -> dict[str, float]:
    settings = {
        "DURABLESTACK__DATABASE_URL": store["database_url"],
        "DURABLESTACK__DATABASE_TABLE_PREFIX": f"r{os.getpid()}_{number}_",
        "DURABLESTACK__MAX_CONCURRENT_RUNS": "2",
        "DURABLESTACK__RETRY_DELAY": "3600",
    }
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


if __name__ == "__main__":
    main()
