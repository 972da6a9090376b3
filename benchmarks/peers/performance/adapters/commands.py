"""What every adapter can do, from its command line. Needs nothing but the standard library.

    python X_adapter.py install                       what has to be there before anything is enqueued
    python X_adapter.py worker                        becomes the worker
    python X_adapter.py enqueue JOB ARGUMENT N HOW    prints how many per second
    python X_adapter.py trickle PER_SECOND N          N times `tell` with the moment before it is enqueued

HOW is "each": one by one; "bulk": together, and one by one if the package has nothing for that; "bulk only": together,
or not at all.

The environment tells the rest: PEERS_URL is where jobs are kept, PEERS_CHILDREN how many processes a worker of
processes has, PEERS_SETTINGS which of the adapter's settings are wanted.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol

URL = os.environ.get("PEERS_URL", "")
CHILDREN = int(os.environ.get("PEERS_CHILDREN", "10"))
SETTINGS = os.environ.get("PEERS_SETTINGS", "best")
FOLDER = Path(__file__).parent

UNTIMED = 20
"""So many jobs are enqueued one by one before time is taken: connections and caches are warm."""


class Client(Protocol):
    """What a package offers to enqueue with; `bulk` is None where it has nothing for that."""

    async def one(self, job: str, argument: Any) -> None: ...

    bulk: Callable[[str, list[Any]], Any] | None


def run(
    *,
    install: Callable[[], None] = lambda: None,
    worker: Callable[[], None],
    client: Callable[[], AbstractAsyncContextManager[Client]],
    runner: Callable[..., Any] = asyncio.run,
) -> None:
    command, *arguments = sys.argv[1:]
    match command:
        case "install":
            install()
        case "worker":
            worker()
        case "enqueue":
            job, argument, count, how = arguments
            runner(_enqueue(client, job, json.loads(argument), int(count), how))
        case "trickle":
            per_second, count = arguments
            runner(_trickle(client, float(per_second), int(count)))


def become(*command: str) -> None:
    """Be the package's own command from here on; the modules of this folder can be imported."""
    os.chdir(FOLDER)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(FOLDER), os.environ.get("PYTHONPATH")]))
    os.execv(sys.executable, [sys.executable, *command])


def beside_python(name: str) -> str:
    """The path of a command that was installed with the package."""
    return str(Path(sys.executable).parent / name)


async def _enqueue(
    client: Callable[[], AbstractAsyncContextManager[Client]], job: str, argument: Any, count: int, how: str
) -> None:
    async with client() as opened:
        bulk = None if how == "each" else opened.bulk
        if how == "bulk only" and bulk is None:
            print("{}")
            return
        first = min(count, UNTIMED)
        for _ in range(first):
            await opened.one(job, argument)
        began = time.perf_counter()
        if bulk is not None and count > first:
            await bulk(job, [argument] * (count - first))
        else:
            for _ in range(count - first):
                await opened.one(job, argument)
        print(json.dumps({"per_second": (count - first) / (time.perf_counter() - began)}))


async def _trickle(client: Callable[[], AbstractAsyncContextManager[Client]], per_second: float, count: int) -> None:
    async with client() as opened:
        began = time.monotonic()
        for number in range(count):
            await asyncio.sleep(max(0.0, began + number / per_second - time.monotonic()))
            await opened.one("tell", time.monotonic())
    print("{}")
