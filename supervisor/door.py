"""The one door between the actors, which are asynchronous, and the store, which is not."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from typing import Any, TypeVar, TypeVarTuple

import anyio
from anyio import to_thread

from durablestack.errors import StoreUnavailable
from durablestack.stores.steps import Steps, Wait

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


def _nothing() -> None:
    return


async def ask_store(
    call: Callable[[*Arguments], Result], *arguments: *Arguments, begun: Callable[[], None] | None = None
) -> Result:
    """Call the store in a worker thread, to the end: a transaction cut in the middle helps nobody.

    It is bounded by the store's own time for one operation. `begun` is called, on the event loop, once it is under way.
    """
    asked = call if begun is None else _telling(begun, call)
    scope = anyio.CancelScope(shield=True)
    with scope:
        try:
            result = await to_thread.run_sync(asked, *arguments)
        except RuntimeError as error:
            if "start new thread" not in str(error):
                raise
            raise StoreUnavailable(f"the database cannot be asked: {error}") from error
    return result


async def ask_store_in_steps(steps: Steps[Result], *, begun: Callable[[], None] = _nothing) -> Result:
    """The same without a thread, as far as there is nothing to do but to wait: to wake one takes as long as to ask.

    In a task that nobody cancels.
    """
    answer: Any = None
    try:
        while True:
            step = steps.send(answer)
            if isinstance(step, Wait):
                begun()
                answer = await _has_come(step)
            else:
                answer = await ask_store(step, begun=begun)
    except StopIteration as end:
        result: Result = end.value
        return result
    finally:
        steps.close()


async def _has_come(wait: Wait) -> bool:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[bool] = loop.create_future()

    def end(has_come: bool) -> None:
        if not future.done():
            future.set_result(has_come)

    writes = wait.events & select.POLLOUT
    loop.add_reader(wait.fd, end, True)
    if writes:
        loop.add_writer(wait.fd, end, True)
    timeout = loop.call_later(wait.seconds, end, False)
    try:
        return await future
    finally:
        timeout.cancel()
        loop.remove_reader(wait.fd)
        if writes:
            loop.remove_writer(wait.fd)


def _telling(begun: Callable[[], None], call: Callable[[*Arguments], Result]) -> Callable[[*Arguments], Result]:
    loop = asyncio.get_running_loop()

    def tell_and_call(*arguments: *Arguments) -> Result:
        loop.call_soon_threadsafe(begun)
        return call(*arguments)

    return tell_and_call
