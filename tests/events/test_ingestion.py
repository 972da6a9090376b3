"""The hosted service's protocol, word for word, and what becomes of posts that fail."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import platform
import socket
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from told import NOON, told

from collector import CUT, Collector, collector
from durablestack import EventType, OptionsError
from durablestack.events import ingestion
from durablestack.events.ingestion import IngestionSink
from durablestack.options import EventingOptions


@pytest.fixture
def hosted() -> Iterator[Collector]:
    with collector() as made:
        yield made


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingestion, "_BACKOFF_SECONDS_FIRST", 0.0)


def sink(url: str, **changes: Any) -> IngestionSink:
    values: dict[str, Any] = {
        "tenant_id": "tenant_1",
        "client_secret": "shh-shh",
        "ingestion_api_base_url": url,
        **changes,
    }
    return IngestionSink(
        EventingOptions(**values), worker_name="worker-1", service_name="shop", closing=threading.Event()
    )


def test_a_post_is_as_the_protocol_has_it(hosted: Collector) -> None:
    event = told(
        EventType.JOB_FAILED,
        duration_ms=12,
        error_type="ValueError",
        error_message="no",
        error_detail="Traceback",
        retry_at=NOON + timedelta(seconds=5),
    )
    sink(hosted.url).emit([event])
    (post,) = hosted.posts
    assert post.path == "/v1/events/batch"
    assert post.headers["Content-Type"] == "application/json"
    assert post.headers["X-DurableStack-TenantId"] == "tenant_1"
    assert post.headers["X-DurableStack-ClientSecret"] == "shh-shh"
    assert UUID(post.headers["X-Correlation-Id"])
    assert b"shh-shh" not in post.raw
    key = post.body["idempotencyKey"]
    assert key.startswith("worker-1-")
    assert post.body == {
        "tenantId": "tenant_1",
        "idempotencyKey": key,
        "serviceName": "shop",
        "events": [
            {
                "eventType": "job_failed",
                "eventVersion": 2,
                "occurredAtUtc": "2030-01-02T12:00:00Z",
                "runId": str(event.run_id),
                "jobName": "bill",
                "attempt": 1,
                "maxAttempts": 3,
                "workerName": "worker-1",
                "runtime": f"Python {sys.version_info.major}.{sys.version_info.minor}",
                "runtimeVersion": platform.python_version(),
                "durationMs": 12,
                "errorType": "ValueError",
                "errorMessage": "no",
                "payloadJson": post.events[0]["payloadJson"],
            }
        ],
    }
    assert json.loads(post.events[0]["payloadJson"]) == {
        "errorType": "ValueError",
        "errorMessage": "no",
        "errorDetail": "Traceback",
        "durationMs": 12,
        "retryAtUtc": "2030-01-02T12:00:05Z",
    }


def test_a_payload_has_no_nulls_and_knows_traces(hosted: Collector) -> None:
    sink(hosted.url).emit([told(), told(trace_id="a1", span_id="b2", message="m")])
    assert [event["payloadJson"] for event in hosted.events] == ["{}", '{"message":"m","traceId":"a1","spanId":"b2"}']


def test_the_path_follows_the_one_of_the_address(hosted: Collector) -> None:
    sink(f"{hosted.url}/eu/", ingestion_path="/événements?a=b c").emit([told()])
    assert hosted.posts[0].path == "/eu/%C3%A9v%C3%A9nements?a=b%20c"


@pytest.mark.parametrize("failure", [408, 409, 425, 429, 500, 502, 503, CUT])
def test_what_may_pass_is_tried_again_as_the_same_post(hosted: Collector, failure: int) -> None:
    hosted.answers = [failure, failure, 200]
    sink(hosted.url).emit([told(), told()])
    assert len(hosted.posts) == 3
    assert len({post.raw for post in hosted.posts}) == 1, "the same events under the same key"
    assert len({post.headers["X-Correlation-Id"] for post in hosted.posts}) == 3


@pytest.mark.parametrize("retries", [0, 2, 5])
def test_after_so_many_retries_a_post_is_given_up_and_told(
    hosted: Collector, retries: int, caplog: pytest.LogCaptureFixture
) -> None:
    hosted.answers = [503]
    sink(hosted.url, ingestion_max_retry_attempts=retries).emit([told(), told()])
    assert len(hosted.posts) == 1 + retries
    assert caplog.messages == ["2 events were not taken by 127.0.0.1, and are dropped: it answered 503"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 301, 307, 308])
def test_what_will_not_pass_is_dropped_at_once_with_one_line(
    hosted: Collector, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    hosted.answers = [status]
    hosted.answer_headers = {"Location": hosted.url + "/elsewhere"}
    posting = sink(hosted.url, ingestion_max_batch_size=1)
    posting.emit([told(), told()])
    posting.emit([told()])
    assert [post.path for post in hosted.posts] == ["/v1/events/batch"] * 3, "neither retried nor redirected"
    assert caplog.messages == [f"1 events were not taken by 127.0.0.1, and are dropped: it answered {status}"]
    posting.close()
    assert caplog.messages[1:] == ["2 more events were not taken by 127.0.0.1"]


def test_a_post_that_is_given_up_holds_up_no_other(hosted: Collector) -> None:
    hosted.answers = [403, 200]
    events = [told(), told()]
    sink(hosted.url, ingestion_max_batch_size=1).emit(events)
    assert [post.events[0]["runId"] for post in hosted.posts] == [str(event.run_id) for event in events]


def test_nobody_listens_there(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    sink(url).emit([told()])
    (line,) = caplog.messages
    assert line.startswith("1 events were not taken by 127.0.0.1, and are dropped: ConnectionRefusedError")


def test_an_answer_that_does_not_come_is_not_waited_for_without_end(
    hosted: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ingestion, "_TIMEOUT_SECONDS", 0.05)
    hosted.hold.clear()
    sink(hosted.url, ingestion_max_retry_attempts=1).emit([told()])
    assert "TimeoutError" in caplog.text
    hosted.hold.set()


def test_an_answer_is_not_read_without_end(hosted: Collector, caplog: pytest.LogCaptureFixture) -> None:
    hosted.answer_body = b"x" * 5_000_000
    sink(hosted.url, ingestion_max_batch_size=1, ingestion_max_retry_attempts=0).emit([told(), told()])
    assert len(hosted.posts) == 2
    assert caplog.messages == []


def test_what_is_no_http_is_a_failure_like_others(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def talk_nonsense() -> None:
            for _ in range(2):
                connection, _address = server.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"SSH-2.0-nonsense\r\n\r\n")

        thread = threading.Thread(target=talk_nonsense)
        thread.start()
        sink(f"http://127.0.0.1:{server.getsockname()[1]}", ingestion_max_retry_attempts=1).emit([told()])
        thread.join()
    assert "BadStatusLine" in caplog.text


def test_events_that_are_too_large_are_dropped_and_told(hosted: Collector, caplog: pytest.LogCaptureFixture) -> None:
    sink(hosted.url, ingestion_max_request_body_bytes=10).emit([told()])
    assert hosted.posts == []
    assert "larger than eventing.ingestion_max_request_body_bytes allows" in caplog.text


def test_no_proxy_is_asked(hosted: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    sink(hosted.url).emit([told()])
    assert len(hosted.posts) == 1


def test_https_is_spoken_to_a_service_that_is_not_ours_and_its_certificate_is_looked_at(
    hosted: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    sink(hosted.url.replace("http:", "https:"), ingestion_max_retry_attempts=0).emit([told()])
    assert hosted.posts == []
    assert "SSL" in caplog.text


@pytest.mark.parametrize("secret", ["canary-1\n", " canary-1", "canary-1\r\nX-Other: a", "canary-é"])
def test_a_secret_that_no_header_can_carry_is_refused_without_being_shown(secret: str) -> None:
    with pytest.raises(OptionsError, match=r"eventing\.client_secret holds characters") as refused:
        sink("http://127.0.0.1:9", client_secret=secret)
    assert "canary" not in str(refused.value)
    with pytest.raises(OptionsError, match=r"eventing\.tenant_id holds characters"):
        sink("http://127.0.0.1:9", tenant_id=secret)


def test_pauses_between_tries_grow_and_end_when_all_is_to_end(
    hosted: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ingestion, "_BACKOFF_SECONDS_FIRST", 100.0)
    monkeypatch.setattr(ingestion, "_BACKOFF_SECONDS_CLOSING", 0.0)
    posting = sink(hosted.url)
    pauses: list[float] = []

    class Closing(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            pauses.append(timeout)
            return True

    posting._closing = Closing()
    hosted.answers = [503]
    with caplog.at_level(logging.WARNING):
        posting.emit([told()])
    assert len(pauses) == 5
    assert all(pause <= 30 * 1.2 for pause in pauses), "and are bounded"
    monkeypatch.setattr(ingestion, "_BACKOFF_SECONDS_MAX", 1e9)
    pauses.clear()
    posting.emit([told()])
    assert all(pause * 1.2 < following for pause, following in itertools.pairwise(pauses))


def test_a_preliminary_answer_is_not_taken_for_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    answers = [b"HTTP/1.1 103 Early Hints\r\n\r\n", b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"]
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for answer in answers:
                connection, _ = server.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        serving = threading.Thread(target=serve, daemon=True)
        serving.start()
        sink(f"http://127.0.0.1:{server.getsockname()[1]}").emit([told(EventType.JOB_STARTED)])
        serving.join(30)
    assert not serving.is_alive()
    assert caplog.records == []


def test_an_answer_that_trickles_holds_the_sink_for_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingestion, "_POST_WITHIN_SECONDS", 0.2)
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def trickle() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                while not stop.wait(0.02):
                    connection.sendall(b".")

        serving = threading.Thread(target=trickle, daemon=True)
        serving.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        sink(url, ingestion_max_retry_attempts=0).emit([told(EventType.JOB_STARTED)])
        stop.set()
        serving.join(30)
    assert not serving.is_alive()
