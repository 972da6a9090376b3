"""Small things that become large: each has a bound, and whoever meets it costs nobody else anything."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from durablestack import JobContext, RunStatus, durable_job
from durablestack.errors import OptionsError, PayloadError, ScheduleError
from durablestack.jobs import JobRegistry
from durablestack.jobs.context import CancelFlag
from durablestack.jobs.execution import Returned, execute
from durablestack.options import DurableStackOptions
from durablestack.scheduling.cron import CronSchedule
from durablestack.scheduling.intervals import IntervalSchedule
from durablestack.supervisor import wire
from workers import Bench

LENGTH = 5_000_000


@durable_job(name="returns-much")
def returns_much() -> str:
    return "x" * LENGTH


def test_what_a_job_returns_goes_nowhere() -> None:
    registration = JobRegistry([returns_much]).find("returns-much")
    flag, now = CancelFlag(), datetime.now(UTC)
    context = JobContext(
        run_id=uuid4(), job_name="returns-much", attempt=1, max_attempts=1, scheduled_for=now, _cancel_flag=flag
    )
    with asyncio.Runner() as runner:
        result = execute(registration, None, context, flag, runner)
    assert isinstance(result, Returned)
    assert len(repr(result)) < 1_000


def test_a_reply_that_says_too_much_is_none() -> None:
    long = wire.frame(wire.Failed(1, "T", "m" * wire.REPLY_BYTES_MAX, ""))
    with pytest.raises(wire.ProtocolError, match="at most"):
        list(wire.FrameReader(wire.REPLY_BYTES_MAX).feed(long))


def test_a_length_without_a_body_takes_no_memory() -> None:
    reader = wire.FrameReader(wire.REPLY_BYTES_MAX)
    with pytest.raises(wire.ProtocolError):
        list(reader.feed(b"\xff\xff\xff\xff" + b"\0" * 4))


@pytest.mark.parametrize("depth", [10_000, 400_000])
def test_a_payload_of_any_depth_is_refused_or_read_and_ends_no_process(depth: int) -> None:
    codec = JobRegistry([_takes_anything]).find("takes-anything").codec
    for text in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth, "[" * depth):
        with pytest.raises(PayloadError):
            codec.decode(text)


@durable_job(name="takes-anything")
def _takes_anything(args: object) -> None:
    return


@pytest.mark.parametrize("every", [timedelta(0), timedelta(microseconds=1), timedelta(milliseconds=999), -timedelta(1)])
def test_an_interval_is_a_second_at_least(every: timedelta) -> None:
    with pytest.raises(ScheduleError):
        IntervalSchedule(every)


@pytest.mark.parametrize("expression", ["*/1 " * 1_000, "0-59," * 10_000 + "0 * * * *", "0 0 31 2 *", "9" * 5_000])
def test_a_cron_expression_has_a_length_and_an_end(expression: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        CronSchedule(expression, "UTC")
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize("size", ["9" * 400 + " GiB", "1e999", "inf", -1, 2**70])
def test_a_size_is_one(size: object) -> None:
    with pytest.raises(OptionsError):
        DurableStackOptions(memory_limit=size)  # type: ignore[arg-type]


def test_a_flood_of_schedules_that_are_not_ours_holds_up_nothing(make_bench: Callable[..., Bench]) -> None:
    """Somebody writes a thousand schedules of every second, all long overdue, into the table."""
    made = make_bench()
    with made.stack.store._connections.transaction() as tx:  # type: ignore[attr-defined]
        now = datetime.now(UTC)
        for number in range(1_000):
            tx.run(
                "insert into durable_stack_jobs (job_name, cron_expression, time_zone, enabled, allow_concurrent_runs,"
                " max_attempts, next_run_at_utc, application, seen_at_utc, created_at_utc, updated_at_utc)"
                " values (:name, '* * * * * *', 'UTC', 1, 1, 3, :now, 'flood', :now, :now, :now)",
                made.stack.store.dialect.bind({"name": f"flood-{number}", "now": now - timedelta(days=1)}),  # type: ignore[attr-defined]
            )
    made.worker()
    run_id = made.client.enqueue("innocent")
    made.until(run_id, RunStatus.SUCCEEDED)
    assert [run.id for run in made.stack.queries.get_recent_runs()] == [run_id]
    assert len(made.stack.schedules.list_scheduled_jobs()) == 1_000
