"""A job as the runtime knows it, and the registry of all jobs of an application."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from durablestack.errors import JobDefinitionError, PayloadError, UnknownJob
from durablestack.scheduling.recurring import Recurrence
from durablestack.scheduling.retry import RetryBehavior

from .context import JobContext
from .declaration import JobDeclaration, check, declaration_of, execute_of, retry_behavior_named, size_of
from .payloads import PayloadCodec
from .recurring import checked
from .services import Parameter, parameters_of, shown

RECURRING_PAYLOAD_BYTES_MAX = 65_536


class JobRegistration(Struct, frozen=True, kw_only=True):
    """A job as the runtime knows it: declared, checked, and ready to be executed.

    Sizes are in bytes. A limit that is None is the option's of the same name.
    """

    name: str
    job: Callable[..., Any]
    codec: PayloadCodec
    takes_args: bool
    takes_context: bool
    max_attempts: int
    retry_behavior: RetryBehavior
    retry_initial_delay: timedelta
    timeout_seconds: float | None
    cpu_seconds: float | None = None
    memory_limit: int | None = None
    address_space_limit: int | None = None
    crash_limit: int | None = None
    fresh_process_per_run: bool | None = None
    is_async: bool = False
    constructor: tuple[Parameter, ...] = ()
    """What a job class asks for when an instance is made."""
    recurrence: Recurrence | None = None
    recurring_payload: str | None = None
    """The arguments of its runs, where it recurs."""

    def invoke(self, job: Any, args: Any, context: JobContext) -> Any:
        """Call the job, an instance where it is a class. What an `async def` returns is still to be awaited."""
        execute = job.execute if isinstance(self.job, type) else job
        if self.takes_args:
            return execute(args, context) if self.takes_context else execute(args)
        return execute(context) if self.takes_context else execute()


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
            changes["retry_behavior"] = retry_behavior_named(changes["retry_behavior"])
        try:
            declaration = replace(declaration, **changes)
        except TypeError as error:
            raise JobDefinitionError(f"job {declaration.name!r}: {error}") from None
        check(declaration)
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
    execute = execute_of(job)
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
        cpu_seconds=declaration.cpu_seconds,
        memory_limit=size_of(declaration, "memory_limit"),
        address_space_limit=size_of(declaration, "address_space_limit"),
        crash_limit=declaration.crash_limit,
        fresh_process_per_run=declaration.fresh_process_per_run,
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


def _parameters(name: str, execute: Callable[..., Any], *, is_method: bool) -> tuple[inspect.Parameter | None, bool]:
    """The parameter that takes the arguments, if any, and whether the context is wanted."""
    parameters = list(inspect.signature(execute).parameters.values())[1 if is_method else 0 :]
    wanted = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required_keywords = [p for p in parameters if p.default is p.empty and p.kind is p.KEYWORD_ONLY]
    takes_context = bool(wanted) and _is_context(wanted[-1])
    args = wanted[:-1] if takes_context else wanted
    if len(args) > 1 or required_keywords or any(_is_context(p) for p in args):
        called = "execute" if is_method else getattr(execute, "__name__", "it")
        raise JobDefinitionError(
            f"job {name!r}: {called} takes ({', '.join(p.name for p in parameters)}); "
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
