"""Spans from enqueueing to execution, and metrics, through real processes and OpenTelemetry's own SDK."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from durablestack import DurableStack, RunStatus
from durablestack.options import DurableStackOptions
from workers import Bench, Worker, bench, eventually

Json = dict[str, Any]


class Traces:
    """A bench whose supervisors run `tracing_jobs`, and the spans and metrics that they leave."""

    def __init__(self, made: Bench, folder: Path) -> None:
        self.bench = made
        self.folder = folder
        self.stack = DurableStack("tracing_jobs", options=DurableStackOptions.from_environment(made.settings))

    def worker(self, **settings: str) -> Worker:
        files = {"TRACE_FILE": str(self.folder / "spans"), "METRICS_FILE": str(self.folder / "metrics")}
        return self.bench.worker(settings={**files, **settings}, target="tracing_jobs")

    def spans(self, name: str) -> list[Json]:
        return [span for span in _lines(self.folder / "spans") if span["name"] == name]

    def until_span(self, name: str) -> Json:
        return eventually(lambda: self.spans(name), what=f"span {name}: {self.bench.logs()}")[0]

    def events(self) -> list[Json]:
        return _lines(self.folder / "events")

    def metrics(self) -> dict[str, list[Json]]:
        """The data points of the latest export, by the name of their instrument."""
        exports = _lines(self.folder / "metrics")
        scopes = exports[-1]["resource_metrics"][0]["scope_metrics"] if exports else []
        return {
            metric["name"]: metric["data"]["data_points"]
            for scope in scopes
            if scope["scope"]["name"] == "DurableStack"
            for metric in scope["metrics"]
        }


def _lines(path: Path) -> list[Json]:
    if not path.exists():
        return []
    whole = path.read_text().rpartition("\n")[0]  # the last line may still be on its way
    return [json.loads(line) for line in whole.splitlines()]


@pytest.fixture
def traces(tmp_path: Path, sqlite_settings: dict[str, str]) -> Iterator[Traces]:
    with bench(tmp_path, sqlite_settings) as made:
        traces = Traces(made, tmp_path)
        yield traces
        traces.stack.close()


@pytest.fixture(scope="module")
def sender() -> trace.Tracer:
    """This process traces too, as an application that enqueues would; the provider can be set only once."""
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        trace.set_tracer_provider(TracerProvider())
    return trace.get_tracer("tests")


def _enqueued_in_a_trace(traces: Traces, sender: trace.Tracer, job: str) -> tuple[Any, str]:
    with sender.start_as_current_span("request") as span:
        return traces.stack.client.enqueue(job), f"0x{span.get_span_context().trace_id:032x}"


@pytest.mark.parametrize("job", ["traced", "traced-async"])
def test_the_execution_is_a_span_that_links_to_whoever_enqueued_the_run(
    traces: Traces, sender: trace.Tracer, job: str
) -> None:
    run_id, request_trace = _enqueued_in_a_trace(traces, sender, job)
    traces.worker()
    span = traces.until_span(f"process {job}")
    assert [link["context"]["trace_id"] for link in span["links"]] == [request_trace]
    assert span["context"]["trace_id"] != request_trace
    assert span["parent_id"] is None
    assert span["attributes"]["messaging.message.id"] == str(run_id)
    assert span["attributes"]["durablestack.job.attempt"] == 1
    inside = traces.until_span("inside")
    assert inside["context"]["trace_id"] == span["context"]["trace_id"]
    assert inside["parent_id"] == span["context"]["span_id"]


def test_it_can_be_a_child_of_it_instead(traces: Traces, sender: trace.Tracer) -> None:
    _, request_trace = _enqueued_in_a_trace(traces, sender, "traced")
    traces.worker(DURABLESTACK__TRACE_RELATION="parent")
    span = traces.until_span("process traced")
    assert span["context"]["trace_id"] == request_trace
    assert span["parent_id"] is not None
    assert span["links"] == []


def test_a_run_that_nobody_traced_has_a_span_of_its_own(traces: Traces) -> None:
    run_id = traces.stack.client.enqueue("traced")
    traces.bench.stack.store.get_run(run_id)
    traces.worker()
    assert traces.until_span("process traced")["parent_id"] is None


def test_a_failure_is_told_by_the_status_of_the_span(traces: Traces) -> None:
    traces.stack.client.enqueue("fails-traced")
    traces.worker()
    span = traces.until_span("process fails-traced")
    assert span["status"] == {"status_code": "ERROR", "description": "boom"}
    assert span["attributes"]["error.type"] == "ValueError"


def test_spans_of_each_child_arrive_even_if_it_leaves_at_once(traces: Traces) -> None:
    traces.stack.client.enqueue("traced")
    worker = traces.worker()
    eventually(lambda: "run succeeded" in worker.log())
    worker.terminate()
    assert worker.exit_code() == 0
    assert len(traces.spans("process traced")) == 1


def test_measurements_leave_before_the_supervisor_does(traces: Traces) -> None:
    traces.stack.client.enqueue("traced")
    worker = traces.worker(METRICS_EVERY_SECONDS="3600")
    eventually(lambda: "run succeeded" in worker.log())
    worker.terminate()
    assert worker.exit_code() == 0
    assert [point["value"] for point in traces.metrics()["durablestack.runs.succeeded"]] == [1]


def test_the_supervisor_counts_and_measures(traces: Traces) -> None:
    for _ in range(3):
        traces.stack.client.enqueue("traced")
    failing = traces.stack.client.enqueue("fails-traced")
    traces.worker(DURABLESTACK__MONITORING__BACKLOG_INTERVAL_SECONDS="0.2")
    traces.bench.until(failing, RunStatus.FAILED)
    _until_metric(traces, "durablestack.runs.succeeded", lambda points: points[0]["value"] == 3)
    _until_metric(traces, "durablestack.runs.claimed", lambda points: sum(p["value"] for p in points) == 4)
    _until_metric(traces, "durablestack.attempts.failed", lambda points: points[0]["value"] == 1)
    _until_metric(traces, "durablestack.run.duration", lambda points: sum(p["count"] for p in points) == 4)
    _until_metric(traces, "durablestack.run.queue_wait", lambda points: sum(p["count"] for p in points) == 4)
    _until_metric(traces, "durablestack.runs.in_flight", lambda points: points[0]["value"] == 0)
    _until_metric(traces, "durablestack.runs.due", lambda points: points[0]["value"] == 0)
    _until_metric(traces, "durablestack.runs.oldest_due_age", lambda points: points[0]["value"] == 0)
    assert "durablestack.leases.extended" in traces.metrics()


def _until_metric(traces: Traces, name: str, right: Callable[[list[Json]], bool]) -> None:
    eventually(
        lambda: (points := traces.metrics().get(name)) and right(points),
        what=f"{name}: {traces.metrics().get(name)}; {traces.bench.logs()}",
    )


def test_events_of_an_attempt_carry_the_ids_of_its_span(traces: Traces) -> None:
    traces.stack.client.enqueue("fails-traced")
    traces.worker(EVENTS_FILE=str(traces.folder / "events"))
    span = traces.until_span("process fails-traced")["context"]
    told = eventually(
        lambda: events if "job_failed" in (events := {event["event_type"]: event for event in traces.events()}) else {}
    )
    assert told["job_claimed"]["trace_id"] is None
    for event_type in ("job_started", "job_failed"):
        assert (f"0x{told[event_type]['trace_id']}", f"0x{told[event_type]['span_id']}") == (
            span["trace_id"],
            span["span_id"],
        )
