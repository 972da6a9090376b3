"""The logging sink, and how an application names its sinks."""

import logging
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from told import NOON, heartbeat, told

from durablestack import DurableStack, EventType, LoggingEventSink
from listeners import Listener


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[str, int, str]]:
    return [(record.name, record.levelno, record.getMessage()) for record in caplog.records]


def test_the_logging_sink_writes_one_line_for_each_event(caplog: pytest.LogCaptureFixture) -> None:
    started, beat = told(), heartbeat()
    with caplog.at_level(logging.INFO):
        LoggingEventSink().emit([started, beat])
    assert logged(caplog) == [
        (
            "durablestack.events",
            logging.INFO,
            f"job_started: run_id={started.run_id} job_name=bill attempt=1 worker_name=worker-1",
        ),
        ("durablestack.events", logging.INFO, "worker_heartbeat: worker_name=worker-1"),
    ]


def test_the_logging_sink_warns_of_what_is_worth_a_look_and_leaves_out_details(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failed = told(
        EventType.JOB_FAILED,
        duration_ms=12,
        error_type="ValueError",
        error_message="50% of it",
        error_detail="Traceback",
        retry_at=NOON + timedelta(seconds=5),
    )
    with caplog.at_level(logging.WARNING):
        LoggingEventSink().emit([told(), failed])
    ((_, level, line),) = logged(caplog)
    assert level == logging.WARNING
    assert line == (
        f"job_failed: run_id={failed.run_id} job_name=bill attempt=1 worker_name=worker-1 duration_ms=12 "
        "retry_at=2030-01-02 12:00:05+00:00 error_type=ValueError error_message=50% of it"
    )


def test_an_application_names_its_sinks_when_it_is_made_or_later() -> None:
    first, second = Listener(), Listener()
    stack = DurableStack(storage_provider="in_memory", event_sinks=[first])
    stack.add_event_sink(second)
    stack.use_logging_event_sink()
    assert stack.event_sinks[:2] == (first, second)
    assert isinstance(stack.event_sinks[2], LoggingEventSink)
    assert DurableStack(storage_provider="in_memory").event_sinks == ()


@pytest.fixture
def application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = "listened_to"
    (tmp_path / f"{name}.py").write_text(
        "from durablestack import DurableStack, durable_job\n"
        "from listeners import Listener\n"
        "@durable_job\ndef job() -> None: ...\n"
        "stack = DurableStack(__name__, storage_provider='in_memory', event_sinks=[Listener()])\n"
        "stack.use_logging_event_sink()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize("changes", [{}, {"batch_size": 7}])
def test_the_sinks_of_an_application_are_there_when_it_is_loaded_by_name(
    application: str, changes: dict[str, int]
) -> None:
    stack = DurableStack.load([application], **changes)
    assert [type(sink) for sink in stack.event_sinks] == [Listener, LoggingEventSink]
    assert stack.event_sinks[0] is sys.modules[application].stack.event_sinks[0]
