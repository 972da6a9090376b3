"""Executes one attempt of a run, here and now, and tells how it went. Never raises."""

from __future__ import annotations

import asyncio
import inspect
import traceback
from collections.abc import Awaitable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

from msgspec import Struct

from durablestack.errors import NoRetry, PayloadError, Retry
from durablestack.text import ERROR_DETAIL_LENGTH_MAX, ERROR_MESSAGE_LENGTH_MAX, ERROR_TYPE_LENGTH_MAX, clean

from .context import CancelFlag, JobContext
from .declaration import DELAY_SECONDS_MAX
from .registration import JobRegistration
from .scope import NO_SERVICES, ServiceScope

_FRAMES_MAX = 50
_TASKS_END_WITHIN_SECONDS = 1.0
_OUR_WAY = ("durablestack.jobs.", "asyncio.", "dishka.", "contextlib")
# After these a process is not what it was: what raised them meant to end it, or memory ran out.
_ENDS_THE_PROCESS = (SystemExit, KeyboardInterrupt, GeneratorExit, MemoryError)

_before_attempts: WeakKeyDictionary[asyncio.AbstractEventLoop, set[asyncio.Task[Any]]] = WeakKeyDictionary()


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
        args = registration.codec.decode(payload)
        # each attempt has context variables of its own
        if registration.is_async:
            attempt = _execute_async(registration, args, context, cancel_flag)
            raised, tasks_remain = _run(runner, attempt)
        else:
            raised, tasks_remain = copy_context().run(_execute_sync, registration, args, context, cancel_flag, runner)
    except BaseException as error:  # SystemExit and its like end the attempt, not the story
        raised = error
    if raised is not None:
        try:
            return _told(raised, tasks_remain=tasks_remain)
        except BaseException as failure:  # what an error says of its name, its cause or its delay is the job's code too
            return _untellable(failure)
    return Returned(noticed_cancel=cancel_flag.noticed, process_is_spent=tasks_remain)


_Ended = tuple[BaseException | None, bool]
"""What the attempt raised, if anything, and whether tasks of it remain that would not end."""


def _run(runner: asyncio.Runner, attempt: Coroutine[Any, Any, _Ended]) -> _Ended:
    """As `Runner.run`, in fewer steps. A child ignores SIGINT, so nothing is to be done about that."""
    loop = runner.get_loop()
    task = loop.create_task(attempt, context=copy_context())
    ended = False

    def stop(_: asyncio.Task[_Ended]) -> None:
        nonlocal ended
        ended = True
        loop.stop()

    task.add_done_callback(stop)
    loop.run_forever()
    if not ended:  # the job has stopped the loop, in which something of it remains
        return (task.result()[0] if task.done() else RuntimeError("the job has stopped the event loop")), True
    return task.result()


def _execute_sync(
    registration: JobRegistration, args: Any, context: JobContext, cancel_flag: CancelFlag, runner: asyncio.Runner
) -> _Ended:
    services, job = context.services, registration.job
    raised: BaseException | None = None
    tasks_remain = False
    try:
        if isinstance(job, type):
            job = services.construct(job)
        result = registration.invoke(job, args, context)
        if result is not None and inspect.isawaitable(result):
            raised, tasks_remain = _run(runner, _await(result, cancel_flag, services))
    except BaseException as error:
        raised = error
    if services is not NO_SERVICES:
        try:
            services.close(raised)
        except BaseException as error:
            raised = _with_closing_error(raised, error)
    return raised, tasks_remain


async def _execute_async(
    registration: JobRegistration, args: Any, context: JobContext, cancel_flag: CancelFlag
) -> _Ended:
    """All in one task: what opens a service may have to close it in the same one. Closing is not cut short."""
    services, job = context.services, registration.job
    before = _tasks_before(services)
    raised: BaseException | None = None
    with _Cancellable(cancel_flag):
        try:
            if isinstance(job, type):
                job = await services.aconstruct(job)
            await registration.invoke(job, args, context)
        except BaseException as error:  # told once the other tasks have ended
            raised = error
    if services is not NO_SERVICES:
        try:
            await services.aclose(raised)
        except BaseException as error:
            raised = _with_closing_error(raised, error)
    return raised, await _end_tasks(before, services)


