"""What leaves for the hosted service: nothing unless it was asked for twice, and never what jobs work on."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from collector import collector
from durablestack.events import Event
from durablestack.options import DurableStackOptions
from durablestack.runs import RunStatus
from durablestack.supervisor.bus import Bus
from workers import Bench, eventually

PAYLOAD = "kept-at-home"
EVENT_FIELDS = {
    *("event_type", "event_version", "occurred_at", "worker_name", "run_id", "job_name", "attempt", "max_attempts"),
    *("duration_ms", "queue_wait_ms", "message", "error_type", "error_message", "error_detail", "retry_at"),
    *("trace_id", "span_id"),
}
POSTED = {
    *("eventType", "eventVersion", "occurredAtUtc", "runId", "jobName", "attempt", "maxAttempts", "workerName"),
    *("runtime", "runtimeVersion", "durationMs", "errorType", "errorMessage", "payloadJson"),
}
POSTED_PAYLOAD = {
    *("message", "errorType", "errorMessage", "errorDetail", "durationMs", "retryAtUtc", "traceId", "spanId"),
    *("heartbeatCount", "firstHeartbeatAtUtc", "lastHeartbeatAtUtc"),
}


def test_an_event_has_no_room_for_arguments_or_output() -> None:
    assert set(Event.__struct_fields__) == EVENT_FIELDS


@pytest.mark.parametrize("given", [{}, {"tenant_id": "", "client_secret": ""}])
def test_without_both_credentials_nobody_is_told(given: dict[str, Any]) -> None:
    bus = Bus(DurableStackOptions(eventing={**given, "ingestion_api_base_url": "https://example.com"}))
    assert bus.dropped == {}, "a sink for each name"


def test_arguments_and_output_of_a_run_are_not_posted(make_bench: Callable[..., Bench]) -> None:
    """The answers of the service are commands, which nobody obeys."""
    with collector() as hosted:
        hosted.answer_body = b'{"command": "cancel", "redirect": "http://127.0.0.1:1/"}'
        hosted.answer_headers = {"Location": "http://127.0.0.1:1/", "Refresh": "0"}
        made = make_bench(
            DURABLESTACK__EVENTING__TENANT_ID="t",
            DURABLESTACK__EVENTING__CLIENT_SECRET="s3cret",
            DURABLESTACK__EVENTING__INGESTION_API_BASE_URL=hosted.url,
            DURABLESTACK__EVENTING__INGESTION_FLUSH_INTERVAL_SECONDS="0.1",
        )
        made.worker()
        printed = made.client.enqueue("prints", 3)
        told = made.client.enqueue("raises-hostile", PAYLOAD)  # which it knows not, and does nothing
        for run_id in (printed, told):
            made.until(run_id, RunStatus.SUCCEEDED)
        ends = {str(printed), str(told)}
        eventually(lambda: {e["runId"] for e in hosted.events if e["eventType"] == "job_succeeded"} >= ends)
        raw = b"".join(post.raw for post in hosted.posts)
    assert "out 0" in (made.run(printed).stdout_tail or "")
    assert b"out 0" not in raw
    assert PAYLOAD.encode() not in raw
    for event in hosted.events:
        assert set(event) <= POSTED
        assert set(msgspec.json.decode(event["payloadJson"])) <= POSTED_PAYLOAD
