"""Jobs that use shared memory, and so multiprocessing's resource tracker."""

import os
import pathlib
import signal
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory

from durablestack import durable_job


@durable_job(name="innocent")
def innocent() -> None:
    pass


@durable_job(name="leak", max_attempts=1)
def leak(told: str) -> None:
    pathlib.Path(told).write_text(SharedMemory(create=True, size=10).name)
    os.kill(os.getpid(), signal.SIGKILL)


@durable_job(name="share")
def share() -> None:
    memory = SharedMemory(create=True, size=10)
    memory.close()
    memory.unlink()


@durable_job(name="probe")
def probe() -> None:
    for _ in range(10_000):
        resource_tracker.ensure_running()
