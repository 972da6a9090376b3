"""Jobs that meet the secrets of their supervisor and tell them: in what they write, in errors, and as they die.

Events go to EVENTS_FILE and spans to TRACE_FILE, as those of `tracing_jobs`.
"""

import ctypes
import json
import logging
import os
import time
from urllib.parse import urlsplit

from durablestack import DurableStack, JobContext, durable_job
from told_jobs import EventsToFile
from tracing_jobs import trace_to_file

stack = DurableStack(__name__)
stack.add_event_sink(EventsToFile())


@stack.on_child_start
def begin_to_trace() -> None:
    trace_to_file()


def dsn() -> str:
    return os.environ["DURABLESTACK__DATABASE_URL"]


@durable_job(name="tells-its-environment", max_attempts=1)
def tells_its_environment(how: str) -> None:
    match how:
        case "repr":
            print(dict(os.environ))
        case "json":
            print(json.dumps(dict(os.environ)))
        case "lines":
            print("\n".join(f"{name}={value}" for name, value in os.environ.items()))
        case "parts":
            print(urlsplit(dsn()), urlsplit(dsn()).password)
    print("TOLD")


@durable_job(name="raises-with-the-dsn", max_attempts=1)
def raises_with_the_dsn() -> None:
    try:
        raise ConnectionError(f"cannot connect to {dsn()}, nor to {dsn()!r}")
    except ConnectionError as error:
        raise ValueError(f"TOLD: could not parse URL from string '{dsn()}'") from error


@durable_job(name="logs-the-dsn", max_attempts=1)
def logs_the_dsn() -> None:
    logging.getLogger("job").error("TOLD: connecting to %s", dsn(), exc_info=ValueError(dsn()))


@durable_job(name="dies-with-the-dsn", max_attempts=1)
def dies_with_the_dsn() -> None:
    os.write(2, f"TOLD: {dsn()}\n".encode())
    ctypes.string_at(0)


@durable_job(name="overruns-with-the-dsn", max_attempts=1, timeout_seconds=0.3)
def overruns_with_the_dsn() -> None:
    print(f"TOLD: {dsn()}")
    time.sleep(60)


@durable_job(name="waits", max_attempts=1)
def waits(context: JobContext) -> None:
    in_a_local = dsn()
    context.wait_cancelled(60)
    del in_a_local
