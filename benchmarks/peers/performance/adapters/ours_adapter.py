"""This project: its own command for a supervisor.

Settings "best", from "Which settings for which work" (docs/performance.md) for short runs: as many children as are
asked for, batches of 500, logging at warning. "one at a time": the same without windows, so that a run is claimed only
for a child that is idle. "defaults": 5 children, batches of 50, a line in the log for each run.
"""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import commands
import work

from durablestack import DurableStack, durable_job

BATCH_SIZE = int(os.environ.get("PEERS_BATCH_SIZE", "500"))
BEST = {"max_concurrent_runs": commands.CHILDREN, "batch_size": BATCH_SIZE}
SETTINGS: dict[str, dict[str, Any]] = {"best": BEST, "one at a time": {**BEST, "window_max": 1}, "defaults": {}}

if commands.SETTINGS != "defaults":
    logging.getLogger("durablestack.supervisor").setLevel(logging.WARNING)

stack = DurableStack(__name__, database_url=commands.URL, **SETTINGS[commands.SETTINGS])


@durable_job(name="no_op")
def no_op() -> None:
    work.no_op()


@durable_job(name="tell")
def tell(sent_at: float) -> None:
    work.tell(sent_at)


@durable_job(name="burn")
def burn(rounds: int) -> None:
    work.burn(rounds)


JOBS = {"no_op": no_op, "tell": tell, "burn": burn}


class Client:
    async def one(self, job: str, argument: Any) -> None:
        stack.client.enqueue(JOBS[job], argument)

    async def bulk(self, job: str, arguments: list[Any]) -> None:
        stack.client.enqueue_many(JOBS[job], arguments)


@asynccontextmanager
async def client() -> AsyncIterator[Client]:
    with stack:
        yield Client()


def worker() -> None:
    commands.become("-m", "durablestack.supervisor", "ours_adapter", "--plain")


if __name__ == "__main__":
    commands.run(install=stack.migrate, worker=worker, client=client)
