"""The jobs that every peer executes: some behave, some do what jobs should not. Each writes down what it does.

Needs nothing but the standard library. A line of the diary is `key execution what boottime`; it is there even if the
process dies in the next moment.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import secrets
import time

DIARY = os.environ.get("PEERS_DIARY", os.devnull)

STEP_SECONDS = 0.02
"""A job counts its own steps: while it is frozen it gets no further, as with real work."""

STEPS_PER_NOTE = 10

FAULT_AFTER_SECONDS = 1.0
"""How long a hostile job behaves, so that others are in the middle of their work when it does not."""

SECOND_TIME_SECONDS = 1.0


def perform(key: str, kind: str, seconds: float) -> None:
    """An ordinary, synchronous job of `seconds`; a hostile one never returns."""
    execution = _begin(key)
    match kind:
        case "work":
            _work(key, execution, seconds)
        case "segfault":
            _work(key, execution, FAULT_AFTER_SECONDS)
            _note(key, execution, "fault")
            ctypes.string_at(0)
        case "exit":
            _work(key, execution, FAULT_AFTER_SECONDS)
            _note(key, execution, "fault")
            os._exit(0)
        case "hang":
            _work(key, execution, FAULT_AFTER_SECONDS)
            _note(key, execution, "fault")
            _hang_holding_the_gil()
        case _:
            raise ValueError(kind)
    _note(key, execution, "end")


async def perform_patiently(key: str, kind: str, seconds: float) -> None:
    """An asynchronous job that can be cancelled at any time; it is long the first time, and short after that."""
    assert kind == "patient"
    again = _began(key)
    execution = _begin(key)
    await asyncio.sleep(SECOND_TIME_SECONDS if again else seconds)
    _note(key, execution, "end")


def _work(key: str, execution: str, seconds: float) -> None:
    for step in range(1, max(1, round(seconds / STEP_SECONDS)) + 1):
        time.sleep(STEP_SECONDS)
        if step % STEPS_PER_NOTE == 0:
            _note(key, execution, "step")


def _hang_holding_the_gil() -> None:
    """Wait for a lock that we hold ourselves: unlike a sleep, it is not ended by a signal that has a handler."""
    library = ctypes.PyDLL(None)  # unlike CDLL, it keeps the GIL
    mutex = ctypes.create_string_buffer(128)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)


def _begin(key: str) -> str:
    execution = secrets.token_hex(4)
    _note(key, execution, "start")
    return execution


def _note(key: str, execution: str, what: str) -> None:
    line = f"{key} {execution} {what} {time.clock_gettime(time.CLOCK_BOOTTIME):.3f}\n"
    fd = os.open(DIARY, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, line.encode())
    os.close(fd)


def _began(key: str) -> bool:
    try:
        with open(DIARY) as diary:
            return any(line.startswith(f"{key} ") for line in diary)
    except FileNotFoundError:
        return False
