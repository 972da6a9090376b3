"""How runs get to a child, and how its replies are heard.

The replies to a run that is alone are heard as they come. Where runs wait behind others there are so many that they
are looked for now and then instead, until several looks in a row have found nobody waiting any more.
"""

from __future__ import annotations

from . import wire
from .in_hand import InHand
from .process import ChildProcess

_LOOKS_IN_VAIN_MAX = 3


class Delivery:
    """To the children of one slot, one after the other. Numbers their orders."""

    def __init__(self) -> None:
        self._orders = 0  # given so far
        self._looks_in_vain = 0

    def put(self, child: ChildProcess, held: InHand) -> bool:
        """Add a run to those that the child may take; False if there is no room for one more."""
        run, terms = held.run, held.assignment.terms
        self._orders += 1
        order = wire.Execute(
            self._orders,
            run.id,
            run.job_name,
            run.attempt,
            run.max_attempts,
            run.slot or run.scheduled_for,
            run.payload,
            run.trace_context,
            terms.address_space_limit,
            held.assignment.short,
        )
        if not child.put(order):
            return False
        held.order = self._orders
        return True

    def put_behind(self, child: ChildProcess, held: InHand) -> bool:
        """The same for a run that waits behind another."""
        if not self.put(child, held):
            return False
        child.listens_to_replies(False)
        self._looks_in_vain = 0
        return True

    def goes_on_looking(self, child: ChildProcess, *, some_wait: bool) -> bool:
        """Whether replies are looked for after this look, too; else they are heard as they come."""
        self._looks_in_vain = 0 if some_wait else self._looks_in_vain + 1
        child.listens_to_replies(self._looks_in_vain > _LOOKS_IN_VAIN_MAX)
        return self._looks_in_vain <= _LOOKS_IN_VAIN_MAX


def listen_to(child: ChildProcess, held: InHand) -> None:
    """Have the output of a run that is about to begin. What was written between two runs belongs to neither."""
    if not held.assignment.short:
        child.listens_to_output(True)
        child.take_output()
    elif child.listens:
        child.take_output()
        child.listens_to_output(False)
    child.forget_stack()
