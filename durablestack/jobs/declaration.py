"""What a job is told to be: a class with `execute`, or a function, and how its runs are tried and limited."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, overload

from msgspec import Struct
from msgspec.structs import replace

from durablestack.errors import JobDefinitionError
from durablestack.options import SIZE_ALLOWED, size_in_bytes
from durablestack.scheduling.recurring import Recurrence
from durablestack.scheduling.retry import RetryBehavior

from .recurring import can_be_job, recurrence_of
from .services import check_parameters, shown

Job = TypeVar("Job", bound=Callable[..., Any])

JOB_NAME_LENGTH_MAX = 200
DELAY_SECONDS_MAX = 10 * 366 * 86_400
_MARK = "__durable_job__"


class JobDeclaration(Struct, frozen=True, kw_only=True):
    """What `@durable_job` was told. It stays on the job until a registry takes it in."""

    name: str
    max_attempts: int = 3
    retry_behavior: RetryBehavior = RetryBehavior.FIXED_DELAY
    retry_initial_delay_seconds: float = 0
    timeout_seconds: float | None = None
    cpu_seconds: float | None = None
    memory_limit: int | str | None = None
    address_space_limit: int | str | None = None
    crash_limit: int | None = None
    fresh_process_per_run: bool | None = None
    recurrence: Recurrence | None = None


@overload
def durable_job(job: Job, /) -> Job: ...
@overload
def durable_job(
    *,
    name: str | None = None,
    max_attempts: int = 3,
    retry_behavior: RetryBehavior | str = RetryBehavior.FIXED_DELAY,
    retry_initial_delay_seconds: float = 0,
    timeout_seconds: float | None = None,
    cpu_seconds: float | None = None,
    memory_limit: int | str | None = None,
    address_space_limit: int | str | None = None,
    crash_limit: int | None = None,
    fresh_process_per_run: bool | None = None,
) -> Callable[[Job], Job]: ...
def durable_job(
    job: Any = None,
    /,
    *,
    name: str | None = None,
    max_attempts: int = 3,
    retry_behavior: RetryBehavior | str = RetryBehavior.FIXED_DELAY,
    retry_initial_delay_seconds: float = 0,
    timeout_seconds: float | None = None,
    cpu_seconds: float | None = None,
    memory_limit: int | str | None = None,
    address_space_limit: int | str | None = None,
    crash_limit: int | None = None,
    fresh_process_per_run: bool | None = None,
) -> Any:
    """Declare a class with an `execute` method, or a function, as a durable job. It is returned as it was.

    `execute` takes `(self, args, context)`, `(self, context)`, `(self, args)` or `(self)`, and may be `async def`;
    a function the same without `self`. The annotation of `args` is the type that its payload is checked against.

    Args:
        name: stable name of the job in the database. Default: the name of the class or function.
        max_attempts: attempts in total, the first one included.
        retry_behavior: "fixed_delay", or "backoff" (the delay doubles with each attempt).
        retry_initial_delay_seconds: delay before the first retry; 0 means the option `retry_delay`.
        timeout_seconds: an attempt that takes longer is ended, its process killed if need be.
            None means the option `timeout_seconds`; so it is with the following, and the options of their names.
        cpu_seconds: an attempt that uses more CPU time is ended, what its own processes use included.
        memory_limit: bytes, or a text such as "512 MiB"; an attempt whose processes hold more memory resident is
            killed. It is looked at several times a second.
        address_space_limit: the same kind of size; past it the child is refused memory, and the job sees a
            `MemoryError` (`RLIMIT_AS`).
        crash_limit: a run that has ended its process so often has failed, even if attempts remain.
        fresh_process_per_run: whether each run gets a child that no other has been in.

    Raises:
        JobDefinitionError: at once, if the class or one of these values cannot be a job.
    """

    def declare(job: Job) -> Job:
        declaration = JobDeclaration(
            name=getattr(job, "__name__", "") if name is None else name,
            max_attempts=max_attempts,
            retry_behavior=retry_behavior_named(retry_behavior),
            retry_initial_delay_seconds=retry_initial_delay_seconds,
            timeout_seconds=timeout_seconds,
            cpu_seconds=cpu_seconds,
            memory_limit=memory_limit,
            address_space_limit=address_space_limit,
            crash_limit=crash_limit,
            fresh_process_per_run=fresh_process_per_run,
        )
        check(declaration)
        execute_of(job)
        setattr(job, _MARK, declaration)
        return job

    return declare if job is None else declare(job)


def declaration_of(job: Any) -> JobDeclaration | None:
    """What decorators were told about exactly this class or function; a subclass does not inherit it."""
    if not can_be_job(job):
        return None
    declaration, recurrence = vars(job).get(_MARK), recurrence_of(job)
    if isinstance(declaration, JobDeclaration):
        return replace(declaration, recurrence=recurrence)
    return None if recurrence is None else JobDeclaration(name=getattr(job, "__name__", ""), recurrence=recurrence)


def execute_of(job: Any) -> Callable[..., Any]:
    if inspect.isclass(job):
        execute = getattr(job, "execute", None)
        if not callable(execute):
            raise JobDefinitionError(
                f"job class {shown(job)} has no method execute; give it one: "
                "execute(self, args, context) or execute(self, context)"
            )
        check_parameters(job, f"job class {shown(job)}")
        return _refuse_generator(job, execute)
    if inspect.isfunction(job):
        return _refuse_generator(job, job)
    raise JobDefinitionError(f"{job!r} cannot be a job: a job is a class with a method execute, or a function")


def _refuse_generator(job: Any, execute: Callable[..., Any]) -> Callable[..., Any]:
    """Calling a generator does nothing: its runs would succeed without having begun."""
    if inspect.isgeneratorfunction(execute) or inspect.isasyncgenfunction(execute):
        raise JobDefinitionError(f"job {shown(job)} holds a yield, so calling it would do nothing; take it out")
    return execute


def retry_behavior_named(value: RetryBehavior | str) -> RetryBehavior:
    try:
        return RetryBehavior(value)
    except ValueError:
        allowed = ", ".join(RetryBehavior)
        raise JobDefinitionError(f"retry_behavior {value!r} is unknown; allowed are: {allowed}") from None


def check(declaration: JobDeclaration) -> None:
    """Raises JobDefinitionError if one of its values cannot be meant."""
    name = declaration.name
    if not isinstance(name, str) or not 0 < len(name) <= JOB_NAME_LENGTH_MAX or not name.isprintable():
        raise JobDefinitionError(
            f"job name {name!r} must be 1 to {JOB_NAME_LENGTH_MAX} printable characters; pass name="
        )
    _check_count(name, "max_attempts", declaration.max_attempts, "the first attempt included")
    if declaration.crash_limit is not None:
        _check_count(name, "crash_limit", declaration.crash_limit, "the crash that ends the run included")
    _check_seconds(name, "retry_initial_delay_seconds", declaration.retry_initial_delay_seconds, zero_allowed=True)
    for option in ("timeout_seconds", "cpu_seconds"):
        if (seconds := getattr(declaration, option)) is not None:
            _check_seconds(name, option, seconds, zero_allowed=False)
    for option in ("memory_limit", "address_space_limit"):
        size_of(declaration, option)
    if declaration.fresh_process_per_run not in (None, True, False):
        raise JobDefinitionError(
            f"job {name!r}: fresh_process_per_run is {declaration.fresh_process_per_run!r}; it must be true or false"
        )


def _check_count(name: str, option: str, value: Any, included: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
        raise JobDefinitionError(f"job {name!r}: {option} is {value!r}; it must be 1 or more, {included}")


def size_of(declaration: JobDeclaration, option: str) -> int | None:
    value = getattr(declaration, option)
    try:
        return None if value is None else size_in_bytes(value)
    except ValueError:
        raise JobDefinitionError(
            f"job {declaration.name!r}: {option} is {value!r}; it must be {SIZE_ALLOWED}"
        ) from None


def _check_seconds(name: str, option: str, value: Any, *, zero_allowed: bool) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= DELAY_SECONDS_MAX or (value == 0 and not zero_allowed):  # nor is NaN
        allowed = "0 or more" if zero_allowed else "more than 0"
        raise JobDefinitionError(f"job {name!r}: {option} is {value!r}; it must be {allowed} seconds, at most 10 years")
