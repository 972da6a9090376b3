"""procrastinate on psycopg's pool, with its own command for a worker.

Settings "best", from "Execute multiple jobs at the same time" (docs/howto/production/concurrency) and "Mind the size
of your PostgreSQL pool" (docs/discussions): `app.run_worker(concurrency=30)` with a pool that has a connection for each
job, and without the lines that its command logs for each job. "defaults": its command, one job at a time.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import commands
import procrastinate
import work

BEST = commands.SETTINGS == "best"
CONCURRENCY = 30  # as in the documentation's example
POOL = {"min_size": 4, "max_size": CONCURRENCY + 2} if BEST else {}

app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=commands.URL, **POOL))


@app.task(name="no_op")
async def no_op() -> None:
    work.no_op()


@app.task(name="tell")
async def tell(argument: float) -> None:
    work.tell(argument)


@app.task(name="burn")
async def burn(argument: int) -> None:
    work.burn(argument)


JOBS = {"no_op": no_op, "tell": tell, "burn": burn}


class Client:
    async def one(self, job: str, argument: Any) -> None:
        await JOBS[job].defer_async(**_keywords(argument))

    async def bulk(self, job: str, arguments: list[Any]) -> None:
        await JOBS[job].batch_defer_async(*map(_keywords, arguments))


def _keywords(argument: Any) -> dict[str, Any]:
    return {} if argument is None else {"argument": argument}


@asynccontextmanager
async def client() -> AsyncIterator[Client]:
    async with app.open_async():
        yield Client()


def install() -> None:
    with app.open():
        app.schema_manager.apply_schema()


def worker() -> None:
    if BEST:
        app.run_worker(concurrency=CONCURRENCY)
    else:
        commands.become("-m", "procrastinate", "--app=procrastinate_adapter.app", "worker")


if __name__ == "__main__":
    commands.run(install=install, worker=worker, client=client)
