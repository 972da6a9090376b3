"""What OpenTelemetry is told: each kind of event under its name, job by job."""

from datetime import UTC, datetime

import pytest
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from durablestack import DurableStack, Event, EventType
from durablestack.supervisor.telemetry import TelemetrySink
from durablestack.supervisor.tree import Supervisor

COUNTED = {
    EventType.JOB_CLAIMED: "durablestack.runs.claimed",
    EventType.JOB_STARTED: "durablestack.runs.started",
    EventType.JOB_SUCCEEDED: "durablestack.runs.succeeded",
    EventType.JOB_FAILED: "durablestack.attempts.failed",
    EventType.RETRY_SCHEDULED: "durablestack.retries.scheduled",
    EventType.JOB_CANCELLED: "durablestack.runs.cancelled",
    EventType.JOB_RELEASED: "durablestack.runs.released",
    EventType.LEASE_LOST: "durablestack.leases.lost",
    EventType.RUN_QUARANTINED: "durablestack.runs.quarantined",
    EventType.CHILD_CRASHED: "durablestack.children.crashed",
    EventType.CLOCK_JUMP_DETECTED: "durablestack.clock.jumps",
}
NOT_COUNTED = {EventType.JOB_RETRIED, EventType.WORKER_HEARTBEAT}


@pytest.fixture
def supervisor() -> Supervisor:
    return Supervisor(DurableStack("chaos_jobs", storage_provider="in_memory"))


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> InMemoryMetricReader:
    reader = InMemoryMetricReader()
    monkeypatch.setattr(metrics, "get_meter", MeterProvider([reader]).get_meter)
    return reader


def told(reader: InMemoryMetricReader) -> dict[str, dict[object, float]]:
    """The values of all counters and gauges, by the name of the job, if there is one."""
    data = reader.get_metrics_data()
    assert data is not None
    return {
        metric.name: {
            (point.attributes or {}).get("durablestack.job.name"): point.value for point in metric.data.data_points
        }
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
        if hasattr(metric.data.data_points[0], "value")
    }


def test_each_kind_of_event_is_counted_under_its_name(supervisor: Supervisor, reader: InMemoryMetricReader) -> None:
    assert set(COUNTED) | NOT_COUNTED == set(EventType)
    sink = TelemetrySink(supervisor)
    for number, kind in enumerate(EventType, start=1):
        event = Event(event_type=kind, occurred_at=datetime.now(UTC), worker_name="w", job_name="bill")
        sink.emit([event] * number)
    counters = told(reader)
    for number, kind in enumerate(EventType, start=1):
        if kind in COUNTED:
            assert counters[COUNTED[kind]] == {"bill": number}, kind


def test_lease_extensions_are_those_of_the_heartbeat(supervisor: Supervisor, reader: InMemoryMetricReader) -> None:
    TelemetrySink(supervisor)
    supervisor.heartbeat.extensions = 17
    assert told(reader)["durablestack.leases.extended"] == {None: 17}
