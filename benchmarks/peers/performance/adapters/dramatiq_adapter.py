"""Dramatiq on Redis, with its own command for workers; all of its default middleware.

Its guide recommends no settings for short messages; `dramatiq --help` has what there is. Settings "threads": a process
for each core that may be used, with 8 threads, as by default. "processes": a process for each message in work.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import commands
import dramatiq
import work
from dramatiq.brokers.redis import RedisBroker

SETTINGS = {
    "threads": ["--processes", str(len(os.sched_getaffinity(0))), "--threads", "8"],
    "processes": ["--processes", str(commands.CHILDREN), "--threads", "1"],
}

broker = RedisBroker(url=commands.URL)
dramatiq.set_broker(broker)

JOBS = {name: dramatiq.actor(job) for name, job in work.JOBS.items()}


class Client:
    bulk = None

    async def one(self, job: str, argument: Any) -> None:
        JOBS[job].send(*([] if argument is None else [argument]))


@asynccontextmanager
async def client() -> AsyncIterator[Client]:
    yield Client()


def worker() -> None:
    commands.become("-m", "dramatiq", "dramatiq_adapter", *SETTINGS[commands.SETTINGS])


if __name__ == "__main__":
    commands.run(worker=worker, client=client)
