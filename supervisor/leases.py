"""The leases that this worker holds, and until when it may trust each of them.

The database decides who owns a run. Between two heartbeats we only know that it did say so once: we may trust in
that from when we asked, for the duration of the lease less a margin. Past it, the run must not be executing here
any more, for it may be executing elsewhere.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable
from datetime import timedelta
from typing import Protocol
from uuid import UUID

from durablestack.runs import Lease

MARGIN_RATIO = 0.2
"""Part of a lease that is not trusted: time to kill a child, and tolerance for clocks that run at other rates."""

GUARD_RATIO = 0.25
"""Part of that margin after which the guard ends what we should have ended, and did not."""


class Executing(Protocol):
    """A child that executes a run. Both may be called from any thread."""

    def kill(self) -> None: ...
    def trust_until(self, boottime: float | None) -> None: ...


def boottime() -> float:
    """Seconds on a clock that no one sets, and that goes on while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.monotonic()


def trust_seconds(lease_duration: timedelta) -> float:
    return lease_duration.total_seconds() * (1 - MARGIN_RATIO)


def guard_seconds(lease_duration: timedelta) -> float:
    """From asking for a lease until the guard ends what is still executing under it."""
    return lease_duration.total_seconds() * (1 - MARGIN_RATIO * (1 - GUARD_RATIO))


class _Held:
    """`child` is the one that executes the run, if one does."""

    __slots__ = ("child", "guarded_until", "lease", "trusted_until")

    def __init__(self, lease: Lease, asked_at: float, duration: timedelta) -> None:
        self.lease = lease
        self.child: Executing | None = None
        self.trust(asked_at, duration)

    def trust(self, asked_at: float, duration: timedelta) -> None:
        self.trusted_until = asked_at + trust_seconds(duration)
        self.guarded_until = asked_at + guard_seconds(duration)
        if self.child is not None:
            self.child.trust_until(self.guarded_until)

    def let_go(self) -> None:
        child, self.child = self.child, None
        if child is not None:
            child.trust_until(None)


class LeaseTable:
    """Written by the event loop (hold, executing, finished, drop) and by the heartbeat's thread (extend, lose)."""

    def __init__(self, clock: Callable[[], float] = boottime) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[UUID, _Held] = {}
        self._lost: set[Lease] = set()  # bounded: a lost lease stays until its executor has let go of it

    def __len__(self) -> int:
        return len(self._held)

    # --- the event loop

    def hold(self, leases: Iterable[Lease], asked_at: float, duration: timedelta) -> None:
        """Take leases in that were asked for at `asked_at`."""
        with self._lock:
            for lease in leases:
                if (older := self._held.get(lease.run_id)) is not None:  # ours before, expired and claimed anew
                    self._lose(older)
                self._held[lease.run_id] = _Held(lease, asked_at, duration)

    def executing(self, lease: Lease, child: Executing) -> bool:
        """The run is about to begin; False if its lease is not to be trusted any more, so it must not."""
        with self._lock:
            held = self._trusted(lease)
            if held is None:
                return False
            held.child = child
            child.trust_until(held.guarded_until)
            return True

    def is_trusted(self, lease: Lease) -> bool:
        with self._lock:
            return self._trusted(lease) is not None

    def _trusted(self, lease: Lease) -> _Held | None:
        held = self._held.get(lease.run_id)
        return held if held and held.lease == lease and held.trusted_until > self._clock() else None

    def finished(self, lease: Lease) -> None:
        """The attempt has ended; only its outcome is to be written, for which the lease is still kept alive."""
        with self._lock:
            self._lost.discard(lease)
            if (held := self._held.get(lease.run_id)) and held.lease == lease:
                held.let_go()

    def drop(self, leases: Iterable[Lease]) -> None:
        with self._lock:
            for lease in leases:
                self._lost.discard(lease)
                if (held := self._held.get(lease.run_id)) and held.lease == lease:
                    held.let_go()
                    del self._held[lease.run_id]

    def is_lost(self, lease: Lease) -> bool:
        with self._lock:
            return lease in self._lost

    # --- the heartbeat

    def held(self) -> list[Lease]:
        with self._lock:
            return [held.lease for held in self._held.values()]

    def extend(
        self, kept: Collection[UUID], asked: Iterable[Lease], asked_at: float, duration: timedelta
    ) -> list[Lease]:
        """Trust what was kept, from `asked_at` on; lose the others that were asked for, and return them."""
        lost = []
        with self._lock:
            for lease in asked:
                held = self._held.get(lease.run_id)
                if held is None or held.lease != lease:
                    continue
                if lease.run_id in kept:
                    held.trust(asked_at, duration)
                else:
                    # of one whose outcome is being recorded, perhaps it has been: whoever records it is told
                    is_executing, lease = held.child is not None, self._lose(held)
                    if is_executing:
                        lost.append(lease)
        return lost

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
        """Killing comes first: nothing must be between us and it."""
        if held.child is not None:
            held.child.kill()
            self._lost.add(held.lease)
        del self._held[held.lease.run_id]
        return held.lease
