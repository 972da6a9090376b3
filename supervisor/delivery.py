"""How runs get to a child, and how its replies are heard.

The replies to a run that is alone are heard as they come. Where runs wait behind others there are so many that they
are looked for now and then instead, until several looks in a row have found nobody waiting any more.
"""

from __future__ import annotations

from collections.abc import Sequence

from durablestack.runs import Lease

from . import wire
from .in_hand import InHand
from .process import ChildProcess

_LOOKS_IN_VAIN_MAX = 3


class Delivery:
    """To the children of one slot, one after the other. Numbers their orders."""

    def __init__(self) -> None:
        self._numbered = 0  # so far
        self.gathered: list[InHand] = []
        """What the child is to get with the next `send`."""
        self._looks_in_vain = 0

    def gather(self, more: Sequence[InHand]) -> None:
        for held in more:
            self._numbered += 1
            held.order = self._numbered
        self.gathered += more

    def withdraw(self, lease: Lease) -> InHand:
        held = next(held for held in self.gathered if held.lease == lease)
        self.gathered.remove(held)
        return held

    def send(self, child: ChildProcess) -> list[InHand]:
        """All that was gathered, at once: the child is woken for the first, and finds the others. Return those for
        which there was no room."""
        gathered, self.gathered = self.gathered, []
        return gathered[child.orders.put([_order(held) for held in gathered]) :] if gathered else []

    def hears_less(self, child: ChildProcess) -> None:
        """Replies are looked for now and then."""
        child.control.hears(False)
        self._looks_in_vain = 0

    def goes_on_looking(self, child: ChildProcess, *, some_wait: bool) -> bool:
        """Whether replies are looked for after this look, too; else they are heard as they come."""
        self._looks_in_vain = 0 if some_wait else self._looks_in_vain + 1
        child.control.hears(self._looks_in_vain > _LOOKS_IN_VAIN_MAX)
        return self._looks_in_vain <= _LOOKS_IN_VAIN_MAX


def _order(held: InHand) -> wire.Execute:
    run = held.run
    assert held.order is not None
    return wire.Execute(
        held.order,
        run.id,
        run.job_name,
        run.attempt,
        run.max_attempts,
        run.slot or run.scheduled_for,
        run.payload,
        run.trace_context,
        held.assignment.terms.address_space_limit,
        held.assignment.short,
    )


def listen_to(child: ChildProcess, held: InHand) -> None:
    """Have the output of a run that is about to begin. What was written between two runs belongs to neither."""
    if not held.assignment.short:
        child.listens_to_output(True)
        child.take_output()
    elif child.listens:
        child.take_output()
        child.listens_to_output(False)
    child.forget_stack()
