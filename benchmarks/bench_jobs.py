"""The jobs that the benchmarks execute."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from msgspec import Struct

from durablestack import durable_job

# as an application would do it in its own module: a line for each run is a good part of what a short run costs
if level := os.environ.get("BENCHMARK_LOG_LEVEL"):
    logging.getLogger("durablestack").setLevel(level.upper())


@durable_job(name="no-op")
def no_op() -> None:
    return


@durable_job(name="burn")
def burn(rounds: int) -> None:
    """Pure Python on one core, the same work each time; its CPU time is printed, for whoever adds it up."""
    began = time.process_time()
    for _ in range(rounds):
        sum(range(1000))
    print(time.process_time() - began)


@durable_job(name="wait")
def wait(seconds: float) -> None:
    """Does nothing for so long, as a job that calls a service."""
    time.sleep(seconds)


class Stamp(Struct, frozen=True):
    file: str
    seconds: float


@durable_job(name="stamp")
def stamp(args: Stamp) -> None:
    """Notes when it begins, by a clock that all processes of the machine share, and where; then waits."""
    line = f"{os.getpid()} {time.time()}\n"
    with Path(args.file).open("a") as notes:
        notes.write(line)
    time.sleep(args.seconds)
