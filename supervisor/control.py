"""Signals: the first one asks for a graceful stop, the second one for a stop at once."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from .tree import Supervisor

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_AT_ONCE_SECONDS = 1.5


async def run_with_signals(supervisor: Supervisor, leave: Callable[[], None]) -> None:
    """Run until a signal, or something that cannot be gone on with, ends it.

    `leave` ends the process; it is called if a stop at once takes too long. The signals stay ours until the process
    has ended: one that comes while we leave must not end it in another way.
    """
    loop = asyncio.get_running_loop()

    def obey(received: str) -> None:
        if supervisor.stopping:
            log.warning("%s again: stopping at once", received)
            supervisor.stop_now()
            # a database that does not answer is not waited for: children end with us, leases expire
            loop.call_later(_AT_ONCE_SECONDS, leave)
        else:
            log.info("%s: stopping; once more stops at once", received)
            supervisor.stop()

    def on_signal(number: int, _: FrameType | None) -> None:
        with suppress(RuntimeError):  # the loop has closed, and all is over
            loop.call_soon_threadsafe(obey, signal.Signals(number).name)

    for number in STOP_SIGNALS:
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup's wish
            signal.signal(number, on_signal)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # whoever started us may ignore it, and exit codes would be lost
    await supervisor.run()
