"""The services of an application: what its jobs ask for in their constructors, and how each is made.

Nothing is made here. Children make services (see `container`); a supervisor and a client never do.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any, Union, get_args, get_origin

from msgspec import Struct

from durablestack.errors import JobDefinitionError

Make = Callable[..., Any]


class Lifetime(Enum):
    SINGLETON = "singleton"  # once per child process
    SCOPED = "scoped"  # once per attempt
    TRANSIENT = "transient"  # each time it is asked for


class Service(Struct, frozen=True):
    """`make` makes what is got as `kind`."""

    kind: Any
    make: Make
    lifetime: Lifetime


class Parameter(Struct, frozen=True):
    """What a constructor or factory wants to be given. If it is not `required`, it can do without."""

    name: str
    kind: Any
    required: bool


class Services:
    """What jobs may ask for, by type, and how it is made: in each child, when it is first asked for.

        services = Services()
        services.add_singleton(Settings, Settings.from_environment)
        services.add_scoped(Session, open_session)
        services.add_transient(Clock)
        stack = DurableStack(__name__, services=services)

    `factory` is a function, a generator function that yields the service and goes on when it is no longer needed,
    what `contextlib.contextmanager` made of one, or an `async` form of these. Left out, it is the type itself.
    Its own parameters are services too, found by their annotations; one with a default need not be registered.
    A generator meets the error of a failed attempt at its `yield`, as in a `with` block.

    What is added again replaces what was there.
    """

    def __init__(self) -> None:
        self._services: dict[Any, Service] = {}
        self._providers: list[Any] = []

    def add_singleton(self, kind: Any, factory: Make | None = None) -> None:
        """Make it once in each child process; end it when the child leaves in good order."""
        self._add(kind, factory, Lifetime.SINGLETON)

    def add_scoped(self, kind: Any, factory: Make | None = None) -> None:
        """Make it once for each attempt of a run, and end it with the attempt."""
        self._add(kind, factory, Lifetime.SCOPED)

    def add_transient(self, kind: Any, factory: Make | None = None) -> None:
        """Make another each time it is asked for; one with a clean-up ends with the attempt."""
        self._add(kind, factory, Lifetime.TRANSIENT)

    def add_provider(self, provider: Any) -> None:
        """Take in a dishka `Provider` as it is: `Scope.APP` is a singleton, `Scope.REQUEST` an attempt.

        Its generators are told of an error as dishka does it: as the value of `yield`.
        """
        if not hasattr(provider, "factories"):
            raise JobDefinitionError(f"{provider!r} is no instance of dishka.Provider")
        self._providers.append(provider)

    def _add(self, kind: Any, factory: Make | None, lifetime: Lifetime) -> None:
        make = kind if factory is None else factory
        if not callable(make):
            raise JobDefinitionError(
                f"{lifetime.value} service {shown(kind)}: {make!r} cannot make it; pass a class or a function"
            )
        self._services[kind] = Service(kind, make, lifetime)

    @property
    def providers(self) -> tuple[Any, ...]:
        return tuple(self._providers)

    def __iter__(self) -> Iterator[Service]:
        return iter(self._services.values())

    def __bool__(self) -> bool:
        return bool(self._services or self._providers)


def parameters_of(make: Make, described: str) -> tuple[Parameter, ...]:
    """What a class or function wants to be given.

    Raises:
        JobDefinitionError: it wants something that no annotation tells.
    """
    check_parameters(make, described)
    found = []
    for parameter in _injectable(make):
        required = parameter.default is parameter.empty
        try:
            kind = _resolved(make, parameter.annotation)
        except Exception as error:
            if not required:  # it does not need what exists for a type checker only
                continue
            raise JobDefinitionError(
                f"{described}: the annotation {parameter.annotation!r} of parameter {parameter.name!r} cannot be "
                f"resolved: {error}"
            ) from None
        found.append(Parameter(parameter.name, kind, required))
    return tuple(found)


def check_parameters(make: Make, described: str) -> None:
    """Refuse what no annotation can ever be found for. Annotations need not be resolvable yet.

    Raises:
        JobDefinitionError: a parameter without annotation and default, or one that cannot be passed by name.
    """
    injectable = {parameter.name for parameter in _injectable(make)}
    for parameter in _signature(make):
        variable = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if variable or parameter.default is not parameter.empty or parameter.name in injectable:
            continue
        lack = "cannot be passed by name" if parameter.kind is parameter.POSITIONAL_ONLY else "has no annotation"
        raise JobDefinitionError(
            f"{described} cannot be made: parameter {parameter.name!r} {lack}; annotate it with the type of a service "
            "that is registered, or give it a default"
        )


def _injectable(make: Make) -> list[inspect.Parameter]:
    return [
        parameter
        for parameter in _signature(make)
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.annotation is not parameter.empty
    ]


def _signature(make: Make) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(make).parameters.values())
    except ValueError:  # a class implemented in C may tell no signature
        return []


def _resolved(make: Make, annotation: Any) -> Any:
    """A postponed annotation is evaluated as typing.get_type_hints does it, but alone."""
    if not isinstance(annotation, str):
        return annotation
    function: Any = inspect.unwrap(getattr(make, "__init__") if isinstance(make, type) else make)  # noqa: B009
    module = sys.modules.get(getattr(make, "__module__", ""))
    return eval(annotation, getattr(function, "__globals__", None) or vars(module))


def without_none(kind: Any) -> Any:
    """`Mailer` for `Mailer | None`; anything else as it is."""
    if get_origin(kind) not in (Union, types.UnionType):
        return kind
    members = [member for member in get_args(kind) if member is not type(None)]
    return members[0] if len(members) == 1 else kind


# --- how a factory is called


def is_from_contextlib(make: Any) -> bool:
    """Whether `contextmanager` or `asynccontextmanager` made it of a generator function."""
    return inspect.isfunction(make) and make.__globals__ is vars(contextlib) and hasattr(make, "__wrapped__")


def is_generator(make: Any) -> bool:
    return inspect.isgeneratorfunction(inspect.unwrap(make) if is_from_contextlib(make) else make)


def is_async_generator(make: Any) -> bool:
    return inspect.isasyncgenfunction(inspect.unwrap(make) if is_from_contextlib(make) else make)


def shown(kind: Any) -> str:
    """A type or a function, as an error names it."""
    name = None if get_origin(kind) else getattr(kind, "__qualname__", None)
    module = getattr(kind, "__module__", None)
    if name is None or module in (None, "builtins"):
        return str(name or kind)
    return f"{module}.{name}"