async def _await(result: Awaitable[Any], cancel_flag: CancelFlag, services: ServiceScope) -> _Ended:
    before = _tasks_before(services)
    raised: BaseException | None = None
    with _Cancellable(cancel_flag):
        try:
            await result
        except BaseException as error:
            raised = error
    return raised, await _end_tasks(before, services)


class _Cancellable:
    """While this lasts, the flag cancels the current task."""

    def __init__(self, cancel_flag: CancelFlag) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._loop, self._cancel_flag, self._ended = task, task.get_loop(), cancel_flag, False

    def __enter__(self) -> None:
        self._cancel_flag.interrupt_with(self._interrupt)

    def __exit__(self, *raised: object) -> None:
        self._ended = True
        self._cancel_flag.interrupt_with(None)
        while self._task.cancelling():  # it has been told; what is awaited from here on is not cancelled
            self._task.uncancel()

    def _interrupt(self) -> None:
        self._loop.call_soon_threadsafe(self._leave)

    def _leave(self) -> None:
        if not self._ended and self._task.cancel():  # a job that has returned meanwhile has noticed nothing
            self._cancel_flag.noticed = True


def _tasks_before(services: ServiceScope) -> set[asyncio.Task[Any]]:
    """Those that are no attempt's. Without services they are what they were at the first attempt: nothing but attempts
    runs on the loop since, and to look takes as long as a short attempt."""
    if services is not NO_SERVICES:
        return asyncio.all_tasks()
    loop = asyncio.get_running_loop()
    if (before := _before_attempts.get(loop)) is None:
        before = _before_attempts[loop] = asyncio.all_tasks() - {asyncio.current_task()}
    return before


async def _end_tasks(before: set[asyncio.Task[Any]], services: ServiceScope) -> bool:
    """End what the attempt has left; return whether something of it would not end."""
    tasks = asyncio.all_tasks()
    if len(tasks) == 1:  # that in which we are
        return False
    tasks.difference_update(before, services.lasting_tasks, [asyncio.current_task()])
    if not tasks:
        return False
    for task in tasks:
        task.cancel()
    _, remaining = await asyncio.wait(tasks, timeout=_TASKS_END_WITHIN_SECONDS)
    return bool(remaining)


def _with_closing_error(raised: BaseException | None, closing: BaseException) -> BaseException:
    """What was not brought to its end is no success; but the error of the job itself is the one to be told."""
    if raised is None:
        return closing
    with suppress(Exception):  # an error may be of a kind that takes no note
        raised.add_note(f"Then its services were closed, which raised {_type_name(closing)}: {_message(closing)}")
    return raised


def _told(error: BaseException, *, tasks_remain: bool) -> Raised:
    return Raised(
        error_type=clean(_type_name(error), ERROR_TYPE_LENGTH_MAX),
        error_message=clean(_message(error), ERROR_MESSAGE_LENGTH_MAX),
        error_detail=clean(_detail(error), ERROR_DETAIL_LENGTH_MAX),
        retryable=not isinstance(error, NoRetry | PayloadError),
        retry_after_seconds=_asked_delay_seconds(error),
        process_is_spent=tasks_remain or _ends_the_process(error),
    )


def _untellable(failure: BaseException) -> Raised:
    return Raised(
        error_type="UntellableError",
        error_message=f"the job raised an error that cannot be asked what it is: that raised {type(failure).__name__}",
        error_detail="",
        retryable=True,
        retry_after_seconds=None,
        process_is_spent=True,
    )


def _ends_the_process(error: BaseException | None) -> bool:
    """Also if the job has caught such an error, and raised another one for it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, _ENDS_THE_PROCESS):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def _asked_delay_seconds(error: BaseException) -> float | None:
    """What a job asks for may be anything; the supervisor is told a delay that it can count with, or none."""
    asked = error.delay_seconds if isinstance(error, Retry) else None
    if not isinstance(asked, int | float) or asked != asked:
        return None
    return float(min(max(asked, 0), DELAY_SECONDS_MAX))


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
    return str(frames.tb_frame.f_globals.get("__name__", "")).startswith(_OUR_WAY)


def _detail(error: BaseException) -> str:
    try:
        frames = error.__traceback__
        while frames is not None and _is_ours(frames):
            frames = frames.tb_next
        return "".join(traceback.TracebackException(type(error), error, frames, limit=-_FRAMES_MAX).format())
    except BaseException as failure:
        return f"<the traceback could not be formatted: {type(failure).__name__}>"
