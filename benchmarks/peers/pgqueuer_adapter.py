"""PgQueuer, as its quick start and its chapters on deployment and retries have it.

    python pgqueuer_adapter.py install | worker | enqueue JSON | cancel ID

Jobs of theirs are asynchronous; a synchronous function is called in a thread, as their error message recommends.
A worker's limit must be twice its batch at least: 5 at once, in batches of 2.

A worker is started by `pgqueuer.run`, as `pgq run` does it, which stumbles over the newest typer.

With PEERS_SETUP=recovery: the deployment checklist's `--shutdown-on-listener-failure`, and the documented
`DatabaseRetryEntrypointExecutor`, with its defaults.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import hostile
import pgqueuer
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.executors import DatabaseRetryEntrypointExecutor
from pgqueuer.models import Context, Job
from pgqueuer.queries import Queries

RECOVERY = os.environ.get("PEERS_SETUP") == "recovery"
DSN = os.environ["PEERS_DSN"]


@asynccontextmanager
async def application() -> AsyncIterator[PgQueuer]:
    queuer = PgQueuer.from_asyncpg_connection(await asyncpg.connect(DSN))
    executor = {"executor_factory": DatabaseRetryEntrypointExecutor} if RECOVERY else {}

    @queuer.entrypoint("perform", **executor)
    async def perform(job: Job, context: Context) -> None:
        with context.cancellation:
            await asyncio.to_thread(hostile.perform, **_work(job))

    @queuer.entrypoint("perform-patiently", **executor)
    async def perform_patiently(job: Job, context: Context) -> None:
        with context.cancellation:
            await hostile.perform_patiently(**_work(job))

    yield queuer


def _work(job: Job) -> dict[str, object]:
    return json.loads(job.payload or b"")


def main(command: str, *arguments: str) -> None:
    if command == "worker":
        limits = {"max_concurrent_tasks": 5, "batch_size": 2}
        asyncio.run(pgqueuer.run(application, shutdown_on_listener_failure=RECOVERY, **limits))
    else:
        asyncio.run(_administer(command, *arguments))


async def _administer(command: str, *arguments: str) -> None:
    connection = await asyncpg.connect(DSN)
    queries = Queries(AsyncpgDriver(connection))
    match command:
        case "install":
            await queries.install()
        case "enqueue":
            works = json.loads(arguments[0])
            names = ["perform-patiently" if work["kind"] == "patient" else "perform" for work in works]
            payloads = [json.dumps(work).encode() for work in works]
            print(json.dumps([str(each) for each in await queries.enqueue(names, payloads, [0] * len(works))]))
        case "cancel":
            await queries.mark_job_as_cancelled([int(arguments[0])])
    await connection.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
