"""What a job is: a class with `execute`, or a function, and how its runs are tried."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar, overload

from msgspec import Struct
from msgspec.structs import replace

from durablestack.errors import JobDefinitionError, PayloadError, UnknownJob
from durablestack.scheduling.recurring import Recurrence
from durablestack.scheduling.retry import RetryBehavior

from .context import JobContext
from .payloads import PayloadCodec
from .recurring import can_be_job, checked, recurrence_of
from .services import Parameter, check_parameters, parameters_of, shown

Job = TypeVar("Job", bound=Callable[..., Any])

JOB_NAME_LENGTH_MAX = 200
RECURRING_PAYLOAD_BYTES_MAX = 65_536
DELAY_SECONDS_MAX = 10 * 366 * 86_400
_MARK = "__durable_job__"


class JobDeclaration(Struct, frozen=True, kw_only=True):
    """What `@durable_job` was told. It stays on the job until a registry takes it in."""

    name: str
    max_attempts: int = 3
    retry_behavior: RetryBehavior = RetryBehavior.FIXED_DELAY
    retry_initial_delay_seconds: float = 0
    timeout_seconds: float | None = None
    recurrence: Recurrence | None = None


class JobRegistration(Struct, frozen=True, kw_only=True):
    """A job as the runtime knows it: declared, checked, and ready to be executed."""

    name: str
    job: Callable[..., Any]
    codec: PayloadCodec
    takes_args: bool
    takes_context: bool
    max_attempts: int
    retry_behavior: RetryBehavior
    retry_initial_delay: timedelta
    timeout_seconds: float | None
    is_async: bool = False
    constructor: tuple[Parameter, ...] = ()
    """What a job class asks for when an instance is made."""
    recurrence: Recurrence | None = None
    recurring_payload: str | None = None
    """The arguments of its runs, where it recurs."""

    def invoke(self, job: Any, args: Any, context: JobContext) -> Any:
        """Call the job, an instance where it is a class. What an `async def` returns is still to be awaited."""
        execute = job.execute if isinstance(self.job, type) else job
        arguments = ([args] if self.takes_args else []) + ([context] if self.takes_context else [])
        return execute(*arguments)


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
            None means the option `timeout_seconds`.

    Raises:
        JobDefinitionError: at once, if the class or one of these values cannot be a job.
    """

    def declare(job: Job) -> Job:
        declaration = JobDeclaration(
            name=getattr(job, "__name__", "") if name is None else name,
            max_attempts=max_attempts,
            retry_behavior=_retry_behavior(retry_behavior),
            retry_initial_delay_seconds=retry_initial_delay_seconds,
            timeout_seconds=timeout_seconds,
        )
        _check(declaration)
        _execute_of(job)
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


class JobRegistry:
    """The jobs of one application, by name."""

    def __init__(self, jobs: Iterable[Callable[..., Any]] = ()) -> None:
        self._registrations: dict[str, JobRegistration] = {}
        for job in jobs:
            self.add(job)

    def add(self, job: Callable[..., Any], **changes: Any) -> JobRegistration:
        """Register a job, decorated or not; keywords of `durable_job` change what was declared.

        With `cron` or `every` it recurs, as with `recurring_job`, whose other keywords may stand beside them.

        Raises:
            JobDefinitionError: it cannot be a job, or its name or type is registered already.
        """
        declaration = declaration_of(job) or JobDeclaration(name=getattr(job, "__name__", ""))
        if "cron" in changes or "every" in changes:
            told = {name: changes.pop(name) for name in Recurrence.__struct_fields__ if name in changes}
            changes["recurrence"] = checked(f"job {declaration.name!r}", Recurrence(**told))
        if "retry_behavior" in changes:
            changes["retry_behavior"] = _retry_behavior(changes["retry_behavior"])
        try:
            declaration = replace(declaration, **changes)
        except TypeError as error:
            raise JobDefinitionError(f"job {declaration.name!r}: {error}") from None
        _check(declaration)
        return self.take(_register(declaration, job))

    def take(self, registration: JobRegistration) -> JobRegistration:
        """Take in a registration as it is. Raises JobDefinitionError if its name or job is registered already."""
        self._refuse_duplicates(registration.name, registration.job)
        self._registrations[registration.name] = registration
        return registration

    def _refuse_duplicates(self, name: str, job: Callable[..., Any]) -> None:
        for known in self:
            if known.name == name:
                raise JobDefinitionError(
                    f"two jobs are named {name!r}: {shown(known.job)} and {shown(job)}; a name must be unique"
                )
            if known.job is job:
                raise JobDefinitionError(f"{shown(job)} is registered already, as {known.name!r}; once is enough")

    def find(self, job: str | Callable[..., Any]) -> JobRegistration:
        """The registration of a name, a job class or a job function.

        Raises:
            UnknownJob: there is none.
        """
        if isinstance(job, str):
            registration = self._registrations.get(job)
        else:
            registration = next((known for known in self if known.job is job), None)
        if registration is None:
            named = repr(job) if isinstance(job, str) else shown(job)
            known_names = ", ".join(sorted(self._registrations)) or "none"
            raise UnknownJob(f"no job {named} is registered; registered are: {known_names}")
        return registration

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._registrations))

    def __iter__(self) -> Iterator[JobRegistration]:
        return iter(self._registrations.values())

    def __len__(self) -> int:
        return len(self._registrations)

    def __contains__(self, job: object) -> bool:
        return any(known.name == job or known.job is job for known in self)


