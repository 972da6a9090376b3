"""Jobs of an application that traces: each process appends its spans to a file, one JSON object a line.

Started as a supervisor's target with TRACE_FILE in the environment.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from durablestack import DurableStack, JobContext, durable_job
from told_jobs import EventsToFile

stack = DurableStack(__name__)


class SpansToFile(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with Path(os.environ["TRACE_FILE"]).open("a") as file:
            file.writelines(json.dumps(json.loads(span.to_json(indent=None))) + "\n" for span in spans)
        return SpanExportResult.SUCCESS


class MetricsToFile(MetricExporter):
    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: object) -> MetricExportResult:
        with Path(os.environ["METRICS_FILE"]).open("a") as file:
            file.write(json.dumps(json.loads(metrics_data.to_json(indent=None))) + "\n")
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: object) -> None:
        return


def trace_to_file() -> None:
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(SpansToFile(), schedule_delay_millis=100))
    trace.set_tracer_provider(provider)


@stack.on_child_start
def begin_to_trace() -> None:
    trace_to_file()


stack.add_event_sink(EventsToFile())


@stack.on_supervisor_start
def begin_to_measure() -> None:
    interval = 1000 * float(os.environ.get("METRICS_EVERY_SECONDS", "0.1"))
    reader = PeriodicExportingMetricReader(MetricsToFile(), export_interval_millis=interval)
    metrics.set_meter_provider(MeterProvider([reader]))


@durable_job(name="traced")
def traced(context: JobContext) -> None:
    with trace.get_tracer("tests").start_as_current_span("inside"):
        print("traced", context.run_id)


@durable_job(name="traced-async")
async def traced_async(context: JobContext) -> None:
    with trace.get_tracer("tests").start_as_current_span("inside"):
        print("traced", context.run_id)


@durable_job(name="fails-traced", max_attempts=1)
def fails(context: JobContext) -> None:
    raise ValueError("boom")
