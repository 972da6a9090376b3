"""RQ on Redis, with its own command for a pool of workers, each of which executes one job at a time.

Settings "fork" (docs/workers, "Worker Pool"): as many workers as are asked for, each forks for each job, which is its
default. "simple": the same with `SimpleWorker`, which executes jobs in its own process; the same page does not
recommend it for production.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import commands
import work
from redis import Redis
from rq import Queue

WORKER_CLASSES = {"fork": [], "simple": ["--worker-class", "rq.worker.SimpleWorker"]}


class Client:
    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    async def one(self, job: str, argument: Any) -> None:
        self._queue.enqueue(work.JOBS[job], *([] if argument is None else [argument]))

    async def bulk(self, job: str, arguments: list[Any]) -> None:
        call = work.JOBS[job]
        arguments = [[] if argument is None else [argument] for argument in arguments]
        self._queue.enqueue_many([Queue.prepare_data(call, args=each) for each in arguments])


@asynccontextmanager
async def client() -> AsyncIterator[Client]:
    with Redis.from_url(commands.URL) as connection:
        yield Client(Queue("peers", connection=connection))


def worker() -> None:
    options = ["--url", commands.URL, "--num-workers", str(commands.CHILDREN), "--quiet"]
    commands.become(commands.beside_python("rq"), "worker-pool", "peers", *options, *WORKER_CLASSES[commands.SETTINGS])


if __name__ == "__main__":
    commands.run(worker=worker, client=client)
