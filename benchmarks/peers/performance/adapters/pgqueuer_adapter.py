"""PgQueuer on asyncpg and uvloop, as `pgq run` has it, which itself stumbles over the newest typer.

Settings "batch N", from its guide "Performance Tuning" (docs/guides/performance-tuning): larger batches for short
jobs (it names no largest one), one asyncpg connection for the worker, the tables as `pgq autovac` sets them, and the
durability that is its default (`durable`). "2 x batch N": two such workers, each a process. "defaults": batches of 10,
the tables as they are installed.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import commands
import pgqueuer
import uvloop
import work
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

BATCH_SIZES = {"defaults": 10, "batch 100": 100, "batch 1,000": 1_000}
WORKERS, _, ONE_WORKER = commands.SETTINGS.rpartition(" x ")
BATCH_SIZE = BATCH_SIZES[ONE_WORKER]
BEST = commands.SETTINGS != "defaults"


@asynccontextmanager
async def application() -> AsyncIterator[PgQueuer]:
    queuer = PgQueuer.from_asyncpg_connection(await asyncpg.connect(commands.URL))

    @queuer.entrypoint("no_op")
    async def no_op(job: Job) -> None:
        work.no_op()

    @queuer.entrypoint("tell")
    async def tell(job: Job) -> None:
        work.tell(float(job.payload or b""))

    @queuer.entrypoint("burn")
    async def burn(job: Job) -> None:
        work.burn(int(job.payload or b""))

    yield queuer


class Client:
    def __init__(self, queries: Queries) -> None:
        self._queries = queries

    async def one(self, job: str, argument: Any) -> None:
        await self._queries.enqueue(job, _payload(argument))

    async def bulk(self, job: str, arguments: list[Any]) -> None:
        count = len(arguments)
        await self._queries.enqueue([job] * count, [*map(_payload, arguments)], [0] * count)


def _payload(argument: Any) -> bytes | None:
    return None if argument is None else str(argument).encode()


@asynccontextmanager
async def client() -> AsyncIterator[Client]:
    connection = await asyncpg.connect(commands.URL)
    try:
        yield Client(Queries(AsyncpgDriver(connection)))
    finally:
        await connection.close()


async def _install() -> None:
    connection = await asyncpg.connect(commands.URL)
    queries = Queries(AsyncpgDriver(connection))
    await queries.install()
    if BEST:
        await queries.optimize_autovacuum()
    await connection.close()


def install() -> None:
    asyncio.run(_install())


def worker() -> None:
    if WORKERS:
        several(int(WORKERS))
    else:
        uvloop.run(pgqueuer.run(application, batch_size=BATCH_SIZE))


def several(workers: int) -> None:
    environment = {**os.environ, "PEERS_SETTINGS": ONE_WORKER}
    started = [subprocess.Popen([sys.executable, __file__, "worker"], env=environment) for _ in range(workers)]
    signal.signal(signal.SIGTERM, lambda *_: [each.terminate() for each in started])
    for each in started:
        each.wait()


if __name__ == "__main__":
    commands.run(install=install, worker=worker, client=client, runner=uvloop.run)
