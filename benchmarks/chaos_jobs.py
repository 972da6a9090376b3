"""The jobs of a chaos run. Each writes down, line by line, that it began, that it goes on, and how it ended.

Every process has a file of its own, so that lines never mix; a line is in the kernel's hands at once, and so is
still there when the process is killed in the next moment. `benchmarks.chaos.records` reads them.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from functools import cache
from pathlib import Path

from msgspec import Struct

from durablestack import DurableStack, JobContext, NoRetry, RunCancelled, durable_job

stack = DurableStack(__name__)

FOLDER_VARIABLE = "CHAOS_EXECUTIONS"
LIFE_VARIABLE = "CHAOS_LIFE"
BEAT_SECONDS = 0.01


class Work(Struct):
    """How long the job takes, and up to which attempt it goes wrong."""

    seconds: float
    wrong_until: int = 1


def boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.monotonic()


@cache
def _file(pid: int) -> int:
    """The descriptor of this process's file; a fork has another pid, and so another file."""
    name = f"{os.environ.get(LIFE_VARIABLE, '?')} {pid} {boottime():.6f}"
    path = Path(os.environ[FOLDER_VARIABLE]) / name
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def note(context: JobContext, what: str) -> None:
    line = f"{what} {context.run_id} {context.attempt} {boottime():.6f}\n"
    os.write(_file(os.getpid()), line.encode())


def _work(context: JobContext, seconds: float, *, burning: bool = False) -> None:
    until = boottime() + seconds
    while (now := boottime()) < until:
        if burning:
            while boottime() < now + BEAT_SECONDS:
                sum(range(100))
        else:
            time.sleep(min(BEAT_SECONDS, until - now))
        note(context, "beat")


@durable_job(name="sleeps", max_attempts=5)
def sleeps(args: Work, context: JobContext) -> None:
    """Of any length: some outlive their lease."""
    note(context, "start")
    _work(context, args.seconds)
    note(context, "end")


@durable_job(name="burns", max_attempts=5)
def burns(args: Work, context: JobContext) -> None:
    note(context, "start")
    _work(context, args.seconds, burning=True)
    note(context, "end")


@durable_job(name="tries-once", max_attempts=1)
def tries_once(args: Work, context: JobContext) -> None:
    note(context, "start")
    _work(context, args.seconds)
    note(context, "end")


@durable_job(name="raises", max_attempts=4)
def raises(args: Work, context: JobContext) -> None:
    note(context, "start")
    _work(context, args.seconds)
    if context.attempt <= args.wrong_until:
        note(context, "raise")
        raise RuntimeError("not yet")
    note(context, "end")


@durable_job(name="gives-up", max_attempts=4)
def gives_up(args: Work, context: JobContext) -> None:
    note(context, "start")
    _work(context, args.seconds)
    note(context, "raise")
    raise NoRetry("never")


@durable_job(name="crashes", max_attempts=4)
def crashes(args: Work, context: JobContext) -> None:
    note(context, "start")
    _work(context, args.seconds)
    if context.attempt <= args.wrong_until:
        note(context, "die")
        os.kill(os.getpid(), signal.SIGKILL)
    note(context, "end")


@durable_job(name="exits", max_attempts=4)
def exits(args: Work, context: JobContext) -> None:
    note(context, "start")
    _work(context, args.seconds)
    if context.attempt <= args.wrong_until:
        note(context, "die")
        os._exit(0)
    note(context, "end")


@durable_job(name="hangs", max_attempts=4, timeout_seconds=1.0)
def hangs(args: Work, context: JobContext) -> None:
    note(context, "start")
    _work(context, 3600 if context.attempt <= args.wrong_until else args.seconds)
    note(context, "end")


@durable_job(name="looks-whether-told", max_attempts=4)
def looks_whether_told(args: Work, context: JobContext) -> None:
    """Leaves when it is asked to: by a cancel, or by a supervisor that stops."""
    note(context, "start")
    until = boottime() + args.seconds
    while boottime() < until:
        if context.wait_cancelled(BEAT_SECONDS):
            note(context, "told")
            raise RunCancelled
        note(context, "beat")
    note(context, "end")
