"""The jobs that the benchmarks execute."""

from __future__ import annotations

import logging
import os
import time
from functools import cache

from msgspec import Struct

from durablestack import durable_job

# as an application would do it in its own module: a line for each run is a good part of what a short run costs
if level := os.environ.get("BENCHMARK_LOG_LEVEL"):
    logging.getLogger("durablestack").setLevel(level.upper())


@durable_job(name="no-op")
def no_op() -> None:
    return


class Burn(Struct, frozen=True):
    file: str
    rounds: int


@durable_job(name="burn")
def burn(args: Burn) -> None:
    """Pure Python on one core, the same work each time; notes where its CPU time is added up what that was."""
    began = time.process_time()
    for _ in range(args.rounds):
        sum(range(1000))
    _note(args.file, f"{time.process_time() - began}\n")


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
    _note(args.file, f"{os.getpid()} {time.time()}\n")
    time.sleep(args.seconds)


def _note(file: str, line: str) -> None:
    os.write(_notes(file), line.encode())


@cache
def _notes(file: str) -> int:
    """Kept open: to open it for each run would be part of what is measured."""
    return os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
