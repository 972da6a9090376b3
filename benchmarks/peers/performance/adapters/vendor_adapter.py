"""The vendor's own Python package on asyncpg, which has our import name: started and stopped as its README has it.

It documents no tuning. Settings "best" use its options (durablestack/core/options.py): 100 runs at once, claimed 100 at
a time, a look every 5 milliseconds. "defaults": 4 runs at once, 8 at a time, a look each second. Its hosted service is
off.
The prefix of the tables is "app": with the default one its migration fails on PostgreSQL.
"""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import commands
import work
from durablestack.core.options import EventingOptions

from durablestack import DurableStackOptions, PostgresDurableStackOptions, create_durable_stack_postgres

SETTINGS: dict[str, dict[str, Any]] = {
    "best": {"max_concurrent_runs": 100, "claim_batch_size": 100, "poll_interval": timedelta(milliseconds=5)},
    "defaults": {},
}


async def no_op(payload: str) -> None:
    work.no_op()


async def tell(payload: str) -> None:
    work.tell(float(payload))


async def burn(payload: str) -> None:
    work.burn(int(payload))


class Client:
    bulk = None

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime

    async def one(self, job: str, argument: Any) -> None:
        await self._runtime.enqueue(job, argument)


@asynccontextmanager
async def runtime() -> AsyncIterator[Any]:
    options = DurableStackOptions(eventing=EventingOptions(enabled=False), **SETTINGS[commands.SETTINGS])
    handle = await create_durable_stack_postgres(PostgresDurableStackOptions(commands.URL, table_prefix="app"), options)
    for job in (no_op, tell, burn):
        handle.runtime.register_job(job.__name__, job)
    yield handle.runtime
    await handle.close_store()


@asynccontextmanager
async def client() -> AsyncIterator[Client]:
    async with runtime() as opened:
        yield Client(opened)


async def _install() -> None:
    async with runtime():
        pass  # it migrates when it is created


async def _work() -> None:
    async with runtime() as opened:
        asked = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked.set)
        await opened.start()
        await asked.wait()
        await opened.stop()


if __name__ == "__main__":
    commands.run(install=lambda: asyncio.run(_install()), worker=lambda: asyncio.run(_work()), client=client)
