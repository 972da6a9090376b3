"""Executes one attempt of a run, here and now, and tells how it went. Never raises."""

from __future__ import annotations

import asyncio
import inspect
import traceback
from collections.abc import Awaitable
from types import TracebackType
from typing import Any

from msgspec import Struct

from durablestack.errors import NoRetry, PayloadError, Retry
from durablestack.text import ERROR_DETAIL_LENGTH_MAX, ERROR_MESSAGE_LENGTH_MAX, ERROR_TYPE_LENGTH_MAX, clean

from .context import CancelFlag, JobContext
from .registration import JobRegistration

_FRAMES_MAX = 50
_RETRY_AFTER_SECONDS_MAX = 10 * 366 * 86_400.0
_TASKS_END_WITHIN_SECONDS = 1.0
# After these a process is not what it was: what raised them meant to end it, or memory ran out.
_ENDS_THE_PROCESS = (SystemExit, KeyboardInterrupt, GeneratorExit, MemoryError)


class Returned(Struct, frozen=True, kw_only=True):
    """The job returned. `noticed_cancel`: it knew that it should end, so it may have left its work undone."""

    noticed_cancel: bool
    process_is_spent: bool = False


class Raised(Struct, frozen=True, kw_only=True):
    """The job raised. `process_is_spent`: no further run should be given to this process."""

    error_type: str
    error_message: str
    error_detail: str
    retryable: bool
    retry_after_seconds: float | None
    process_is_spent: bool


def execute(
    registration: JobRegistration,
    payload: str | None,
    context: JobContext,
    cancel_flag: CancelFlag,
    runner: asyncio.Runner,
) -> Returned | Raised:
    """Execute the job in this thread; an `async` job on the runner's event loop, where no task is left behind."""
    raised: BaseException | None = None
    tasks_remain = False
    try:
        result = registration.invoke(registration.codec.decode(payload), context)
        if inspect.isawaitable(result):
            raised, tasks_remain = runner.run(_await_cancellable(result, cancel_flag))
    except BaseException as error:  # SystemExit and its like end the attempt, not the story
        raised = error
    if raised is not None:
        return _told(raised, tasks_remain=tasks_remain)
    return Returned(noticed_cancel=cancel_flag.noticed, process_is_spent=tasks_remain)


async def _await_cancellable(result: Awaitable[Any], cancel_flag: CancelFlag) -> tuple[BaseException | None, bool]:
    """Await the job; return what it raised, if anything, and whether tasks of it remain that would not end."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(result)
    raised: BaseException | None = None

    def leave() -> None:
        if task.cancel():  # a job that has returned meanwhile has noticed nothing
            cancel_flag.noticed = True

    def interrupt() -> None:
        loop.call_soon_threadsafe(leave)

    cancel_flag.interrupt_with(interrupt)
    try:
        await task
    except BaseException as error:  # told once the other tasks have ended
        raised = error
    finally:
        cancel_flag.interrupt_with(None)
    return raised, await _end_other_tasks()


async def _end_other_tasks() -> bool:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if not others:
        return False
    for task in others:
        task.cancel()
    _, remaining = await asyncio.wait(others, timeout=_TASKS_END_WITHIN_SECONDS)
    return bool(remaining)


def _told(error: BaseException, *, tasks_remain: bool) -> Raised:
    return Raised(
        error_type=clean(_type_name(error), ERROR_TYPE_LENGTH_MAX),
        error_message=clean(_message(error), ERROR_MESSAGE_LENGTH_MAX),
        error_detail=clean(_detail(error), ERROR_DETAIL_LENGTH_MAX),
        retryable=not isinstance(error, NoRetry | PayloadError),
        retry_after_seconds=_asked_delay_seconds(error),
        process_is_spent=tasks_remain or isinstance(error, _ENDS_THE_PROCESS),
    )


def _asked_delay_seconds(error: BaseException) -> float | None:
    """What a job asks for may be anything; the supervisor is told a delay that it can count with, or none."""
    asked = error.delay_seconds if isinstance(error, Retry) else None
    if not isinstance(asked, int | float) or asked != asked:
        return None
    return float(min(max(asked, 0), _RETRY_AFTER_SECONDS_MAX))


def _type_name(error: BaseException) -> str:
    kind = type(error)
    if kind.__module__ in ("builtins", "__main__", "__mp_main__"):
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as failure:  # __str__ is the job's code too
        return f"<str() of the error raised {type(failure).__name__}>"


def _is_ours(frames: TracebackType) -> bool:
    """Whether the frame is of the way to the job, which is of no interest to whoever wrote the job."""
    return str(frames.tb_frame.f_globals.get("__name__", "")).startswith(("durablestack.jobs.", "asyncio."))


def _detail(error: BaseException) -> str:
    try:
        frames = error.__traceback__
        while frames is not None and _is_ours(frames):
            frames = frames.tb_next
        return "".join(traceback.TracebackException(type(error), error, frames, limit=-_FRAMES_MAX).format())
    except BaseException as failure:
        return f"<the traceback could not be formatted: {type(failure).__name__}>"
