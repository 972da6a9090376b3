"""What may be a job, and what is said to whoever declares one that cannot be."""

import asyncio
import importlib
import inspect
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from numbers import Number
from typing import Any, NamedTuple

import pytest

from durablestack.errors import JobDefinitionError, UnknownJob
from durablestack.jobs import JobContext, JobRegistration, JobRegistry, durable_job
from durablestack.scheduling.retry import RetryBehavior


@dataclass
class Email:
    to: str


ADA = Email("ada@example.com")


def registered(job: Any, **changes: Any) -> JobRegistration:
    return JobRegistry().add(job, **changes)


# --- the shapes of a job


def nothing() -> tuple[object, ...]:
    return ()


def only_args(args: Email) -> tuple[object, ...]:
    return (args,)


def only_context(context: JobContext) -> tuple[object, ...]:
    return (context,)


def args_and_context(args: Email, context: JobContext) -> tuple[object, ...]:
    return (args, context)


def context_by_another_name(args: Email, run: JobContext) -> tuple[object, ...]:
    return (args, run)


def positional_only(args: Email, context: JobContext, /) -> tuple[object, ...]:
    return (args, context)


def with_defaults(args: Email, context: JobContext, color: str = "red", *, size: int = 1) -> tuple[object, ...]:
    return (args, context)


async def async_nothing() -> tuple[object, ...]:
    return ()


async def async_args_and_context(args: Email, context: JobContext) -> tuple[object, ...]:
    return (args, context)


class Nothing:
    def execute(self) -> tuple[object, ...]:
        return ()


class OnlyArgs:
    def execute(self, args: Email) -> tuple[object, ...]:
        return (args,)


class OnlyContext:
    def execute(self, context: JobContext) -> tuple[object, ...]:
        return (context,)


class ArgsAndContext:
    def __init__(self, color: str = "red") -> None:
        self.color = color

    def execute(self, args: Email, context: JobContext) -> tuple[object, ...]:
        return (args, context)


class AsyncArgsAndContext:
    async def execute(self, args: Email, context: JobContext) -> tuple[object, ...]:
        return (args, context)


class StaticArgsAndContext:
    @staticmethod
    def execute(args: Email, context: JobContext) -> tuple[object, ...]:
        return (args, context)


class ClassArgsAndContext:
    @classmethod
    def execute(cls, args: Email, context: JobContext) -> tuple[object, ...]:
        return (args, context)


class Inherited(ArgsAndContext):
    pass


class Shape(NamedTuple):
    job: Callable[..., Any]
    takes_args: bool = False
    takes_context: bool = False


SHAPES = [
    Shape(nothing),
    Shape(only_args, takes_args=True),
    Shape(only_context, takes_context=True),
    Shape(args_and_context, takes_args=True, takes_context=True),
    Shape(context_by_another_name, takes_args=True, takes_context=True),
    Shape(positional_only, takes_args=True, takes_context=True),
    Shape(with_defaults, takes_args=True, takes_context=True),
    Shape(async_nothing),
    Shape(async_args_and_context, takes_args=True, takes_context=True),
    Shape(Nothing),
    Shape(OnlyArgs, takes_args=True),
    Shape(OnlyContext, takes_context=True),
    Shape(ArgsAndContext, takes_args=True, takes_context=True),
    Shape(AsyncArgsAndContext, takes_args=True, takes_context=True),
    Shape(StaticArgsAndContext, takes_args=True, takes_context=True),
    Shape(ClassArgsAndContext, takes_args=True, takes_context=True),
    Shape(Inherited, takes_args=True, takes_context=True),
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.job.__name__)
def test_a_job_is_called_with_what_it_takes(shape: Shape, context: JobContext) -> None:
    registration = registered(shape.job)
    assert (registration.takes_args, registration.takes_context) == (shape.takes_args, shape.takes_context)
    job: Any = registration.job
    ready = context.services.construct(job) if inspect.isclass(job) else job
    received = registration.invoke(ready, ADA, context)
    if inspect.isawaitable(received):
        received = asyncio.run(_awaited(received))
    assert received == (*([ADA] if shape.takes_args else []), *([context] if shape.takes_context else []))


async def _awaited(value: Any) -> Any:
    return await value


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.job.__name__)
def test_what_is_decorated_stays_what_it_was(shape: Shape) -> None:
    kind = shape.job
    decorated = durable_job(kind)
    try:
        assert decorated is kind
        assert registered(decorated).name == kind.__name__
    finally:
        delattr(kind, "__durable_job__")


