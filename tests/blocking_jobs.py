"""The chaos jobs in an application that blocks the event loop of its supervisor, when a file tells it to."""

import asyncio
import os
import time
from pathlib import Path

from chaos_jobs import stack

BLOCK_FOR = Path(os.environ.get("BLOCK_FOR", "/dev/null"))
"""Holds the seconds. It is gone when the loop goes on."""


@stack.on_supervisor_start
def watch() -> None:
    asyncio.get_running_loop().call_later(0.05, block)


def block() -> None:
    if BLOCK_FOR.is_file() and (seconds := BLOCK_FOR.read_text()):
        time.sleep(float(seconds))
        BLOCK_FOR.unlink()
    watch()
