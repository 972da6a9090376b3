"""Signals: the first one asks for a graceful stop, the second one for a stop at once."""

from __future__ import annotations

import logging
import signal

import anyio

from .tree import Supervisor

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


async def obey_signals(supervisor: Supervisor) -> None:
    with anyio.open_signal_receiver(*STOP_SIGNALS) as signals:
        asked = False
        async for received in signals:
            if asked:
                log.warning("%s again: stopping at once", signal.Signals(received).name)
                supervisor.stop_now()
            else:
                log.info("%s: stopping; once more stops at once", signal.Signals(received).name)
                supervisor.stop()
            asked = True


async def run_with_signals(supervisor: Supervisor) -> None:
    """Run until a signal, or something that cannot be gone on with, ends it."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(obey_signals, supervisor)
        await supervisor.run()
        tasks.cancel_scope.cancel()
