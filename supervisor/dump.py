"""Two looks at where the code of a run is, in words: they tell whether it moves."""

from __future__ import annotations

MOVING = "moving: the two stacks differ"
SAME = "stuck, or waiting: both stacks are the same"
SILENT = "its process did not answer"


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
