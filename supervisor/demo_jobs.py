"""The jobs of the demonstration: well behaved ones, and some of the other kind."""

from __future__ import annotations

import ctypes
import threading
import time

from durablestack.jobs import JobContext, durable_job


@durable_job(name="burn-cpu")
def burn_cpu(cpu_seconds: float) -> None:
    """Pure Python on one core, for as much CPU time as asked."""
    end = time.process_time() + cpu_seconds
    while time.process_time() < end:
        sum(range(1000))


@durable_job(name="raises-once", retry_initial_delay_seconds=1)
def raises_once(context: JobContext) -> None:
    if context.attempt == 1:
        raise ConnectionError("the other side is not there (it will be, the next time)")


@durable_job(name="segfaults-once", retry_initial_delay_seconds=1)
def segfaults_once(context: JobContext) -> None:
    if context.attempt == 1:
        ctypes.string_at(0)


@durable_job(name="hangs", timeout_seconds=3, max_attempts=1)
def hangs() -> None:
    """Waits for something that never comes, and does not look whether it should leave."""
    threading.Event().wait()


@durable_job(name="burns-until-cancelled", max_attempts=1)
def burns_until_cancelled() -> None:
    """Uses a core for ever, and does not look whether it should leave."""
    while True:
        sum(range(1000))
