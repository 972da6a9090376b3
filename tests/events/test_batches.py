"""Bodies within their limits, each with a key of its own."""

from __future__ import annotations

import json
from typing import Any

import pytest
from told import heartbeat, told

from durablestack.events import Event, EventType
from durablestack.events.batches import Batch, Batches


def batches(**changes: Any) -> Batches:
    values: dict[str, Any] = {
        "tenant_id": "tenant_1",
        "worker_name": "worker-1",
        "service_name": None,
        "events_max": 100,
        "bytes_max": 1_000_000,
    }
    return Batches(**{**values, **changes})


def events_in(found: list[Batch]) -> list[dict[str, Any]]:
    return [event for batch in found for event in json.loads(batch.body)["events"]]


def test_no_body_holds_more_events_than_it_may() -> None:
    events = [told() for _ in range(25)]
    found = list(batches(events_max=10).of(events))
    assert [batch.event_count for batch in found] == [10, 10, 5]
    assert [event["runId"] for event in events_in(found)] == [str(event.run_id) for event in events]


@pytest.mark.parametrize("bytes_max", [900, 1_500, 10_000])
def test_no_body_is_larger_than_it_may_be(bytes_max: int) -> None:
    made = batches(bytes_max=bytes_max)
    events = [told(message="é" * (n % 40)) for n in range(200)]
    found = list(made.of(events))
    assert max(len(batch.body) for batch in found) <= bytes_max
    assert [event["runId"] for event in events_in(found)] == [str(event.run_id) for event in events]
    assert made.too_large == 0
    full = [batch for batch in found if len(batch.body) > bytes_max - 600]
    assert len(full) >= len(found) - 1, "a body is as full as it may be"


def test_an_event_that_is_too_large_by_itself_is_shortened() -> None:
    large = told(
        EventType.JOB_FAILED, error_type="E", error_message="m" * 1_000, error_detail="d" * 50_000, message="x" * 5_000
    )
    made = batches(bytes_max=2_500)
    (event,) = events_in(list(made.of([large])))
    assert event["errorMessage"] == "m" * 200
    assert json.loads(event["payloadJson"]) == {"errorType": "E", "errorMessage": "m" * 200, "message": "x" * 200}
    assert made.too_large == 0


@pytest.mark.parametrize("bytes_max", [1, 300])
def test_an_event_that_fits_nowhere_is_counted_and_holds_up_no_other(bytes_max: int) -> None:
    made = batches(bytes_max=bytes_max)
    assert list(made.of([told(), heartbeat()])) == []
    assert made.too_large == 2
    made = batches(bytes_max=1_000)
    assert len(events_in(list(made.of([told(job_name="j" * 2_000), told()])))) == 1
    assert made.too_large == 1


def test_heartbeats_become_one() -> None:
    events: list[Event] = [heartbeat(2), told(), heartbeat(4), heartbeat(1)]
    found = events_in(list(batches().of(events)))
    assert [event["eventType"] for event in found] == ["job_started", "worker_heartbeat_batch"]
    assert found[1]["occurredAtUtc"] == "2030-01-02T12:00:04Z"
    assert json.loads(found[1]["payloadJson"]) == {
        "heartbeatCount": 3,
        "firstHeartbeatAtUtc": "2030-01-02T12:00:01Z",
        "lastHeartbeatAtUtc": "2030-01-02T12:00:04Z",
    }


def test_keys_tell_of_the_worker_and_are_never_used_again() -> None:
    first, after_a_restart = batches(events_max=1), batches(events_max=1)
    found = [*first.of([told(), told()]), *first.of([told()]), *after_a_restart.of([told(), told()])]
    keys = [batch.key for batch in found]
    assert len(set(keys)) == 5
    assert all(key.startswith("worker-1-") for key in keys)
    assert [key.rpartition("-")[2] for key in keys] == ["1", "2", "3", "1", "2"]
    assert [json.loads(batch.body)["idempotencyKey"] for batch in found] == keys


def test_the_service_is_named_if_it_has_a_name() -> None:
    (named,), (nameless,) = batches(service_name="shop").of([told()]), batches().of([told()])
    assert json.loads(named.body)["serviceName"] == "shop"
    assert "serviceName" not in json.loads(nameless.body)