def test_arguments_without_annotation_may_be_anything() -> None:
    def job(args, context):  # type: ignore[no-untyped-def]
        return args, context

    registration = registered(job)
    assert (registration.takes_args, registration.takes_context) == (True, True)
    assert registration.codec.decode('{"a": [1, null]}') == {"a": [1, None]}


def test_an_instance_is_made_for_each_call(context: JobContext) -> None:
    class Counts:
        def __init__(self) -> None:
            self.calls = 0

        def execute(self) -> int:
            self.calls += 1
            return self.calls

    registration = registered(Counts)
    jobs = [context.services.construct(registration.job) for _ in range(3)]
    assert [registration.invoke(job, None, context) for job in jobs] == [1, 1, 1]


# --- what the decorator is told


def test_the_decorator_needs_no_parentheses_and_has_the_documented_defaults() -> None:
    @durable_job
    def send_email(args: Email) -> None: ...

    registration = registered(send_email)
    assert registration.name == "send_email"
    assert registration.max_attempts == 3
    assert registration.retry_behavior is RetryBehavior.FIXED_DELAY
    assert registration.retry_initial_delay == timedelta(0)
    assert registration.timeout_seconds is None
    assert (registration.cpu_seconds, registration.memory_limit, registration.address_space_limit) == (None,) * 3
    assert (registration.crash_limit, registration.fresh_process_per_run) == (None, None)


