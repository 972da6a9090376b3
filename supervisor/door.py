"""The one door between the actors, which are asynchronous, and the store, which is not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import anyio
from anyio import to_thread

from durablestack.errors import StoreUnavailable

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


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


def _telling(begun: Callable[[], None], call: Callable[[*Arguments], Result]) -> Callable[[*Arguments], Result]:
    loop = asyncio.get_running_loop()

    def tell_and_call(*arguments: *Arguments) -> Result:
        loop.call_soon_threadsafe(begun)
        return call(*arguments)

    return tell_and_call
