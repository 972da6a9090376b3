"""Two looks at where the code of a run is, in words: they tell whether it moves."""

from __future__ import annotations

import anyio

from . import usage
from .in_hand import InHand
from .process import ChildProcess

_TOLD_WITHIN_SECONDS = 1.0
_APART_SECONDS = 0.2
_LOOK_SECONDS = 0.02

MOVING = "moving: the two stacks differ"
SAME = "stuck, or waiting: both stacks are the same"
SILENT = "its process did not answer"


async def look_twice(child: ChildProcess, held: InHand) -> str | None:
    """The Python stacks of a child, taken twice, in words; None if the run that it has ends meanwhile."""
    first = await _look(child, held)
    await held.ends_within(_APART_SECONDS)
    second = await _look(child, held)
    if held.has_ended:
        return None
    process = usage.look(child.pid)
    return told(first, second, process.state if process is not None else "", _APART_SECONDS)


async def _look(child: ChildProcess, held: InHand) -> str:
    """Empty if it does not answer."""
    child.ask_for_stack()
    deadline, stack = anyio.current_time() + _TOLD_WITHIN_SECONDS, ""
    while not stack and anyio.current_time() < deadline and not await held.ends_within(_LOOK_SECONDS):
        stack = child.take_stack() or ""
    if stack and not await held.ends_within(_LOOK_SECONDS):  # it may not have been all
        stack += child.take_stack() or ""
    return stack


def told(first: str, second: str, state: str, apart_seconds: float) -> str:
    """`state` is the letter that Linux has for the state of the process."""
    if not first or not second:
        return f"{SILENT}: it is {_STATES.get(state, 'gone')}\n{first or second}".rstrip()
    verdict = SAME if first == second else MOVING
    return f"{verdict}, {apart_seconds:g} s apart\n--- first\n{first.rstrip()}\n--- then\n{second.rstrip()}"


_STATES = {
    "R": "executing",
    "S": "sleeping",
    "D": "waiting in the kernel for what does not come",
    "T": "stopped",
    "t": "stopped by a debugger",
    "Z": "dead",
    "X": "dead",
}
