"""The leases that this worker holds, and until when it may trust each of them.

The database decides who owns a run. Between two heartbeats we only know that it did say so once: we may trust in
that from when we asked, for the duration of the lease less a margin. Past it, the run must not be executing here
any more, for it may be executing elsewhere.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import timedelta
from time import CLOCK_BOOTTIME, CLOCK_MONOTONIC, clock_gettime  # a job may put something else in their place
from typing import Protocol
from uuid import UUID

from msgspec import Struct

from durablestack.runs import Lease

MARGIN_RATIO = 0.2
"""Part of a lease that is not trusted: time to kill a child, and tolerance for clocks that run at other rates."""

GUARD_RATIO = 0.25
"""Part of that margin after which the guard ends what we should have ended, and did not."""


class Executing(Protocol):
    """A child that executes a run, or will as soon as it has done those before. Both may be called from any thread."""

    def kill(self) -> None: ...
    def trust_until(self, boottime: float | None) -> None: ...


_BOOTTIME = CLOCK_BOOTTIME if sys.platform == "linux" else CLOCK_MONOTONIC


def boottime() -> float:
    """Seconds on a clock that no one sets, and that goes on while the machine is suspended."""
    return clock_gettime(_BOOTTIME)


def trust_seconds(lease_duration: timedelta) -> float:
    return lease_duration.total_seconds() * (1 - MARGIN_RATIO)


def guard_seconds(lease_duration: timedelta) -> float:
    """From asking for a lease until the guard ends what is still executing under it."""
    return lease_duration.total_seconds() * (1 - MARGIN_RATIO * (1 - GUARD_RATIO))


def _deadlines(asked_at: float, duration: timedelta) -> tuple[float, float]:
    """Until when a lease that was asked for then is trusted, and until when the guard lets its child live."""
    return asked_at + trust_seconds(duration), asked_at + guard_seconds(duration)


class _Held(Struct, eq=False, gc=False):
    """`child` is the one that executes the run, if one does."""

    lease: Lease
    trusted_until: float
    guarded_until: float
    child: _Child | None = None


class _Child:
    """A child and how many leases it executes under, one after the other: it may go on as long as all of them allow.

    While it has some, it is told of a later deadline only with a heartbeat: an earlier one does no harm until then.
    """

    __slots__ = ("_told", "executing", "leases")

    def __init__(self, executing: Executing) -> None:
        self.executing = executing
        self.leases = 0
        self._told = math.inf

    def begins(self, until: float) -> None:
        """It has more leases, of which this is the earliest deadline."""
        if until < self._told:
            self.goes_on(until)

    def goes_on(self, until: float) -> None:
        """This is the earliest deadline of all its leases."""
        if until != self._told:
            self._told = until
            self.executing.trust_until(until)


class LeaseTable:
    """Written by the event loop (hold, all_executing, all_finished, drop), by the heartbeat's thread (extend,
    tell_deadlines), and by both (lose_distrusted)."""

    def __init__(self, clock: Callable[[], float] = boottime) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[int, _Held] = {}  # by the number that the id of the run is, which is looked up at once
        self._children: dict[Executing, _Child] = {}  # those with leases
        self._lost: set[Lease] = set()  # bounded: a lost lease stays until its executor has let go of it

    def __len__(self) -> int:
        return len(self._held)

    # --- the event loop

    def hold(self, leases: Iterable[Lease], asked_at: float, duration: timedelta) -> None:
        """Take leases in that were asked for at `asked_at`."""
        trusted_until, guarded_until = _deadlines(asked_at, duration)
        new = {lease.run_id.int: _Held(lease, trusted_until, guarded_until) for lease in leases}
        with self._lock:
            for number in self._held.keys() & new.keys():  # ours before, expired and claimed anew
                self._lose(self._held[number])
            self._held.update(new)

    def all_executing(self, leases: Sequence[Lease], child: Executing) -> list[Lease]:
        """These are about to begin, one after the other; return those that must not, for they are not to be trusted."""
        refused, until = [], math.inf
        with self._lock:
            now, known = self._clock(), self._children.get(child) or _Child(child)
            for lease, held in zip(leases, self._found(leases), strict=True):
                if held is None or held.trusted_until <= now:
                    refused.append(lease)
                    continue
                if held.child is not known:
                    if held.child is not None:  # it had it, and has not begun it
                        self._let_go([held])
                    held.child = known
                    known.leases += 1
                if held.guarded_until < until:
                    until = held.guarded_until
            if known.leases:
                self._children[child] = known
                known.begins(until)
        return refused

    def is_trusted(self, lease: Lease) -> bool:
        with self._lock:
            (held,) = self._found([lease])
            return held is not None and held.trusted_until > self._clock()

    def _found(self, leases: Iterable[Lease]) -> list[_Held | None]:
        """For each lease what is held of it; None if it is not ours any more."""
        held = self._held
        return [
            one if (one := held.get(lease.run_id.int)) is not None and one.lease.token.int == lease.token.int else None
            for lease in leases
        ]

    def finished(self, lease: Lease) -> None:
        """The attempt has ended; only its outcome is to be written, for which the lease is still kept alive."""
        self.all_finished([lease])

    def all_finished(self, leases: Sequence[Lease]) -> list[Lease]:
        """The same for several; return those that were lost."""
        with self._lock:
            lost = self._no_more_lost(leases)
            self._let_go(self._found(leases))
        return lost

    def drop(self, leases: Sequence[Lease]) -> None:
        with self._lock:
            self._no_more_lost(leases)
            found = self._found(leases)
            self._let_go(found)
            for held in found:
                if held is not None:
                    del self._held[held.lease.run_id.int]

    def _let_go(self, ended: Iterable[_Held | None]) -> None:
        """No child executes these any more. One that has no other may live."""
        for held in ended:
            if held is not None and (child := held.child) is not None and self._take_from(child, held):
                child.executing.trust_until(None)

    def _take_from(self, child: _Child, held: _Held) -> bool:
        """The child does not execute it any more. Return whether it was its last."""
        held.child = None
        child.leases -= 1
        if child.leases:
            return False
        del self._children[child.executing]
        return True

    def _no_more_lost(self, leases: Iterable[Lease]) -> list[Lease]:
        """Forget that these were lost; return those that were."""
        if not self._lost:
            return []
        lost = [lease for lease in leases if lease in self._lost]
        self._lost.difference_update(lost)
        return lost

    def is_lost(self, lease: Lease) -> bool:
        with self._lock:
            return bool(self._lost) and lease in self._lost

    # --- the heartbeat

    def held(self) -> list[Lease]:
        with self._lock:
            return [held.lease for held in self._held.values()]

    def extend(
        self, kept: Collection[UUID], asked: Sequence[Lease], asked_at: float, duration: timedelta
    ) -> list[Lease]:
        """Trust what was kept, from `asked_at` on; lose the others that were asked for, and return them."""
        lost = []
        trusted_until, guarded_until = _deadlines(asked_at, duration)
        with self._lock:
            for lease, held in zip(asked, self._found(asked), strict=True):
                if held is None:
                    continue
                if lease.run_id in kept:
                    held.trusted_until, held.guarded_until = trusted_until, guarded_until
                else:
                    # of one whose outcome is being recorded, perhaps it has been: whoever records it is told
                    is_executing = held.child is not None
                    self._lose(held)
                    if is_executing:
                        lost.append(held.lease)
            self._tell_deadlines()
        return lost

    def tell_deadlines(self) -> None:
        """Nothing was renewed; a child whose earliest lease has ended may go on for longer all the same."""
        with self._lock:
            self._tell_deadlines()

    def _tell_deadlines(self) -> None:
        """Tell each child the earliest deadline of its leases, also of those younger than what was asked for."""
        earliest: dict[_Child, float] = {}
        for held in self._held.values():
            if held.child is not None:
                earliest[held.child] = min(held.guarded_until, earliest.get(held.child, math.inf))
        for child, until in earliest.items():
            child.goes_on(until)

    def lose_distrusted(self) -> list[Lease]:
        """Lose what was not renewed in time and may be executing; what has ended is still worth recording."""
        now = self._clock()
        with self._lock:
            return [
                self._lose(held)
                for held in list(self._held.values())
                if held.trusted_until <= now and held.child is not None
            ]

    def seconds_to_deadline(self) -> float | None:
        with self._lock:
            deadlines = [held.trusted_until for held in self._held.values() if held.child is not None]
        return max(0.0, min(deadlines) - self._clock()) if deadlines else None

    def _lose(self, held: _Held) -> Lease:
        """Killing comes first: nothing must be between us and it. That its other leases allow more is of no use to the
        child, which is to die."""
        child = held.child
        if child is not None:
            child.executing.kill()
            self._lost.add(held.lease)
            self._take_from(child, held)
        del self._held[held.lease.run_id.int]
        return held.lease
