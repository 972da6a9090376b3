"""The runs that an executor has: one in hand, in front, and behind it those that its child was given to do next.

Each order has a permit, and two take permits: the child takes one when it is ready for the next order, and we take back
those that it has not taken. Each goes to one of us, and neither needs the other for that, be it stuck, stopped or dead.

    put --> [ 5 | 4 | 3 ] --> the child: Succeeded or Failed, by which the next in line is in front
                 |
                 +----------> taken back by us: as many of the latest orders are for others to do

What we took back was not begun. What is gone from there without us the child has, and has begun, whatever it says.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from uuid import UUID

from durablestack.runs import Lease

from . import usage, wire
from .delivery import Delivery, listen_to
from .in_hand import Assignment, InHand
from .process import ChildProcess
from .reports import Reports
from .slots import Limits, Slots
from .windows import how_many_fit

_RETIRE_WITHIN_SECONDS = 2.0
_SHORT_RUN_WITHIN_SECONDS = 0.05
"""One that takes longer was not short: nobody waits behind it."""


class Line:
    """What waits behind is of this child alone; the run in hand, if no child has begun it, may wait for the next.

    `idle` is called when there is a child and nothing for it to do, `time_out` when the run in hand has had its time,
    and `end_it` when it was to end while it waited, and the child has taken it all the same.
    """

    def __init__(
        self,
        slots: Slots,
        reports: Reports,
        limits: Limits,
        *,
        idle: Callable[[], None],
        time_out: Callable[[], None],
        end_it: Callable[[], None],
    ) -> None:
        self.child: ChildProcess | None = None  # that is ready; the executor lets go of it once it is dead
        self.retiring = False  # the child is given no run any more, for it leaves, or is made to
        self.runs_begun = 0  # by this child
        self.in_hand: InHand | None = None
        self.behind: deque[InHand] = deque()  # delivered, to be done after the one in hand
        self._slots = slots
        self._reports = reports
        self._limits = limits
        self._idle = idle
        self._time_out = time_out
        self._end_it = end_it
        self._delivery = Delivery()

    # --- the child

    def open(self, child: ChildProcess) -> None:
        """A child is ready: it begins the run that waits for it, if one does."""
        self.child, self.retiring, self.runs_begun = child, False, 0
        if self.in_hand is None:
            self._idle()
        else:
            self._prepare(child, self.in_hand)
            self.deliver()

    def retire(self) -> None:
        """Ask the child, which has no run, to leave; another one takes its place."""
        if self.child is not None:
            self.retiring = True
            self.child.send(wire.Stop())
            asyncio.get_running_loop().call_later(_RETIRE_WITHIN_SECONDS, self.child.kill)

    def _takes_runs(self, child: ChildProcess) -> bool:
        return not (self.retiring or child.killed or child.gone)

    # --- in front

    def assign(self, assignment: Assignment) -> None:
        """Take a run in hand. It begins with `deliver` if there is a child for it, or as soon as there is."""
        assert self.in_hand is None, "an executor takes one run at a time"
        self.in_hand = held = InHand(assignment, assignment.run, assignment.run.lease)
        held.count_from_here()
        child = self.child
        if child is None or not self._takes_runs(child):
            return
        if assignment.terms.fresh_process_per_run and self.runs_begun:
            self.retire()
        else:
            self._prepare(child, held)

    def _prepare(self, child: ChildProcess, held: InHand) -> None:
        listen_to(child, held)
        held.count_from_here()
        self._gather(held)

    def _gather(self, held: InHand) -> None:
        self.runs_begun += 1
        self._delivery.gather([held])
        self._start_timeout(held)

    def _take_back_front(self, held: InHand) -> None:
        self.runs_begun -= 1
        held.take_back()

    def deliver(self) -> None:
        """Give the child what was assigned to it and added, as far as the leases are to be trusted."""
        child = self.child
        if child is None or not self._delivery.gathered:
            return
        for lease in self._slots.not_to_begin([held.lease for held in self._delivery.gathered], child):
            self._withdraw(lease)
        for held in self._delivery.send(child):
            if held is self.in_hand:  # there is nothing in its way but the child
                self._take_back_front(held)
                self.retire()
            else:
                self._let_go_behind(held)
        if self.behind:
            self._delivery.hears_less(child)
        if self.in_hand is None and self._takes_runs(child):
            self._idle()
        else:
            self._tell_beginning(child)

    def _tell_beginning(self, child: ChildProcess) -> None:
        """A run that takes its time begins now, for its child waits for it. Of a short one the reply tells that."""
        held = self.in_hand
        if held is not None and held.delivered and not (held.assignment.short or child.tells_beginnings):
            self._note_cpu_before(held, child)
            self._tell([held])

    def _note_cpu_before(self, held: InHand, child: ChildProcess) -> None:
        """What it had used before is not the run's."""
        used = None if child.gone else usage.cpu_seconds(child.pid)
        if used is not None:
            held.cpu_before = used

    def _withdraw(self, lease: Lease) -> None:
        held = self._delivery.withdraw(lease)
        if held is not self.in_hand:
            self._let_go_behind(held)
            return
        self._take_back_front(held)
        self.give_back()
        if self.behind:
            self.move_on()

    def _let_go_behind(self, held: InHand) -> None:
        self.behind.remove(held)
        held.end()
        self._reports.never_begun(held.run)

    def _start_timeout(self, held: InHand) -> None:
        timeout_seconds = held.assignment.terms.timeout_seconds
        if timeout_seconds is not None:
            held.timeout = asyncio.get_running_loop().call_later(timeout_seconds, self._on_timeout, held)

    def _on_timeout(self, held: InHand) -> None:
        if held is self.in_hand:
            self._time_out()

    def let_go(self, held: InHand) -> None:
        """Of the run in hand: whatever becomes of it, it is not ours any more."""
        self.in_hand = None
        held.end()

    def give_back(self) -> None:
        """Let go of the run in hand if no child has it."""
        held = self.in_hand
        if held is not None and not held.delivered:
            self.let_go(held)
            self._reports.never_begun(held.run)

    def give_back_and_idle(self) -> None:
        self.give_back()
        if self.child is not None and self.in_hand is None and self._takes_runs(self.child):
            self._idle()

    # --- behind

    @property
    def lets_follow(self) -> bool:
        """Whether runs may wait behind the one in hand."""
        child, front = self.child, self.in_hand
        if child is None or front is None or not self._takes_runs(child):
            return False
        if not front.delivered or front.ending is not None or front.overdue:
            return False
        return front.assignment.short and self._limits.runs_per_child_max is None

    @property
    def ends_soon(self) -> bool:
        """Whether the run in hand is expected to be over in a moment."""
        held = self.in_hand
        return held is not None and held.assignment.short and not held.overdue and held.ending is None

    def add(self, waiting: deque[Assignment], at_most: int, times: int = 1) -> bool:
        """Take runs from those waiting, to be done after those that the child has; whether it may be given more. The
        child gets them with `deliver`.

        `times` as many as a child should have.
        """
        if not self.lets_follow:
            return False
        room = times * self._limits.window_max - 1 - len(self.behind)
        wanted = list(islice(waiting, max(0, min(at_most, room))))
        seconds = [assignment.expected_seconds for assignment in wanted]
        count = how_many_fit(seconds, beside_seconds=self._expected_seconds, times=times)
        held = [InHand(assignment, assignment.run, assignment.run.lease) for assignment in wanted[:count]]
        for _ in held:
            waiting.popleft()
        self._delivery.gather(held)
        self.behind += held
        return count == len(wanted) and at_most < room

    @property
    def _expected_seconds(self) -> float:
        """Of all that are here."""
        front = 0.0 if self.in_hand is None else self.in_hand.assignment.expected_seconds
        return front + sum([held.assignment.expected_seconds for held in self.behind])

    def move_on(self) -> None:
        """The child goes on with the next run, or has done so already."""
        self.step(1)
        self.stepped(1)

    def step(self, times: int) -> None:
        """The run in hand is over, and the next one in its place, so often; `stepped` is to follow."""
        for _ in range(times):
            self.in_hand = self.behind.popleft() if self.behind else None

    def stepped(self, times: int) -> None:
        """The time of the run that is in hand now begins."""
        held = self.in_hand
        begun = times if held is not None else times - 1
        self.runs_begun += begun
        self._slots.moved_on(begun)
        if held is None:
            return
        held.count_from_here()
        self._start_timeout(held)
        if held.ending is not None:
            self._end_it()

    def look_for_replies(self) -> bool:
        """While runs wait here, replies are looked for now and then; whether that goes on."""
        child = self.child
        if child is None:
            return False
        child.control.look()
        return self._delivery.goes_on_looking(child, some_wait=bool(self.behind))

    # --- taken back

    def take_back(self) -> None:
        """What the child has not taken of what it was given is for others to do, but for the run in hand."""
        child, front = self.child, self.in_hand
        if child is not None and front is not None and (self.behind or (front.delivered and not front.begun)):
            self.hand_on(self.take_untaken(child))

    def take_untaken(self, child: ChildProcess) -> list[InHand]:
        """What waits behind the run in hand, and the child has not taken. The run in hand has no child if not even that
        was taken, else it has begun."""
        count = child.orders.take_back()
        untaken = [self.behind.pop() for _ in range(min(count, len(self.behind)))][::-1]
        front = self.in_hand
        if front is not None and front.delivered:
            if count > len(untaken):
                self._take_back_front(front)
            else:
                self._note_taken(front, child)
        return untaken

    def _note_taken(self, held: InHand, child: ChildProcess) -> None:
        """The run in hand, which so has begun, though nobody said so yet."""
        if not (held.begun or held.told):
            self._note_cpu_before(held, child)
        self.begin([held])

    def begin(self, some: Sequence[InHand]) -> None:
        """From here on their attempts count, whoever said so first."""
        for held in some:
            held.begun = True
        self._tell(some)

    def _tell(self, some: Sequence[InHand]) -> None:
        news = [held for held in some if not held.told]
        for held in news:
            held.told = True
        self._reports.began(news)

    def hand_on(self, back: Sequence[InHand]) -> None:
        """Have others do what no child has begun, unless it was to end anyway."""
        for held in back:
            held.end()
        wanted = [held.assignment for held in back if held.ending is None]
        for held in back:
            if held.ending is not None:
                self._reports.never_begun(held.run)
        self._slots.place(wanted)

    def let_go_of_waiting(self) -> None:
        """Have what waits behind the run in hand done by others."""
        child = self.child
        if child is None or not self.behind:
            return
        self.take_back()
        if self.in_hand is not None and not self.in_hand.delivered and self._takes_runs(child):
            self._gather(self.in_hand)
            self.deliver()

    def look_after(self, now: float) -> None:
        """A run that should have been short and is not keeps nobody waiting, and is listened to as others are."""
        child, held = self.child, self.in_hand
        if child is None or held is None or not held.assignment.short:
            return
        if now - held.began_at < _SHORT_RUN_WITHIN_SECONDS:
            return
        if not held.overdue:
            held.overdue = True
            self.let_go_of_waiting()
        if self.begun_in_hand() is not None and not self.behind:
            child.listens_to_output(True)

    def begun_in_hand(self) -> InHand | None:
        """The run in hand, if its child has begun it."""
        child, held = self.child, self.in_hand
        if child is None or held is None or not held.delivered:
            return None
        if not held.begun and not child.orders.has_untaken:
            self._note_taken(held, child)
        return held if held.begun else None

    # --- all of them

    @property
    def all(self) -> list[InHand]:
        """In the order in which the child takes them."""
        return [] if self.in_hand is None else [self.in_hand, *self.behind]

    def find(self, run_id: UUID) -> InHand | None:
        """The run with this id, if it is here."""
        return next((held for held in self.all if held.run.id == run_id), None)
