"""What a job is told of its run, and how it learns that it should end."""

import threading
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from durablestack.errors import RunCancelled
from durablestack.jobs import JobContext
from durablestack.jobs.context import CancelFlag


def test_a_context_says_which_run_it_is_about(context: JobContext) -> None:
    assert repr(context) == f"<JobContext job run {context.run_id} attempt 2/3>"


def test_an_attempt_began_when_its_context_was_made_whenever_that_is_asked_for(
    context: JobContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.now(UTC)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    began_at = context.started_at
    assert began_at.tzinfo is UTC
    assert 0 <= (now - began_at).total_seconds() < 60
    assert began_at <= now
    assert context.started_at is began_at


def test_what_sets_one_flag_sets_no_other(flag: CancelFlag) -> None:
    other = CancelFlag()
    flag.set()
    assert flag.check()
    assert not other.check()
    assert not other.noticed
    assert not CancelFlag().wait(0)


def test_a_context_without_a_flag_is_never_cancelled(context: JobContext) -> None:
    alone = JobContext(
        run_id=context.run_id, job_name="job", attempt=1, max_attempts=1, scheduled_for=context.scheduled_for
    )
    assert not alone.cancelled
    alone.raise_if_cancelled()


def test_a_job_that_looks_notices(flag: CancelFlag, context: JobContext) -> None:
    assert not context.cancelled
    context.raise_if_cancelled()
    assert not flag.noticed
    flag.set()
    assert not flag.noticed
    assert context.cancelled
    assert flag.noticed


def test_a_job_that_asks_to_be_stopped_is(flag: CancelFlag, context: JobContext) -> None:
    flag.set()
    with pytest.raises(RunCancelled, match=str(context.run_id)):
        context.raise_if_cancelled()
    assert flag.noticed


def test_waiting_ends_when_the_time_is_up_or_the_run_is_to_end(flag: CancelFlag, context: JobContext) -> None:
    assert not context.wait_cancelled(0.001)
    assert not flag.noticed
    waited: list[Any] = []
    waiting = threading.Thread(target=lambda: waited.append(context.wait_cancelled()))
    waiting.start()
    flag.set()
    waiting.join(10)
    assert waited == [True]
    assert flag.noticed


def test_all_that_wait_are_woken_and_whoever_comes_later_need_not_wait(flag: CancelFlag, context: JobContext) -> None:
    waiting = [threading.Thread(target=context.wait_cancelled) for _ in range(5)]
    for thread in waiting:
        thread.start()
    flag.set()
    for thread in waiting:
        thread.join(10)
    assert not any(thread.is_alive() for thread in waiting)
    assert context.wait_cancelled()


def test_a_flag_that_was_set_before_anybody_waited_is_not_waited_for(flag: CancelFlag, context: JobContext) -> None:
    flag.set()
    assert context.wait_cancelled()
    assert flag.noticed


def test_an_interrupt_is_called_when_the_flag_is_set_or_at_once_if_it_is(flag: CancelFlag) -> None:
    calls: list[str] = []
    flag.interrupt_with(lambda: calls.append("later"))
    assert calls == []
    flag.set()
    assert calls == ["later"]
    flag.interrupt_with(lambda: calls.append("at once"))
    flag.interrupt_with(None)
    flag.set()
    assert calls == ["later", "at once"]
