"""The same work done by this project and by other job systems: how fast, at what cost, with how much memory.

    python -m benchmarks.peers_performance [--cores 2] [--peers pgqueuer,huey] [--scenarios drain] [--json FILE]

Who is compared, and where: benchmarks/peers/performance/contenders.py. With which settings, and from which page of its
documentation: the adapter of each. Packages are installed, in pinned versions, into environments of their own in the
user's cache folder. PostgreSQL and MariaDB have their default durability, SQLite writes through, Redis appends to a
file that is synced each second (benchmarks/peers/performance/redis.py). Contenders take turns; each measurement has a
database that nobody has used, and a worker that has just been started. Second table: everything as multiples of this
project's figure in the same turn.

The definitions, which are the same for everybody:

* drain: so many no-op jobs are queued, then a worker is started. From the start of the first job, by its own word, to
  the moment when the store tells that no job is left that is not done: recorded, acknowledged or deleted for good, and
  where a package does neither (huey; celery, unless it acknowledges late), taken out of the queue. The store is asked
  at half of the time that the rest will take, and at most each millisecond, by a process that keeps to other cores
  where there are any. After 30 seconds what was done counts.
  PostgreSQL has been given a `vacuum analyze` and a checkpoint after the jobs were queued, as it would do by itself
  within a minute or so; without statistics some contenders are several times slower.
* worker CPU: user and system time during that, of all processes of the worker; parent CPU: of its first process alone,
  which is the supervisor of this project; server CPU: of the database or broker. Per 1,000 jobs.
* latency: an idle worker, 20 jobs a second; from before a job is enqueued to its first line.
* CPU efficiency: 64 jobs that need 100 ms of a core each, worker and all on 2 cores. The CPU time of the jobs by
  their own word / 2, divided by the time from the start of the first to the end of the last as for "drain".
* memory: proportional set size of all processes of a worker that has executed 20 jobs, and has had none for a second.
* enqueue: one by one, each acknowledged before the next; in bulk, with the package's own call, where it has one.

All of it takes more than an hour; `--scenarios drain --no-redis` about ten minutes on a quiet machine.

What speaks for others: coroutines and threads isolate nothing, Redis promises less at a crash. What speaks for us: we
have chosen the work. Where a contender failed, the reason is printed, and the others go on.
"""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pymysql
import rich_click as click

from benchmarks.harness import Figures, Harness, benchmark
from benchmarks.peers.performance.contenders import CONTENDERS, DURABLESTACK, PACKAGES, Contender, Package
from benchmarks.peers.performance.crew import NotMeasured, crew_of
from benchmarks.peers.performance.places import Servers
from benchmarks.peers.performance.ratios import ratio_table, ratios
from benchmarks.peers.performance.redis import Redis, redis_server
from benchmarks.peers.performance.scenarios import SCENARIOS, UNITS, Load, Scenario
from servers import ServerAbsent, ServerFailed

FAILURES = (NotMeasured, psycopg.Error, pymysql.Error, sqlite3.Error, ServerFailed, OSError)


@benchmark(units=UNITS, repeat=5, stores=("postgres", "mysql", "sqlite"))
@click.option("--peers", default=",".join(PACKAGES), show_default=True, help="Compare us with these.")
@click.option("--redis/--no-redis", "with_redis", default=True, help="Whether those on Redis are compared too.")
@click.option("--scenarios", default=",".join(SCENARIOS), show_default=True, help="Measure these.")
@click.option("--runs", default=10_000, show_default=True, help="Jobs to drain, and to enqueue in bulk.")
@click.option("--children", default=10, show_default=True, help="Processes of a worker that has processes.")
@click.option("--ratios", "ratios_file", metavar="FILE", help="Write the multiples there, as JSON.")
def main(
    harness: Harness,
    peers: str,
    with_redis: bool,
    scenarios: str,
    runs: int,
    children: int,
    ratios_file: str | None,
) -> None:
    packages = _installed(harness, [DURABLESTACK, *(PACKAGES[name] for name in peers.split(",") if name)])
    wanted = {name: SCENARIOS[name] for name in scenarios.split(",")}
    with ExitStack() as exits:
        databases = {"MySQL" if store.name == "MariaDB" else store.name: store for store in harness.stores}
        servers = Servers(databases, _redis(harness, exits) if with_redis else None)
        for contender in CONTENDERS:
            if contender.package not in packages or (store := servers.name_of(contender.store)) is None:
                continue
            labels = {"package": contender.package.title, "store": store, "settings": contender.settings}
            harness.case(labels, measure, harness, contender, servers, wanted, Load(runs), children)
        cases = harness.measure()
    harness.console.print(ratio_table(cases, UNITS))
    if ratios_file is not None:
        Path(ratios_file).write_text(json.dumps(ratios(cases), indent=1) + "\n")


def measure(
    harness: Harness,
    contender: Contender,
    servers: Servers,
    scenarios: Mapping[str, Scenario],
    load: Load,
    children: int,
) -> Figures:
    """A contender in all scenarios, one after the other; one that fails is told, and does not end the others."""
    found: dict[str, float] = {}
    for name, scenario in scenarios.items():
        try:
            with crew_of(contender, servers, children) as crew:
                found.update(scenario(crew, load))
        except FAILURES as error:
            reason = str(error) if isinstance(error, NotMeasured) else f"{type(error).__name__}: {error}"
            row = f"{contender.package.title} on {contender.store}, {contender.settings}"
            harness.warn(f"not measured: {name} of {row}: {reason}")
    return found


def _installed(harness: Harness, packages: list[Package]) -> list[Package]:
    """Those that have an environment, made now if need be."""
    installed = []
    for package in packages:
        try:
            package.interpreter()
        except (subprocess.SubprocessError, OSError) as error:
            harness.warn(f"not measured: {package.title}: {error}")
        else:
            installed.append(package)
    return installed


def _redis(harness: Harness, exits: ExitStack) -> Redis | None:
    try:
        return exits.enter_context(redis_server())
    except (ServerAbsent, ServerFailed) as error:
        harness.warn(f"not measured: what works on Redis: {error}")
        return None


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that workers, servers and folders are gone then, too
    main()