def test_what_the_decorator_was_told_is_registered() -> None:
    @durable_job(
        name="send-email",
        max_attempts=7,
        retry_behavior="backoff",
        retry_initial_delay_seconds=0.25,
        timeout_seconds=1.5,
        cpu_seconds=0.5,
        memory_limit="512 MiB",
        address_space_limit=2**31,
        crash_limit=2,
        fresh_process_per_run=True,
    )
    class SendEmail:
        def execute(self, args: Email) -> None: ...

    registration = registered(SendEmail)
    assert (registration.name, registration.max_attempts) == ("send-email", 7)
    assert registration.retry_behavior is RetryBehavior.BACKOFF
    assert registration.retry_initial_delay == timedelta(milliseconds=250)
    assert registration.timeout_seconds == 1.5
    assert registration.cpu_seconds == 0.5
    assert (registration.memory_limit, registration.address_space_limit) == (512 * 2**20, 2**31)
    assert (registration.crash_limit, registration.fresh_process_per_run) == (2, True)


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"max_attempts": 0}, "max_attempts is 0; it must be 1 or more"),
        ({"max_attempts": -1}, "max_attempts is -1"),
        ({"max_attempts": True}, "max_attempts is True"),
        ({"max_attempts": 2.0}, "max_attempts is 2.0"),
        ({"max_attempts": 2**31}, "max_attempts is 2147483648"),
        ({"name": ""}, "job name '' must be 1 to 200 printable characters"),
        ({"name": "n" * 201}, "must be 1 to 200 printable characters"),
        ({"name": "line\nbreak"}, "must be 1 to 200 printable characters"),
        ({"name": "nul\0"}, "must be 1 to 200 printable characters"),
        ({"name": "lone \ud800"}, "must be 1 to 200 printable characters"),
        ({"name": 5}, "job name 5 must be"),
        ({"retry_behavior": "sometimes"}, "retry_behavior 'sometimes' is unknown; allowed are: fixed_delay, backoff"),
        ({"retry_initial_delay_seconds": -0.1}, "retry_initial_delay_seconds is -0.1; it must be 0 or more"),
        ({"retry_initial_delay_seconds": float("nan")}, "retry_initial_delay_seconds is nan"),
        ({"retry_initial_delay_seconds": float("inf")}, "retry_initial_delay_seconds is inf"),
        ({"retry_initial_delay_seconds": "5"}, "retry_initial_delay_seconds is '5'"),
        ({"timeout_seconds": 0}, "timeout_seconds is 0; it must be more than 0"),
        ({"timeout_seconds": -1}, "timeout_seconds is -1"),
        ({"timeout_seconds": True}, "timeout_seconds is True"),
        ({"timeout_seconds": 10**400}, "at most 10 years"),
        ({"cpu_seconds": 0}, "cpu_seconds is 0; it must be more than 0"),
        ({"memory_limit": 5}, "memory_limit is 5; it must be bytes, 1 MiB or more"),
        ({"memory_limit": "much"}, "memory_limit is 'much'; it must be bytes, 1 MiB or more"),
        ({"address_space_limit": -1}, "address_space_limit is -1"),
        ({"crash_limit": 0}, "crash_limit is 0; it must be 1 or more"),
        ({"fresh_process_per_run": "yes"}, "fresh_process_per_run is 'yes'; it must be true or false"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(told: dict[str, Any], sentence: str) -> None:
    def job() -> None: ...

    with pytest.raises(JobDefinitionError) as refused:
        durable_job(**told)(job)
    assert sentence in str(refused.value)
    with pytest.raises(JobDefinitionError) as refused:
        registered(job, **told)
    assert sentence in str(refused.value)


def test_names_of_other_alphabets_and_of_full_length_are_names() -> None:
    def job() -> None: ...

    for name in ("n" * 200, "écrire à Ada", "送信", "mail 📮"):
        assert registered(job, name=name).name == name


# --- what cannot be a job


class WithoutExecute:
    pass


class ExecuteIsNoMethod:
    execute = 5


class NeedsAnArgument:
    def __init__(self, mailer) -> None: ...  # type: ignore[no-untyped-def]

    def execute(self) -> None: ...


class NeedsAKeyword:
    def __init__(self, *, mailer) -> None: ...  # type: ignore[no-untyped-def]

    def execute(self) -> None: ...


class CallableThing:
    def __call__(self) -> None: ...


def generates() -> Iterator[None]:
    yield


async def generates_async() -> AsyncIterator[None]:
    yield


class Generates:
    def execute(self) -> Iterator[None]:
        yield


@pytest.mark.parametrize(
    ("thing", "sentence"),
    [
        (WithoutExecute, "has no method execute; give it one"),
        (ExecuteIsNoMethod, "has no method execute"),
        (NeedsAnArgument, "parameter 'mailer' has no annotation; annotate it with the type of a service"),
        (NeedsAKeyword, "parameter 'mailer' has no annotation"),
        (CallableThing(), "cannot be a job: a job is a class with a method execute, or a function"),
        (print, "cannot be a job"),
        ("send_email", "'send_email' cannot be a job"),
        (5, "5 cannot be a job"),
        (generates, "holds a yield"),
        (generates_async, "holds a yield"),
        (Generates, "holds a yield"),
    ],
)
def test_what_cannot_be_executed_is_refused_at_once(thing: Any, sentence: str) -> None:
    for declare in (durable_job, registered):
        with pytest.raises(JobDefinitionError) as refused:
            declare(thing, name="job") if declare is registered else durable_job(name="job")(thing)
        assert sentence in str(refused.value)


def two_args(first: int, second: int) -> None: ...
def three(first: int, second: int, context: JobContext) -> None: ...
def context_first(context: JobContext, args: Email) -> None: ...
def two_contexts(one: JobContext, other: JobContext) -> None: ...
def required_keyword(args: Email, *, color: str) -> None: ...


@pytest.mark.parametrize("job", [two_args, three, context_first, two_contexts, required_keyword])
def test_a_signature_that_nobody_can_call_is_refused(job: Callable[..., Any]) -> None:
    with pytest.raises(JobDefinitionError) as refused:
        registered(job)
    parameters = ", ".join(inspect.signature(job).parameters)
    assert str(refused.value) == (
        f"job {job.__name__!r}: {job.__name__} takes ({parameters}); "
        "it may take (args, context), (context), (args) or nothing, in this order"
    )


# --- annotations


def test_an_annotation_that_cannot_be_resolved_is_refused_by_name(application: Callable[..., None]) -> None:
    application({"shop_lost.py": "def job(args: 'Missing') -> None: ...\n"})
    with pytest.raises(JobDefinitionError) as refused:
        registered(importlib.import_module("shop_lost").job)
    assert "the annotation 'Missing' of 'args' cannot be resolved: name 'Missing' is not defined" in str(refused.value)


@pytest.mark.parametrize("annotation", ["JobContext", "jobs.JobContext"])
def test_a_context_that_exists_only_for_the_type_checker_is_recognised(
    application: Callable[..., None], annotation: str
) -> None:
    application(
        {
            "shop_typed.py": f"""
            from __future__ import annotations
            from dataclasses import dataclass
            from typing import TYPE_CHECKING
            if TYPE_CHECKING:
                from durablestack import JobContext, jobs

            @dataclass
            class Order:
                number: int

            def by_name(args: Order, run: {annotation}) -> None: ...

            class ByClass:
                def execute(self, run: {annotation}) -> None: ...
            """
        }
    )
    module = importlib.import_module("shop_typed")
    by_name, by_class = registered(module.by_name), registered(module.ByClass)
    assert (by_name.takes_args, by_name.takes_context) == (True, True)
    assert by_name.codec.decode('{"number": 3}') == module.Order(3)
    assert (by_class.takes_args, by_class.takes_context) == (False, True)


@dataclass
class HoldsAThing:
    thing: CallableThing


@dataclass
class HoldsAMystery:
    thing: "Missing"  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    "args_type",
    [CallableThing, list[CallableThing], HoldsAThing, HoldsAMystery, Callable[[], None], complex, Email | HoldsAThing],
)
def test_arguments_of_a_type_that_json_cannot_hold_are_refused(args_type: Any) -> None:
    def job(args): ...  # type: ignore[no-untyped-def]

    job.__annotations__["args"] = args_type
    with pytest.raises(JobDefinitionError, match=r"cannot be read from JSON .*; use a msgspec Struct, a dataclass"):
        registered(job)


