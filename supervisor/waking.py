"""Hears that others have enqueued, so that the claimer need not wait for its next poll.

    open --works?--yes--> heard --> look --> heard --> look ...     now and then: still works?
     ^         |                                                          |
     |         +--no: say so, rest for long                               |
     +---- rest, longer each time <---- lost, or it works no more --------+

Nothing depends on it: what is not heard is found by the next poll.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import anyio

from durablestack.errors import StoreError
from durablestack.stores.contract import Listener

from .pace import Pace

log = logging.getLogger(__name__)

_PROBE_EVERY_SECONDS = 30.0
_TRY_AGAIN_SECONDS_FIRST = 0.5
_TRY_AGAIN_SECONDS_MAX = 30.0
_USELESS_FOR_SECONDS = 900.0
_LOOKS_APART_SECONDS = 0.01
"""What is heard meanwhile is looked for once."""


class Waking:
    """`wake` makes the claimer look, at whose pace it goes on."""

    def __init__(self, listener: Listener, pace: Pace, *, wake: Callable[[], None]) -> None:
        self._listener = listener
        self._pace = pace
        self._wake = wake
        self._failures_in_a_row = 0
        self._told_useless = False

    async def run(self) -> None:
        while True:
            rest_seconds = await self._listen()
            await anyio.sleep(rest_seconds)

    async def _listen(self) -> float:
        """Until that is no more of use; return for how long to rest then."""
        try:
            await self._listener.open()
            if not await self._listener.works():
                return self._useless()
            self._failures_in_a_row, self._told_useless, self._pace.told = 0, False, True
            log.debug("listening for enqueues")
            while True:
                with anyio.move_on_after(_PROBE_EVERY_SECONDS):
                    await self._hear()
                if not await self._listener.works():
                    return self._lost("what is sent does not arrive any more")
        except (StoreError, RuntimeError) as error:  # RuntimeError: no thread can be had
            return self._lost(str(error))
        finally:
            self._pace.told = False
            await self._listener.close()

    async def _hear(self) -> None:
        while True:
            if await self._listener.heard():
                self._pace.stir()
            self._wake()
            await anyio.sleep(_LOOKS_APART_SECONDS)

    def _useless(self) -> float:
        if not self._told_useless:
            log.info(
                "the database's notifications do not arrive, as behind a pooler of transactions: "
                "runs that others enqueue are found by polling"
            )
        self._told_useless = True
        return _USELESS_FOR_SECONDS

    def _lost(self, why: str) -> float:
        log.debug("not listening for enqueues, trying again: %s", why)
        self._failures_in_a_row += 1
        return min(_TRY_AGAIN_SECONDS_FIRST * 2.0 ** min(self._failures_in_a_row - 1, 8), _TRY_AGAIN_SECONDS_MAX)
