"""How an assignment ended, and what was seen of it until then: all that a verdict is given on."""

from __future__ import annotations

from time import monotonic

from msgspec import Struct
from msgspec.structs import astuple, replace

from durablestack.runs import NO_OUTPUT, Output, Usage

from . import usage, wire
from .bus import Course
from .death import Death
from .in_hand import Assignment, InHand
from .process import ChildProcess
from .verdict import Ending, Evidence


class Ended(Struct, frozen=True, kw_only=True, eq=False):
    """How an assignment ended: by a reply of the child, or by its death; `ending` if we wanted it to end."""

    assignment: Assignment
    how: wire.Succeeded | wire.Failed | Death
    ending: Ending | None
    evidence: Evidence
    course: Course
    pid: int | None


def ended_by(
    how: wire.Succeeded | wire.Failed | Death, held: InHand, child: ChildProcess | None, pid: int | None
) -> Ended:
    """The stack and what was used are asked for only where somebody will read them."""
    seconds = monotonic() - held.began_at if isinstance(how, Death) else how.seconds
    evidence = Evidence(output=_output_of(how, held, child), reached=held.reached)
    if not isinstance(how, wire.Succeeded) or held.ending is not None:
        used = held.used if isinstance(how, Death) else usage.most(held.used, Usage(*astuple(how.used)))
        evidence = replace(evidence, stack=child.take_stack() if child is not None else None, usage=used)
    return Ended(
        assignment=held.assignment,
        how=how,
        ending=held.ending,
        evidence=evidence,
        course=Course(seconds, held.course.trace_id, held.course.span_id),
        pid=pid,
    )


def _output_of(how: wire.Succeeded | wire.Failed | Death, held: InHand, child: ChildProcess | None) -> Output:
    if child is None:
        return NO_OUTPUT
    if held.assignment.short and not isinstance(how, Death):
        (output,) = child.told_outputs([how])
        return output
    return child.take_output()
