"""Signals: the first one asks for a graceful stop, the second one for a stop at once."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable

import anyio

from .tree import Supervisor

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


_AT_ONCE_SECONDS = 1.5


async def obey_signals(supervisor: Supervisor, leave: Callable[[], None]) -> None:
    with anyio.open_signal_receiver(*STOP_SIGNALS) as signals:
        asked = False
        async for received in signals:
            if asked:
                log.warning("%s again: stopping at once", signal.Signals(received).name)
                supervisor.stop_now()
                # a database that does not answer is not waited for: children end with us, leases expire
                asyncio.get_running_loop().call_later(_AT_ONCE_SECONDS, leave)
            else:
                log.info("%s: stopping; once more stops at once", signal.Signals(received).name)
                supervisor.stop()
            asked = True


async def run_with_signals(supervisor: Supervisor, leave: Callable[[], None]) -> None:
    """Run until a signal, or something that cannot be gone on with, ends it.

    `leave` ends the process; it is called if a stop at once takes too long.
    """
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(obey_signals, supervisor, leave)
        await supervisor.run()
        tasks.cancel_scope.cancel()
