"""The vendor's own Python package, which has our import name, as its README has it.

    python vendor_adapter.py install | worker | enqueue JSON | cancel ID

It has a runtime that is started and stopped, and no command of its own: `worker` starts it, and stops it on SIGTERM.
It has 4 runs at once by default; here 5, as everybody. Its hosted service, which needs an account, is off.

Two things had to be got round, or nothing runs on PostgreSQL. The prefix of the tables is "app": with the default one
its migration fails, for the key of its advisory lock is a hash of the prefix that may be too large for a bigint. And
arguments arrive as the text of their JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import hostile
from durablestack.core.options import EventingOptions

from durablestack import DurableStackOptions, PostgresDurableStackOptions, create_durable_stack_postgres


def perform(payload: str) -> None:
    hostile.perform(**json.loads(payload))


async def perform_patiently(payload: str) -> None:
    await hostile.perform_patiently(**json.loads(payload))


@asynccontextmanager
async def runtime() -> AsyncIterator[Any]:
    options = DurableStackOptions(max_concurrent_runs=5, eventing=EventingOptions(enabled=False))
    database = PostgresDurableStackOptions(os.environ["PEERS_DSN"], table_prefix="app")
    handle = await create_durable_stack_postgres(database, options)
    handle.runtime.register_job("perform", perform)
    handle.runtime.register_job("perform-patiently", perform_patiently)
    yield handle.runtime
    await handle.close_store()


async def main(command: str, *arguments: str) -> None:
    async with runtime() as stack:
        match command:
            case "install":
                pass  # it migrates when it is created
            case "worker":
                asked = asyncio.Event()
                asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked.set)
                await stack.start()
                await asked.wait()
                await stack.stop()
            case "enqueue":
                works = json.loads(arguments[0])
                print(json.dumps([await stack.enqueue(_job(work), work) for work in works]))
            case "cancel":
                await stack.cancel_run(arguments[0])


def _job(work: dict[str, Any]) -> str:
    return "perform-patiently" if work["kind"] == "patient" else "perform"


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
