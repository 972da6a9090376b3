"""huey on Redis, SQLite and PostgreSQL, with its own consumer.

Settings "best", from its page "Consuming Tasks" (docs/consumer): `-k process -w N` for jobs that use a core, no
periodic tasks, errors only in the log; on SQLite, which it polls, a short delay. "defaults": one thread.

A job is taken out of the queue before it is executed, and what has no result leaves no trace: "done" is "taken" here,
and what is in hand is lost with the consumer. SQLite writes through to the disk, as it does by default.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import commands
import work
from huey import Huey, PostgresHuey, RedisHuey, SqliteHuey

PROCESSES = ["-k", "process", "-w", str(commands.CHILDREN)]
POLLING = ["-d", "0.01", "-m", "0.1"]


def _huey() -> Huey:
    scheme, _, rest = commands.URL.partition("://")
    match scheme:
        case "redis":
            return RedisHuey("peers", url=commands.URL)
        case "sqlite":
            return SqliteHuey("peers", filename=rest.removeprefix("/"))
        case "postgresql":
            return PostgresHuey("peers", dsn=commands.URL)
    raise ValueError(scheme)


huey = _huey()
JOBS = {name: huey.task(name=name)(job) for name, job in work.JOBS.items()}


class Client:
    bulk = None

    async def one(self, job: str, argument: Any) -> None:
        JOBS[job](*([] if argument is None else [argument]))


@asynccontextmanager
async def client() -> AsyncIterator[Client]:
    yield Client()


def worker() -> None:
    best = [*PROCESSES, *POLLING] if commands.SETTINGS == "best" else []
    commands.become("-m", "huey.bin.huey_consumer", "huey_adapter.huey", "--quiet", "--no-periodic", *best)


if __name__ == "__main__":
    commands.run(worker=worker, client=client)
