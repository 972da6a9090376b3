"""Work that is done in steps, so that whoever has other things to do need not wait in it.

A step is a `Wait`, which is answered with whether what it waits for has come; or a call that may take a while, which is
answered with what it returns, or with the error that it raises.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from msgspec import Struct

Result = TypeVar("Result")


class Wait(Struct, frozen=True):
    """For a socket: until one of `events`, which are those of `select.poll`, or so many seconds are over."""

    fd: int
    events: int
    seconds: float

    def here(self) -> bool:
        """Wait in this thread; return whether it has come."""
        poll = select.poll()
        poll.register(self.fd, self.events)
        return bool(poll.poll(self.seconds * 1000))


Step = Wait | Callable[[], Any]
Steps = Generator[Step, Any, Result]
Waits = Generator[Wait, bool, Result]
"""Steps that are nothing but waits."""


def in_one(call: Callable[[], Result]) -> Steps[Result]:
    """There is one step, the call."""
    result: Result = yield call
    return result


def wait_here(waits: Waits[Result]) -> Result:
    """Take them in this thread."""
    try:
        wait = next(waits)
        while True:
            wait = waits.send(wait.here())
    except StopIteration as end:
        result: Result = end.value
        return result
