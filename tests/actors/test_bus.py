"""The bus: everyone hears everything, nobody waits for anybody, and no secret is told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from parts import NOON, leased_run

from collector import Collector, collector
from durablestack.events import EventSink, EventType
from durablestack.ids import new_run_id
from durablestack.options import DurableStackOptions
from durablestack.runs import Failure, RunStatus
from durablestack.stores.contract import ExpiredRun
from durablestack.supervisor.bus import Bus, Course
from listeners import PATIENCE_SECONDS, Hanging, Listener, Raising

MakeBus = Callable[..., Bus]


@pytest.fixture
def bus() -> Iterator[MakeBus]:
    made: list[Bus] = []

    def make(*sinks: EventSink, **options: Any) -> Bus:
        made.append(Bus(DurableStackOptions(worker_name="worker-1", **options), sinks))
        made[-1].start()
        return made[-1]

    yield make
    for each in made:
        each.close(PATIENCE_SECONDS)


@pytest.fixture
def hosted() -> Iterator[Collector]:
    with collector() as made:
        yield made


def eventing(hosted: Collector, **changes: Any) -> dict[str, Any]:
    return {
        "tenant_id": "t",
        "client_secret": "canary-secret",
        "ingestion_api_base_url": hosted.url,
        "ingestion_flush_interval_seconds": 3600,
        **changes,
    }


def test_every_sink_hears_every_event(bus: MakeBus) -> None:
    sinks = [Listener() for _ in range(5)]
    run = leased_run(attempt=2)
    before = datetime.now(UTC)
    bus(*sinks).emit(EventType.JOB_SUCCEEDED, run, course=Course(0.0125))
    for sink in sinks:
        (event,) = sink.until_count(1)
        assert (event.event_type, event.event_version, event.worker_name) == ("job_succeeded", 2, "worker-1")
        assert (event.run_id, event.job_name, event.attempt, event.max_attempts) == (run.id, "job", 2, 3)
        assert event.duration_ms == 12
        assert before <= event.occurred_at <= datetime.now(UTC)


def test_an_event_may_be_of_a_run_that_had_expired_or_of_no_run(bus: MakeBus) -> None:
    sink = Listener()
    expired = ExpiredRun(new_run_id(), "job", 3, "worker-2", RunStatus.FAILED)
    told = bus(sink)
    told.emit(EventType.RUN_QUARANTINED, expired)
    told.emit(EventType.WORKER_HEARTBEAT)
    quarantined, heartbeat = sink.until_count(2)
    assert (quarantined.run_id, quarantined.job_name, quarantined.attempt) == (expired.run_id, "job", 3)
    assert (heartbeat.run_id, heartbeat.job_name, heartbeat.worker_name) == (None, None, "worker-1")


def test_sinks_that_hang_and_raise_take_nothing_from_the_others(bus: MakeBus) -> None:
    hanging, good = Hanging(), Listener()
    told = bus(hanging, Raising(), good)
    runs = [leased_run() for _ in range(100)]
    for run in runs:
        told.emit(EventType.JOB_CLAIMED, run)
    assert [event.run_id for event in good.until_count(100)] == [run.id for run in runs]
    hanging.let_go.set()


def test_a_bus_closes_in_time_whatever_its_sinks_do(bus: MakeBus) -> None:
    hanging = [Hanging() for _ in range(3)]
    good = Listener()
    told = bus(*hanging, good)
    for number in range(1000):
        told.emit(EventType.JOB_CLAIMED, leased_run(attempt=number))
    for sink in hanging:
        assert sink.called.wait(PATIENCE_SECONDS)
    told.close(0.1)
    assert len(good.until_count(1000)) == 1000
    assert good.closed.wait(PATIENCE_SECONDS)
    for sink in hanging:
        sink.let_go.set()


def test_making_a_bus_starts_nothing_and_closing_it_unused_is_nothing() -> None:
    threads = threading.active_count()
    Bus(DurableStackOptions(), [Listener()]).close(1.0)
    assert threading.active_count() == threads


def test_without_sinks_there_are_no_threads_and_no_events(bus: MakeBus) -> None:
    threads = threading.active_count()
    told = bus()
    told.emit(EventType.JOB_CLAIMED, leased_run())
    assert threading.active_count() == threads
    assert told.dropped == {}


FAILURE = Failure(error_type="ValueError", error_message="m", error_detail="Traceback " + "x" * 5_000)


def test_error_details_are_left_out_unless_they_are_asked_for(bus: MakeBus) -> None:
    sink = Listener()
    bus(sink).emit(EventType.JOB_FAILED, leased_run(), failure=FAILURE)
    (event,) = sink.until_count(1)
    assert (event.error_type, event.error_message, event.error_detail) == ("ValueError", "m", None)


@pytest.mark.parametrize("length", [1, 10, 4096, 100_000])
def test_error_details_are_cut_to_the_length_that_was_asked_for(bus: MakeBus, length: int) -> None:
    sink = Listener()
    told = bus(sink, eventing={"include_error_detail": True, "max_error_detail_length": length})
    told.emit(EventType.JOB_FAILED, leased_run(), failure=FAILURE)
    (event,) = sink.until_count(1)
    assert event.error_detail == (FAILURE.error_detail or "")[:length]


def test_no_secret_is_told_not_even_half_of_one(bus: MakeBus, hosted: Collector) -> None:
    sink = Listener()
    told = bus(
        sink,
        database_url="postgresql://ada:canary-password@db/shop",
        eventing=eventing(hosted, include_error_detail=True, max_error_detail_length=20),
    )
    text = "to db: canary-password and canary-secret"
    failure = Failure(error_type="OSError", error_message=text, error_detail=text)
    told.emit(EventType.JOB_FAILED, leased_run(), failure=failure, message=text)
    (event,) = sink.until_count(1)
    told.close(PATIENCE_SECONDS)
    for shown in (repr(event), hosted.posts[0].raw.decode()):
        assert "canary" not in shown
    assert event.error_message == "to db: ********** and **********"


def test_the_hosted_service_hears_what_waits_when_the_bus_closes(bus: MakeBus, hosted: Collector) -> None:
    told = bus(eventing=eventing(hosted))
    runs = [leased_run() for _ in range(5)]
    for run in runs:
        told.emit(EventType.JOB_CLAIMED, run)
        told.emit(EventType.WORKER_HEARTBEAT)
    assert hosted.posts == []
    told.close(PATIENCE_SECONDS)
    (post,) = hosted.posts
    assert [event["runId"] for event in post.events] == [*[str(run.id) for run in runs], None]
    assert post.events[-1]["eventType"] == "worker_heartbeat_batch"


def test_the_hosted_service_hears_at_once_of_as_many_events_as_go_into_a_post(bus: MakeBus, hosted: Collector) -> None:
    good = Listener()
    told = bus(good, eventing=eventing(hosted, ingestion_max_batch_size=10))
    for _ in range(10):
        told.emit(EventType.JOB_CLAIMED, leased_run(), retry_at=NOON)
    good.until_count(10)
    ended = threading.Event()
    for _ in range(3000):
        if hosted.events:
            break
        ended.wait(0.01)
    assert len(hosted.events) == 10


def test_a_hosted_service_that_does_not_answer_keeps_nobody_from_closing(bus: MakeBus, hosted: Collector) -> None:
    hosted.hold.clear()
    told = bus(eventing=eventing(hosted))
    told.emit(EventType.JOB_CLAIMED, leased_run())
    told.close(0.1)
    hosted.hold.set()


def test_the_hosted_service_is_told_at_each_flush_interval(bus: MakeBus, hosted: Collector) -> None:
    told = bus(eventing=eventing(hosted, ingestion_flush_interval_seconds=0.05))
    ended = threading.Event()
    for count in (1, 2):
        told.emit(EventType.JOB_CLAIMED, leased_run())
        for _ in range(3000):
            if len(hosted.posts) == count:
                break
            ended.wait(0.01)
        assert len(hosted.posts) == count


@pytest.mark.parametrize("name", ["shop", None])
def test_the_hosted_service_is_told_the_name_of_the_application(
    bus: MakeBus, hosted: Collector, name: str | None
) -> None:
    told = bus(eventing=eventing(hosted), application_name=name)
    told.emit(EventType.JOB_CLAIMED, leased_run())
    told.close(PATIENCE_SECONDS)
    assert hosted.posts[0].body.get("serviceName") == name


def test_only_the_start_of_an_attempt_tells_how_long_it_waited(bus: MakeBus) -> None:
    sink = Listener()
    told, run = bus(sink), leased_run(scheduled_for=datetime.now(UTC) - timedelta(seconds=3))
    for event_type in EventType:
        told.emit(event_type, run)
    told.emit(EventType.JOB_STARTED, leased_run(scheduled_for=datetime.now(UTC) + timedelta(hours=1)))
    *events, early = sink.until_count(len(EventType) + 1)
    waited = {event.event_type: event.queue_wait_ms for event in events}
    assert 3_000 <= (waited.pop(EventType.JOB_STARTED) or 0) < 3_000 + PATIENCE_SECONDS * 1_000
    assert set(waited.values()) == {None}
    assert early.queue_wait_ms == 0
