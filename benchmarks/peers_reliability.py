"""Default configurations under the same hostile jobs and kills: this project, and three others in Python.

    python -m benchmarks.peers_reliability [--peers durablestack,procrastinate,pgqueuer,vendor] [--repeat N]
        [--json FILE] [--markdown FILE]

Who is compared: this project (in this interpreter), the vendor's own package (its distribution has our import name),
procrastinate and PgQueuer. Each of the others is installed, in a pinned version, into an environment of its own in the
user's cache folder. All work on PostgreSQL, each scenario on a server of its own, and execute the same jobs:
benchmarks/peers/hostile.py.

What is configured:

* Everything is as the package's documentation starts a worker, and has its default, except the number of runs at once,
  which is 5 for all (PgQueuer: with batches of 2, for it wants a limit of twice the batch).
* A job is an ordinary function that blocks, where a package takes one; PgQueuer's must be asynchronous, and calls it in
  a thread. The long run of "deploy" is asynchronous everywhere, so that whoever cancels politely can.
* The second row of a package adds what its documentation says about recovery. procrastinate: the periodic task
  `retry_stalled_jobs` (each minute, not each tenth), `retry=3`, `--shutdown-graceful-timeout=10`. PgQueuer:
  `--shutdown-on-listener-failure`, and its `DatabaseRetryEntrypointExecutor`. The vendor's package has nothing to add;
  what it needs to run on PostgreSQL at all stands in benchmarks/peers/vendor_adapter.py.
* A worker that ends by itself is started again a tenth of a second later, whoever it is, as a service manager would.
* One worker, except in "frozen", "paused", "hang, two workers" and "deploy", which have two.
* To cancel means the package's own call for it: `cancel_run`, `cancel_job_by_id(abort=True)`, `mark_job_as_cancelled`.

What is measured, for the jobs that do nothing wrong: how many the database does not call succeeded within the bound
(120 seconds after the fault), how many were executed to their end twice, how many had an execution that still got on
after another had begun, how many executions were cut short, and the seconds from the fault until all were done.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import TextIO

import psycopg
import rich_click as click
from rich.console import Console
from rich.progress import Progress

from benchmarks.bench import describe_machine  # also: the folder of the tests is on the path from here on
from benchmarks.peers.bench import bench
from benchmarks.peers.measures import Measure, measure, worst
from benchmarks.peers.report import Results, details, markdown, overview, rich_table
from benchmarks.peers.scenarios import SCENARIOS, Scenario
from benchmarks.peers.setups import PEERS, SETUPS, Setup, interpreter
from servers import start_postgres


@click.command()
@click.option("--peers", default=",".join(PEERS), help="Compare these.")
@click.option("--scenario", "scenarios", multiple=True, help="Only this one; can be repeated.")
@click.option("--repeat", default=1, help="Repetitions of each scenario.")
@click.option("--at-once", default=max(1, (os.cpu_count() or 1)), help="Scenarios that are run at the same time.")
@click.option("--json", "json_file", type=click.File("w"), help="Write all measurements there.")
@click.option("--markdown", "markdown_file", type=click.File("w"), help="Write the tables there.")
def main(
    peers: str,
    scenarios: tuple[str, ...],
    repeat: int,
    at_once: int,
    json_file: TextIO | None,
    markdown_file: TextIO | None,
) -> None:
    """Compare what becomes of jobs when workers, jobs and databases fail."""
    console = Console()
    describe_machine(console)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # crashes are what we are here for
    wanted = {PEERS[name] for name in peers.split(",")}
    setups = [setup for setup in SETUPS if setup.peer in wanted]
    chosen = [each for each in SCENARIOS if not scenarios or each.name in scenarios]
    versions = _prepare(setups, console)

    measures: dict[tuple[str, str], list[Measure]] = defaultdict(list)
    results: Results = {}
    cells = [cell for _ in range(repeat) for cell in product(chosen, setups)]
    with Progress(console=console, transient=True) as progress, ThreadPoolExecutor(at_once) as threads:
        task = progress.add_task("measuring", total=len(cells))
        for (scenario, setup), found in zip(cells, threads.map(_attempt, cells), strict=True):
            cell = (setup.name, scenario.name)
            progress.advance(task)
            if isinstance(found, Measure):
                measures[cell].append(found)
                results[cell] = worst(measures[cell])
            else:
                console.print(f"{setup.name}, {scenario.name}: {found}", style="yellow")
                results.setdefault(cell, "could not be measured")

    console.print(rich_table("seconds until all is done", overview(chosen, setups, results)))
    for scenario in chosen:
        console.print(rich_table(f"{scenario.name}: {scenario.what}", details(scenario, setups, results)))
    machine = f"{os.cpu_count()} cores, {_postgres_version()}, Python {sys.version_info.major}.{sys.version_info.minor}"
    if json_file is not None:
        runs = {f"{setup}: {scenario}": [*map(asdict, found)] for (setup, scenario), found in measures.items()}
        json.dump({"machine": machine, "versions": versions, "measures": runs}, json_file, indent=2)
    if markdown_file is not None:
        markdown_file.write(markdown(chosen, setups, results, machine, versions, repeat))


def _prepare(setups: list[Setup], console: Console) -> str:
    """An environment for each; the versions that are compared."""
    peers = dict.fromkeys(setup.peer for setup in setups)
    for peer in peers:
        console.print(f"{peer.name}: {', '.join(peer.pins) or 'this interpreter'}", markup=False)
        interpreter(peer)
    return ", ".join(peer.pins[0] for peer in peers if peer.pins).replace("==", " ").replace("[asyncpg]", "")


def _attempt(cell: tuple[Scenario, Setup]) -> Measure | str:
    """A scenario that could not be brought about is told, and does not end the others."""
    try:
        return _measure(*cell)
    except (RuntimeError, TimeoutError, psycopg.Error) as error:
        return f"{type(error).__name__}: {error}"


def _measure(scenario: Scenario, setup: Setup) -> Measure:
    with (
        start_postgres() as server,
        tempfile.TemporaryDirectory(prefix="durablestack-peers-") as folder,
        bench(setup, server, Path(folder)) as made,
    ):
        return measure(made, scenario.inflict(made))


def _postgres_version() -> str:
    with start_postgres() as server, psycopg.connect(server.dsn) as connection:
        return f"PostgreSQL {connection.info.server_version // 10000}"


if __name__ == "__main__":
    main()