def _register(declaration: JobDeclaration, job: Callable[..., Any]) -> JobRegistration:
    execute = _execute_of(job)
    is_method = inspect.isclass(job) and not isinstance(
        inspect.getattr_static(job, "execute"), staticmethod | classmethod
    )
    args_parameter, takes_context = _parameters(declaration.name, execute, is_method=is_method)
    args_type = _annotated_type(declaration.name, execute, args_parameter) if args_parameter else None
    codec = PayloadCodec(declaration.name, args_type, takes_args=args_parameter is not None)
    return JobRegistration(
        name=declaration.name,
        job=job,
        codec=codec,
        takes_args=args_parameter is not None,
        takes_context=takes_context,
        max_attempts=declaration.max_attempts,
        retry_behavior=declaration.retry_behavior,
        retry_initial_delay=timedelta(seconds=declaration.retry_initial_delay_seconds),
        timeout_seconds=declaration.timeout_seconds,
        is_async=inspect.iscoroutinefunction(execute),
        constructor=parameters_of(job, f"job {declaration.name!r}") if inspect.isclass(job) else (),
        recurrence=declaration.recurrence,
        recurring_payload=_recurring_payload(declaration, codec),
    )


def _recurring_payload(declaration: JobDeclaration, codec: PayloadCodec) -> str | None:
    """Nobody is there to hand arguments to a slot: they are declared, and checked now."""
    if declaration.recurrence is None:
        return None
    try:
        return codec.encode(declaration.recurrence.args, RECURRING_PAYLOAD_BYTES_MAX)
    except PayloadError as error:
        raise JobDefinitionError(f"args= of the recurring job {declaration.name!r}: {error}") from None


def _execute_of(job: Any) -> Callable[..., Any]:
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


def _parameters(name: str, execute: Callable[..., Any], *, is_method: bool) -> tuple[inspect.Parameter | None, bool]:
    """The parameter that takes the arguments, if any, and whether the context is wanted."""
    parameters = list(inspect.signature(execute).parameters.values())[1 if is_method else 0 :]
    wanted = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required_keywords = [p for p in parameters if p.default is p.empty and p.kind is p.KEYWORD_ONLY]
    takes_context = bool(wanted) and _is_context(wanted[-1])
    args = wanted[:-1] if takes_context else wanted
    if len(args) > 1 or required_keywords or any(_is_context(p) for p in args):
        raise JobDefinitionError(
            f"job {name!r}: execute takes ({', '.join(p.name for p in parameters)}); "
            "it may take (args, context), (context), (args) or nothing, in this order"
        )
    return (args[0] if args else None), takes_context


def _is_context(parameter: inspect.Parameter) -> bool:
    annotation = parameter.annotation
    if annotation is JobContext:
        return True
    if isinstance(annotation, str) and annotation.strip("'\"").rpartition(".")[2] == "JobContext":
        return True
    return annotation is parameter.empty and parameter.name == "context"


def _annotated_type(name: str, execute: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    annotation = parameter.annotation
    if annotation is parameter.empty:
        return Any
    if not isinstance(annotation, str):
        return annotation
    try:
        # a postponed annotation is evaluated as typing.get_type_hints does it, but alone: the annotation
        # of the context may exist for the type checker only
        return eval(annotation, getattr(inspect.unwrap(execute), "__globals__", {}))
    except Exception as error:
        raise JobDefinitionError(
            f"job {name!r}: the annotation {annotation!r} of {parameter.name!r} cannot be resolved: {error}"
        ) from None


def _retry_behavior(value: RetryBehavior | str) -> RetryBehavior:
    try:
        return RetryBehavior(value)
    except ValueError:
        allowed = ", ".join(RetryBehavior)
        raise JobDefinitionError(f"retry_behavior {value!r} is unknown; allowed are: {allowed}") from None


def _check(declaration: JobDeclaration) -> None:
    name, max_attempts = declaration.name, declaration.max_attempts
    if not isinstance(name, str) or not 0 < len(name) <= JOB_NAME_LENGTH_MAX or not name.isprintable():
        raise JobDefinitionError(
            f"job name {name!r} must be 1 to {JOB_NAME_LENGTH_MAX} printable characters; pass name="
        )
    if isinstance(max_attempts, bool) or not isinstance(max_attempts, int) or not 1 <= max_attempts < 2**31:
        raise JobDefinitionError(
            f"job {name!r}: max_attempts is {max_attempts!r}; it must be 1 or more, the first attempt included"
        )
    _check_seconds(name, "retry_initial_delay_seconds", declaration.retry_initial_delay_seconds, zero_allowed=True)
    if declaration.timeout_seconds is not None:
        _check_seconds(name, "timeout_seconds", declaration.timeout_seconds, zero_allowed=False)


def _check_seconds(name: str, option: str, value: Any, *, zero_allowed: bool) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= DELAY_SECONDS_MAX or (value == 0 and not zero_allowed):  # nor is NaN
        allowed = "0 or more" if zero_allowed else "more than 0"
        raise JobDefinitionError(f"job {name!r}: {option} is {value!r}; it must be {allowed} seconds, at most 10 years")
