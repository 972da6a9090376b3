"""Celery on Redis, with its own command for a worker of processes (prefork).

Settings "best", from its user guide, "Optimizing" (docs/userguide/optimizing): a large prefetch multiplier for short
tasks (64), and from "Tasks", "Tips and Best Practices": results that nobody wants are ignored. A message is
acknowledged just before its task is executed, as by default: what a worker has begun is lost with it. "acks late": the
same with `task_acks_late`, so that a message is acknowledged when its task has ended.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import commands
import work
from celery import Celery

PREFETCH_MULTIPLIER = 64

app = Celery("celery_adapter", broker=commands.URL)
app.conf.task_ignore_result = True
app.conf.worker_prefetch_multiplier = PREFETCH_MULTIPLIER
app.conf.task_acks_late = commands.SETTINGS == "acks late"
app.conf.broker_connection_retry_on_startup = True

JOBS = {name: app.task(job, name=name) for name, job in work.JOBS.items()}


class Client:
    bulk = None

    async def one(self, job: str, argument: Any) -> None:
        JOBS[job].delay(*([] if argument is None else [argument]))


@asynccontextmanager
async def client() -> AsyncIterator[Client]:
    yield Client()


def worker() -> None:
    options = [f"--concurrency={commands.CHILDREN}", "--loglevel=WARNING"]
    commands.become("-m", "celery", "--app=celery_adapter", "worker", *options)


if __name__ == "__main__":
    commands.run(worker=worker, client=client)
