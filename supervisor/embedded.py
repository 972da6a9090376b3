"""The supervisor inside an application's own event loop. Its children are processes all the same.

async with supervise(stack):
    ...                         runs are executed for as long as the block lasts
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from durablestack.stack import DurableStack

from .tree import Supervisor


@asynccontextmanager
async def supervise(stack: DurableStack) -> AsyncIterator[Supervisor]:
    """Run a supervisor for `stack` while the block lasts; then stop it gracefully, as a signal would.

    Needs asyncio as the event loop. An enqueue by `stack.client` in this process wakes it at once.
    Each process of a web server that does this is a worker of its own.

    Raises:
        JobDefinitionError, StoreError: as `Supervisor.run`, before the block is entered.
    """
    supervisor = Supervisor(stack)
    try:
        async with anyio.create_task_group() as tasks:
            await tasks.start(supervisor.run)
            try:
                yield supervisor
            finally:
                supervisor.stop()
                with anyio.CancelScope(shield=True):
                    await supervisor.stopped.wait()
    except BaseExceptionGroup as group:
        raise the_one_in(group) from None


def the_one_in(error: BaseException) -> BaseException:
    """What went wrong, out of the groups that task groups wrap it in, if it is one thing."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
