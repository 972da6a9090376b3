"""One attempt, executed here and now: it never raises, and tells how it went."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from durablestack.errors import NoRetry, PayloadError, Retry, RunCancelled
from durablestack.jobs import JobContext, JobRegistry
from durablestack.jobs.context import CancelFlag
from durablestack.jobs.execution import Raised, Returned, execute
from durablestack.text import ERROR_DETAIL_LENGTH_MAX, ERROR_MESSAGE_LENGTH_MAX, ERROR_TYPE_LENGTH_MAX

Execute = Callable[..., Returned | Raised]


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def executed(context: JobContext, flag: CancelFlag, runner: asyncio.Runner) -> Execute:
    def executed(job: Callable[..., Any], payload: str | None = None) -> Returned | Raised:
        return execute(JobRegistry().add(job, name="job"), payload, context, flag, runner)

    return executed


def raised_by(executed: Execute, error: BaseException) -> Raised:
    def raises() -> None:
        raise error

    result = executed(raises)
    assert isinstance(result, Raised)
    return result


def test_a_job_that_returns_has_returned(executed: Execute) -> None:
    assert executed(lambda: "whatever") == Returned(noticed_cancel=False)


def test_arguments_arrive_decoded_and_the_context_is_that_of_the_run(executed: Execute, context: JobContext) -> None:
    received: list[Any] = []

    def job(args: dict[str, int], context: JobContext) -> None:
        received.extend([args, context])

    executed(job, '{"a": 1}')
    assert received == [{"a": 1}, context]


def test_an_async_job_is_awaited(executed: Execute) -> None:
    steps: list[str] = []

    async def job() -> None:
        await asyncio.sleep(0)
        steps.append("done")

    assert executed(job) == Returned(noticed_cancel=False)
    assert steps == ["done"]


def test_a_plain_function_that_returns_an_awaitable_is_awaited(executed: Execute) -> None:
    steps: list[str] = []

    async def inner() -> None:
        steps.append("done")

    def job() -> Awaitable[None]:
        return inner()

    assert executed(job) == Returned(noticed_cancel=False)
    assert steps == ["done"]


def test_async_runs_share_one_event_loop(executed: Execute) -> None:
    loops: list[object] = []

    async def job() -> None:
        loops.append(asyncio.get_running_loop())

    executed(job)
    executed(job)
    assert loops[0] is loops[1]


# --- a job that raises


class Odd(Exception):
    pass


class Deliberate(BaseException):
    pass


KINDS = [
    (ValueError("no"), "ValueError", "no"),
    (KeyError("k"), "KeyError", "'k'"),
    (Odd("odd"), f"{__name__}.Odd", "odd"),
    (Deliberate("base"), f"{__name__}.Deliberate", "base"),
    (ExceptionGroup("many", [ValueError("one")]), "ExceptionGroup", "many (1 sub-exception)"),
    (RunCancelled("left"), "durablestack.errors.RunCancelled", "left"),
    (asyncio.CancelledError(), "asyncio.exceptions.CancelledError", ""),
    (RecursionError("deep"), "RecursionError", "deep"),
    (SystemExit(3), "SystemExit", "3"),
    (KeyboardInterrupt(), "KeyboardInterrupt", ""),
    (GeneratorExit(), "GeneratorExit", ""),
    (MemoryError(), "MemoryError", ""),
]
SPENT = (SystemExit, KeyboardInterrupt, GeneratorExit, MemoryError)


@pytest.mark.parametrize(("error", "error_type", "message"), KINDS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_whatever_is_raised_is_told(
    executed: Execute, error: BaseException, error_type: str, message: str, is_async: bool
) -> None:
    def raises() -> None:
        raise error

    async def raises_async() -> None:
        raise error

    result = executed(raises_async if is_async else raises)
    assert isinstance(result, Raised)
    assert (result.error_type, result.error_message) == (error_type, message)
    assert result.retryable
    assert result.retry_after_seconds is None
    assert result.process_is_spent == isinstance(error, SPENT)


def test_the_traceback_begins_in_the_job_and_ends_with_the_error(executed: Execute) -> None:
    def deeper() -> None:
        raise ValueError("no")

    async def job() -> None:
        try:
            deeper()
        except ValueError as error:
            raise Odd("odd") from error

    result = executed(job)
    assert isinstance(result, Raised)
    assert "in deeper" in result.error_detail
    assert "in job" in result.error_detail
    assert "direct cause" in result.error_detail
    assert result.error_detail.endswith(f"{__name__}.Odd: odd\n")
    assert "durablestack/jobs" not in result.error_detail
    assert "asyncio" not in result.error_detail


def test_a_constructor_that_raises_is_the_job_that_raises(executed: Execute) -> None:
    class Job:
        def __init__(self) -> None:
            raise ValueError("no")

        def execute(self) -> None: ...

    result = executed(Job)
    assert isinstance(result, Raised)
    assert result.error_type == "ValueError"


def test_endless_recursion_is_an_error_as_any_other(executed: Execute) -> None:
    def job() -> None:
        job()

    result = executed(job)
    assert isinstance(result, Raised)
    assert result.error_type == "RecursionError"
    assert len(result.error_detail) <= ERROR_DETAIL_LENGTH_MAX


class StrRaises(Exception):
    def __str__(self) -> str:
        raise ValueError("not printable")


class StrLeaves(Exception):
    def __str__(self) -> str:
        raise SystemExit(1)


class StrIsNone(Exception):
    def __str__(self) -> str:
        return None  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("error", "raised"), [(StrRaises(), "ValueError"), (StrLeaves(), "SystemExit"), (StrIsNone(), "TypeError")]
)
def test_an_error_that_cannot_be_printed_is_told_all_the_same(executed: Execute, error: Exception, raised: str) -> None:
    result = raised_by(executed, error)
    assert result.error_type == f"{__name__}.{type(error).__name__}"
    assert result.error_message == f"<str() of the error raised {raised}>"
    assert result.error_detail


def test_what_is_told_is_bounded_and_fit_for_a_database(executed: Execute) -> None:
    named = type("E" * 1_000, (Exception,), {})
    result = raised_by(executed, named("nul \0 lone \ud800 " + "long" * 100_000))
    assert len(result.error_type) == ERROR_TYPE_LENGTH_MAX
    assert len(result.error_message) == ERROR_MESSAGE_LENGTH_MAX
    assert len(result.error_detail) == ERROR_DETAIL_LENGTH_MAX
    for text in (result.error_type, result.error_message, result.error_detail):
        assert "\0" not in text
        text.encode()


# --- what is to become of the run


def test_arguments_that_do_not_fit_are_not_tried_again(executed: Execute) -> None:
    def job(args: int) -> None: ...

    result = executed(job, '"five"')
    assert isinstance(result, Raised)
    assert result.error_type == "durablestack.errors.PayloadError"
    assert not result.retryable


@pytest.mark.parametrize("error", [NoRetry("enough"), PayloadError("of its own")])
def test_a_job_may_refuse_to_be_tried_again(executed: Execute, error: Exception) -> None:
    assert not raised_by(executed, error).retryable


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (None, None),
        (0, 0.0),
        (0.25, 0.25),
        (60, 60.0),
        (-5, 0.0),
        (float("nan"), None),
        (float("inf"), 10 * 366 * 86_400.0),
        (float("-inf"), 0.0),
        (10**400, 10 * 366 * 86_400.0),
        ("soon", None),
    ],
)
def test_the_delay_that_a_job_asks_for_reaches_the_supervisor_as_one_that_can_be_counted_with(
    executed: Execute, asked: Any, told: float | None
) -> None:
    result = raised_by(executed, Retry(delay_seconds=asked))
    assert result.retryable
    assert result.retry_after_seconds == told


# --- cancel


def test_a_job_that_returns_without_having_noticed_has_done_its_work(executed: Execute, flag: CancelFlag) -> None:
    assert executed(lambda: flag.set()) == Returned(noticed_cancel=False)


def test_a_job_that_noticed_and_returned_has_given_up(executed: Execute, flag: CancelFlag) -> None:
    def job(context: JobContext) -> None:
        flag.set()
        assert context.cancelled

    assert executed(job) == Returned(noticed_cancel=True)


def test_an_async_job_is_cancelled_as_asyncio_tasks_are(executed: Execute, flag: CancelFlag) -> None:
    steps: list[str] = []

    async def job() -> None:
        threading.Thread(target=flag.set).start()
        try:
            await asyncio.sleep(60)
        finally:
            steps.append("cleaned up")

    result = executed(job)
    assert isinstance(result, Raised)
    assert result.error_type == "asyncio.exceptions.CancelledError"
    assert flag.noticed
    assert steps == ["cleaned up"]


def test_an_async_job_may_be_cancelled_before_it_begins(executed: Execute, flag: CancelFlag) -> None:
    async def job() -> None:
        await asyncio.sleep(60)

    flag.set()
    assert isinstance(executed(job), Raised)
    assert flag.noticed


def test_an_async_job_that_swallows_its_cancellation_has_noticed(executed: Execute, flag: CancelFlag) -> None:
    async def job() -> None:
        flag.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return

    assert executed(job) == Returned(noticed_cancel=True)


def test_an_async_job_that_returned_before_the_cancellation_came_has_done_its_work(
    executed: Execute, flag: CancelFlag
) -> None:
    async def job() -> None:
        flag.set()  # as if the listener had set it during the last step

    assert executed(job) == Returned(noticed_cancel=False)
    assert not flag.noticed


def test_a_flag_set_after_the_job_has_ended_reaches_nobody(executed: Execute, flag: CancelFlag) -> None:
    async def job() -> None: ...

    executed(job)
    flag.set()
    assert not flag.noticed


# --- what a job leaves running


def test_tasks_that_an_async_job_leaves_are_ended_before_the_next_run(executed: Execute) -> None:
    ended: list[str] = []

    async def lingers() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("ended")

    kept: list[object] = []

    async def job() -> None:
        kept.append(asyncio.create_task(lingers()))
        await asyncio.sleep(0)

    assert executed(job) == Returned(noticed_cancel=False)
    assert ended == ["ended"]


def test_a_task_that_was_there_before_all_attempts_goes_on(executed: Execute, runner: asyncio.Runner) -> None:
    ended: list[str] = []

    async def goes_on(name: str) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(name)

    kept: list[asyncio.Task[None]] = []

    async def start_hook() -> None:
        kept.append(asyncio.create_task(goes_on("of the hook")))
        await asyncio.sleep(0)

    async def job() -> None:
        kept.append(asyncio.create_task(goes_on("of the job")))
        await asyncio.sleep(0)

    def returns_an_awaitable() -> Awaitable[None]:
        return job()

    runner.run(start_hook())
    for each in (job, returns_an_awaitable, job):
        ended.clear()
        assert executed(each) == Returned(noticed_cancel=False)
        assert ended == ["of the job"]
    assert not kept[0].done()


def test_no_other_run_follows_where_a_job_has_stopped_the_event_loop(executed: Execute) -> None:
    async def stops() -> None:
        asyncio.get_running_loop().stop()

    async def stops_too_early() -> None:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0)

    assert executed(stops) == Returned(noticed_cancel=False, process_is_spent=True)
    result = executed(stops_too_early)
    assert isinstance(result, Raised)
    assert "stopped" in result.error_message
    assert result.process_is_spent


def test_what_an_async_job_has_called_soon_is_called_before_the_next_run(executed: Execute) -> None:
    called: list[str] = []

    async def job() -> None:
        asyncio.get_running_loop().call_soon(called.append, "soon")

    assert executed(job) == Returned(noticed_cancel=False)
    assert called == ["soon"]


@pytest.mark.parametrize("how", ["returns", "raises"])
def test_a_task_that_will_not_end_spends_the_process(
    executed: Execute, runner: asyncio.Runner, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durablestack.jobs.execution._TASKS_END_WITHIN_SECONDS", 0.02)
    kept: list[asyncio.Task[None]] = []
    may_end = asyncio.Event()

    async def stubborn() -> None:
        while not may_end.is_set():
            try:
                await may_end.wait()
            except asyncio.CancelledError:
                continue

    async def job() -> None:
        kept.append(asyncio.create_task(stubborn()))
        await asyncio.sleep(0)
        if how == "raises":
            raise ValueError("no")

    result = executed(job)
    assert result.process_is_spent
    if isinstance(result, Raised):
        assert result.error_type == "ValueError"
        assert "in job" in result.error_detail

    async def end() -> None:
        may_end.set()
        await asyncio.wait(kept)

    runner.run(end())
