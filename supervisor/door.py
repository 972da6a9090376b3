"""The one door between the actors, which are asynchronous, and the store, which is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import anyio
from anyio import to_thread

from durablestack.errors import StoreUnavailable

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


async def ask_store(call: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
    """Call the store in a worker thread, to the end: a transaction cut in the middle helps nobody.

    It is bounded by the store's own time for one operation.
    """
    scope = anyio.CancelScope(shield=True)
    with scope:
        try:
            result = await to_thread.run_sync(call, *arguments)
        except RuntimeError as error:
            if "start new thread" not in str(error):
                raise
            raise StoreUnavailable(f"the database cannot be asked: {error}") from error
    return result
