"""Between an executor and the pool that it belongs to: what bounds the one, and what the other is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from durablestack.runs import Lease, Output, Run

from .ended import Ended
from .in_hand import Assignment, InHand
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


class Slots(Protocol):
    """What an executor tells the pool it belongs to."""

    job_names: frozenset[str]
    has_started: bool  # a child has been ready

    @property
    def busy(self) -> Sequence[Executor]: ...
    def idle(self, executor: Executor) -> None: ...
    def busy_or_gone(self, executor: Executor) -> None: ...
    def not_to_begin(self, leases: Sequence[Lease], child: ChildProcess) -> list[Lease]: ...
    def began(self, begun: Sequence[InHand]) -> None: ...
    def succeeded(self, ended: Sequence[tuple[InHand, float, Output]]) -> None: ...
    def ended(self, ended: Ended) -> None: ...
    def never_begun(self, run: Run) -> None: ...
    def abandoned(self, run: Run, why: str) -> None: ...
    def place(self, assignments: Sequence[Assignment]) -> int: ...
    def moved_on(self, times: int) -> None: ...
    def child_lost(self, why: str, run: Run | None = None) -> None: ...
