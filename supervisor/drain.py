"""How a supervisor lets go of its runs: they may finish, are asked to leave, and are made to.

finish --drain timeout--> Cancel, SIGTERM --grace--> SIGKILL --> what did not finish is released
"""

from __future__ import annotations

import logging

import anyio

from durablestack.options import DurableStackOptions

from .pool import Pool
from .verdict import Ending

log = logging.getLogger(__name__)

_KILLED_WITHIN_SECONDS = 2.0
_CHILDREN_LEAVE_WITHIN_SECONDS = 2.0


class Drain:
    """`until` is when the time to finish is up, on the loop's clock; None until it begins."""

    def __init__(self, pool: Pool, options: DurableStackOptions) -> None:
        self.until: float | None = None
        self._pool = pool
        self._timeout_seconds = options.shutdown_drain_timeout_seconds
        self._grace_seconds = options.cancel_grace_seconds + options.terminate_grace_seconds
        self._hurried = anyio.Event()

    def hurry(self) -> None:
        """Nobody waits for runs any more."""
        self._hurried.set()

    async def end_runs(self) -> None:
        log.info("stopping: %d runs in flight", len(self._pool.busy))
        self.until = anyio.current_time() + self._timeout_seconds
        self._pool.let_go_of_waiting()
        await self._quiet_within(self._timeout_seconds)
        self._pool.end_all(Ending.STOPPING)
        await self._quiet_within(self._grace_seconds)
        self._pool.kill_all(Ending.STOPPING)
        with anyio.move_on_after(_KILLED_WITHIN_SECONDS):
            await self._pool.quiet()

    async def let_children_leave(self) -> None:
        """In good order, for those that have something to end."""
        if not self._hurried.is_set():
            with anyio.move_on_after(_CHILDREN_LEAVE_WITHIN_SECONDS):
                await self._pool.leave()

    async def _quiet_within(self, seconds: float) -> None:
        with anyio.move_on_after(seconds) as patience:
            async with anyio.create_task_group() as waiting:

                async def hurried() -> None:
                    await self._hurried.wait()
                    patience.cancel()

                waiting.start_soon(hurried)
                await self._pool.quiet()
                waiting.cancel_scope.cancel()
