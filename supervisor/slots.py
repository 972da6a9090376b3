"""Between an executor and the pool that it belongs to: what bounds the one, and what the other is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from durablestack.runs import Lease

from .in_hand import Assignment
from .process import ChildProcess

if TYPE_CHECKING:
    from .executor import Executor


class Limits(Struct, frozen=True, kw_only=True):
    startup_timeout_seconds: float
    cancel_grace_seconds: float
    terminate_grace_seconds: float
    output_bytes_max: int
    window_max: int = 1
    """How many runs a child may have at once."""
    runs_per_child_max: int | None = None
    child_memory_max: int | None = None
    """In bytes: a child that keeps more than that when a run has ended is replaced."""

    @property
    def runs_at_once_max(self) -> int:
        """Of a child. One that is replaced after so many runs has one at a time: what waited would lose its place."""
        return self.window_max if self.runs_per_child_max is None else 1


class Slots(Protocol):
    """What an executor tells the pool it belongs to, and asks it. What becomes of its runs it tells `Reports`."""

    job_names: frozenset[str]
    has_started: bool  # a child has been ready

    @property
    def busy(self) -> Sequence[Executor]: ...
    def idle(self, executor: Executor) -> None: ...
    def busy_or_gone(self, executor: Executor) -> None: ...
    def not_to_begin(self, leases: Sequence[Lease], child: ChildProcess) -> list[Lease]: ...
    def place(self, assignments: Sequence[Assignment]) -> int: ...
    def moved_on(self, times: int) -> None: ...
