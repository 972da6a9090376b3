"""What the actors handle, made to order: runs with leases, and clocks that a test sets."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from durablestack.ids import new_run_id
from durablestack.runs import Failed, Failure, Lease, Run, RunStatus
from durablestack.supervisor.leases import LeaseTable

NOON = datetime(2030, 1, 2, 12, tzinfo=UTC)
BOOM = Failure(error_type="ValueError", error_message="boom", error_detail="Traceback")


class Clock:
    """Seconds, as far as the test has let them go by."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Child:
    """As much of a child as the table of leases knows."""

    def __init__(self, kill: Callable[[], object]) -> None:
        self.kill = kill
        self.trusted: list[float | None] = []

    def trust_until(self, boottime: float | None) -> None:
        self.trusted.append(boottime)


def leased_run(**fields: Any) -> Run:
    values: dict[str, Any] = {
        "id": new_run_id(),
        "job_name": "job",
        "status": RunStatus.LEASED,
        "payload": None,
        "scheduled_for": NOON,
        "attempt": 1,
        "max_attempts": 3,
        "created_at": NOON,
        "lease_owner": "worker-1",
        "lease_token": uuid4(),
    }
    return Run(**{**values, **fields})


def new_lease() -> Lease:
    return leased_run().lease


def may_begin(leases: LeaseTable, lease: Lease, child: Child) -> bool:
    """Whether the child may begin a run under this lease."""
    return not leases.all_executing([lease], child)


def failed(run: Run) -> Failed:
    return Failed(run.lease, BOOM, None)
