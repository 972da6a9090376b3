"""Under which name OpenTelemetry finds what this library tells."""

from uuid import uuid4

import pytest
from opentelemetry import metrics, trace

from durablestack import DurableStack
from durablestack.events import tracing
from durablestack.options import TraceRelation
from durablestack.supervisor.telemetry import TelemetrySink
from durablestack.supervisor.tree import Supervisor


@pytest.fixture
def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all tracers and meters that were asked for."""
    names: list[str] = []
    for module, get in ((trace, "get_tracer"), (metrics, "get_meter")):
        original = getattr(module, get)
        monkeypatch.setattr(module, get, lambda name, *rest, original=original: names.append(name) or original(name))
    return names


def test_traces_and_metrics_have_one_source(asked_for: list[str]) -> None:
    execution = tracing.Execution(run_id=uuid4(), job_name="job", attempt=1, worker_name="w", trace_context=None)
    with tracing.executing(execution, TraceRelation.LINK):
        assert asked_for == ["DurableStack"]
    with tracing.sending("job", 1):
        assert asked_for == ["DurableStack"] * 2
    TelemetrySink(Supervisor(DurableStack("chaos_jobs", storage_provider="in_memory")))
    assert asked_for == ["DurableStack"] * 3
