"""Events made to order."""

from datetime import UTC, datetime, timedelta
from typing import Any

from durablestack.events import Event, EventType
from durablestack.ids import new_run_id

NOON = datetime(2030, 1, 2, 12, tzinfo=UTC)


def told(event_type: EventType = EventType.JOB_STARTED, **fields: Any) -> Event:
    values: dict[str, Any] = {
        "event_type": event_type,
        "occurred_at": NOON,
        "worker_name": "worker-1",
        "run_id": new_run_id(),
        "job_name": "bill",
        "attempt": 1,
        "max_attempts": 3,
    }
    return Event(**{**values, **fields})


def heartbeat(seconds: float = 0.0) -> Event:
    return Event(
        event_type=EventType.WORKER_HEARTBEAT,
        occurred_at=NOON + timedelta(seconds=seconds),
        worker_name="worker-1",
    )