@pytest.mark.parametrize("args_type", [object, Number, Iterable[int], Mapping[str, Any], Hashable])
def test_arguments_of_a_type_that_json_values_have_are_taken(args_type: Any) -> None:
    def job(args): ...  # type: ignore[no-untyped-def]

    job.__annotations__["args"] = args_type
    assert registered(job).takes_args


# --- the registry


def test_a_registry_finds_a_job_by_name_by_class_and_by_function() -> None:
    registry = JobRegistry([Nothing, only_args])
    assert registry.find("Nothing") is registry.find(Nothing)
    assert registry.find("only_args") is registry.find(only_args)
    assert registry.names == ("Nothing", "only_args")
    assert len(registry) == 2
    assert Nothing in registry
    assert "only_args" in registry
    assert only_context not in registry


def test_an_unknown_job_is_told_with_the_names_that_are_known() -> None:
    with pytest.raises(UnknownJob, match=r"no job 'Nothin' is registered; registered are: Nothing, only_args"):
        JobRegistry([only_args, Nothing]).find("Nothin")
    with pytest.raises(UnknownJob, match=r"no job .*\.only_args is registered; registered are: none"):
        JobRegistry().find(only_args)


def test_two_jobs_of_one_name_are_refused_and_both_are_named() -> None:
    with pytest.raises(JobDefinitionError) as refused:
        JobRegistry([Nothing]).add(only_args, name="Nothing")
    assert str(refused.value) == (
        f"two jobs are named 'Nothing': {__name__}.Nothing and {__name__}.only_args; a name must be unique"
    )


def test_one_job_under_two_names_is_refused() -> None:
    with pytest.raises(JobDefinitionError, match="is registered already, as 'Nothing'; once is enough"):
        JobRegistry([Nothing]).add(Nothing, name="other")


def test_a_registry_that_refused_a_job_is_as_it_was() -> None:
    registry = JobRegistry([Nothing])
    with pytest.raises(JobDefinitionError):
        registry.add(only_args, max_attempts=0)
    assert registry.names == ("Nothing",)


def test_adding_changes_what_was_declared_and_keeps_the_rest() -> None:
    @durable_job(name="declared", max_attempts=7, timeout_seconds=5)
    def job() -> None: ...

    changed = JobRegistry().add(job, name="added", retry_behavior="backoff")
    assert (changed.name, changed.max_attempts, changed.timeout_seconds) == ("added", 7, 5)
    assert changed.retry_behavior is RetryBehavior.BACKOFF
    assert registered(job).name == "declared"


def test_an_unknown_change_is_refused() -> None:
    with pytest.raises(JobDefinitionError, match=r"job 'Nothing': .*'color'"):
        registered(Nothing, color="red")


def test_a_subclass_does_not_inherit_the_declaration() -> None:
    @durable_job(name="parent", max_attempts=9)
    class Parent:
        def execute(self) -> None: ...

    class Child(Parent):
        pass

    registry = JobRegistry([Parent, Child])
    assert registry.names == ("Child", "parent")
    assert registry.find(Child).max_attempts == 3
