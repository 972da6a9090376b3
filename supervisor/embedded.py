"""The supervisor inside an application's own event loop. Its children are processes all the same.

async with supervise(stack):
    ...                         runs are executed for as long as the block lasts
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskStatus

from durablestack.stack import DurableStack

from .child import EXIT_REENTERED
from .tree import Supervisor


@asynccontextmanager
async def supervise(stack: DurableStack) -> AsyncIterator[Supervisor]:
    """Run a supervisor for `stack` while the block lasts; then stop it gracefully, as a signal would.

    Needs asyncio as the event loop. An enqueue by `stack.client` in this process wakes it at once.
    Each process of a web server that does this is a worker of its own.

    Raises:
        JobDefinitionError, StoreError: as `Supervisor.run`, before the block is entered.
        TargetError: a program calls this without `if __name__ == "__main__":`, and so in each child again.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing itself asks
        os._exit(EXIT_REENTERED)  # the supervisor that started us says why
    supervisor = Supervisor(stack)
    try:
        async with anyio.create_task_group() as tasks:
            try:
                await tasks.start(_run_shielded, supervisor)
                yield supervisor
            finally:
                supervisor.stop()
                with anyio.CancelScope(shield=True):
                    await supervisor.stopped.wait()
    except BaseExceptionGroup as group:
        raise the_one_in(group) from None


async def _run_shielded(supervisor: Supervisor, *, task_status: TaskStatus[None]) -> None:
    """Whatever cancels the block, the supervisor ends by being stopped."""
    with anyio.CancelScope(shield=True):
        await supervisor.run(task_status=task_status)


def the_one_in(error: BaseException) -> BaseException:
    """What went wrong, out of the groups that task groups wrap it in, if it is one thing, or the same several times."""
    while isinstance(error, BaseExceptionGroup) and len({(type(e), str(e)) for e in error.exceptions}) == 1:
        error = error.exceptions[0]
    return error
