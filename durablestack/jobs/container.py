"""Makes the services of an application, in a child: a dishka container below the words of `Services`.

It is built once, before the first run. That makes nothing yet, but finds what cannot be made.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from typing import Any
from weakref import WeakSet

import dishka
from dishka.entities.component import DEFAULT_COMPONENT
from dishka.entities.factory_type import FactoryType
from dishka.entities.key import DependencyKey, hint_to_dependency_key
from dishka.entities.marker import BoolMarker
from dishka.exception_base import DishkaError
from dishka.exceptions import CycleDependenciesError, GraphMissingFactoryError
from msgspec import Struct

from durablestack.errors import JobDefinitionError, ServiceError
from durablestack.options import JobActivation

from .context import JobContext
from .registration import JobRegistration
from .scope import ServiceScope
from .services import (
    Lifetime,
    Make,
    Parameter,
    Service,
    Services,
    is_async_generator,
    is_from_contextlib,
    is_generator,
    parameters_of,
    shown,
    without_none,
)

_APP, _REQUEST = dishka.Scope.APP, dishka.Scope.REQUEST
_AWAITED = (FactoryType.ASYNC_FACTORY, FactoryType.ASYNC_GENERATOR)
_MAKING = (*_AWAITED, FactoryType.FACTORY, FactoryType.GENERATOR)


class Recipe(Struct, frozen=True):
    """What it takes to make a service: whether it `awaits`, which singletons come first, what of it is scoped."""

    awaits: bool = False
    singletons: tuple[DependencyKey, ...] = ()
    scoped: Any = None


class ServiceContainer:
    """The services of one child.

    Args:
        expected: entered while a singleton is made, which may change the process for good, as a run may not.

    Raises:
        JobDefinitionError: a job or a service asks for what is not registered, or cannot be had where it is.
    """

    def __init__(
        self,
        services: Services,
        jobs: Iterable[JobRegistration],
        activation: JobActivation,
        runner: asyncio.Runner,
        expected: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.runner = runner
        self.thread = threading.get_ident()
        self.tasks: WeakSet[asyncio.Task[Any]] = WeakSet()
        self._activation = activation
        self._expected = expected
        self._graph = _Graph(services, list(jobs), activation)
        self.root = self._graph.root
        self._recipes: dict[Any, Recipe | None] = {}
        self._made: set[DependencyKey] = set()

    def scope(self, context: JobContext) -> ServiceScope:
        """The services of an attempt."""
        return ServiceScope(self, None if self._activation is JobActivation.ROOT_PROVIDER else context)

    def open(self, context: JobContext) -> dishka.AsyncContainer:
        return self.root(context={JobContext: context})

    def close(self) -> None:
        """End the singletons."""
        self.runner.run(self.root.close())

    # --- what it takes

    def knows(self, kind: Any) -> bool:
        return self._recipe(kind) is not None

    def recipe(self, kind: Any) -> Recipe:
        return self._recipe(kind) or Recipe()

    def _recipe(self, kind: Any) -> Recipe | None:
        if kind not in self._recipes:
            self._recipes[kind] = self._graph.recipe(hint_to_dependency_key(kind).with_component(DEFAULT_COMPONENT))
        return self._recipes[kind]

    def check(self, kind: Any, *, scoped: bool) -> None:
        """Raises ServiceError if there is no such service, or if it is scoped and there is no scope for it."""
        recipe = self._recipe(kind)
        if recipe is None:
            raise ServiceError(f"service {shown(kind)} is not registered; {self._graph.registered}")
        if recipe.scoped is not None and not scoped:
            raise ServiceError(f"service {shown(kind)} cannot be had here: {_needs_scope(kind, recipe.scoped)}")

    # --- making

    def make(self, place: dishka.AsyncContainer, kind: Any) -> Any:
        for key in self._unmade_singletons(kind):
            with self._for_good(key):
                self.root.get_sync(key.type_hint, component=key.component)
        return place.get_sync(kind)

    async def amake(self, place: dishka.AsyncContainer, kind: Any) -> Any:
        for key in self._unmade_singletons(kind):
            with self._for_good(key):
                await self.root.get(key.type_hint, component=key.component)
        return await place.get(kind)

    def _unmade_singletons(self, kind: Any) -> list[DependencyKey]:
        return [key for key in self.recipe(kind).singletons if key not in self._made]

    @contextmanager
    def _for_good(self, key: DependencyKey) -> Iterator[None]:
        """A singleton is made by itself, so that what it starts can be told from what a run leaves behind."""
        tasks = self._tasks()
        with self._expected():
            yield
        self.tasks.update(self._tasks() - tasks)
        self._made.add(key)

    def _tasks(self) -> set[asyncio.Task[Any]]:
        return asyncio.all_tasks(self.runner.get_loop())


class _Graph:
    """Who needs what: the services and the jobs, as factories of dishka."""

    def __init__(self, services: Services, jobs: list[JobRegistration], activation: JobActivation) -> None:
        self._activation = activation
        self._services = {service.kind: service for service in services}
        self._wanted = {
            service.kind: parameters_of(service.make, f"{service.lifetime.value} service {shown(service.kind)}")
            for service in services
        }
        self._foreign = {
            source.provides.type_hint: source.scope if hasattr(source, "scope") else _APP
            for provider in services.providers
            for source in (*provider.factories, *provider.aliases, *provider.context_vars)
        }
        own = dishka.Provider()
        own.from_context(JobContext, scope=_REQUEST)
        for service in services:
            self._provide_service(own, service)
        for job in jobs:
            self._provide_job(own, job)
        try:
            self.root = dishka.make_async_container(*services.providers, own, lock_factory=None)
        except GraphMissingFactoryError as error:
            raise JobDefinitionError(self._missing(error)) from None
        except CycleDependenciesError as error:
            names = " -> ".join(shown(factory.provides.type_hint) for factory in error.path)
            raise JobDefinitionError(f"services need each other in a circle: {names} -> and so on") from None
        except DishkaError as error:
            raise JobDefinitionError(f"the services do not fit together: {error}") from None

    def _provide_service(self, own: dishka.Provider, service: Service) -> None:
        make, parameters = service.make, self._wanted[service.kind]
        described = f"{service.lifetime.value} service {shown(service.kind)}"
        own.provide(
            _source(make, self._given(parameters), described),
            provides=service.kind,
            scope=_REQUEST if self._is_scoped(service.kind) else _APP,
            cache=service.lifetime is not Lifetime.TRANSIENT,
        )

    def _provide_job(self, own: dishka.Provider, job: JobRegistration) -> None:
        given = self._given(job.constructor)
        if given and job.job not in self._services:
            scope = _REQUEST if self._activation is JobActivation.SCOPED_PER_EXECUTION else _APP
            source = _source(job.job, given, f"job {job.name!r}")
            own.provide(source, provides=job.job, scope=scope, cache=False)

    def _given(self, parameters: Iterable[Parameter]) -> dict[str, Any]:
        """The parameters that are passed. One that is not registered keeps its default, if it has one."""
        given = {}
        for parameter in parameters:
            kinds = [kind for kind in (parameter.kind, without_none(parameter.kind)) if self._is_registered(kind)]
            if kinds or parameter.required:
                given[parameter.name] = kinds[0] if kinds else parameter.kind
        return given

    def _is_registered(self, kind: Any) -> bool:
        return kind is JobContext or kind in self._services or kind in self._foreign

    def _is_scoped(self, kind: Any, asked: tuple[Any, ...] = ()) -> bool:
        """A transient is scoped if it needs what is, or if it has a clean-up, whose time is the end of the attempt."""
        if kind is JobContext:
            return True
        if (service := self._services.get(kind)) is None:
            return bool(self._foreign.get(kind, _APP) > _APP)
        if service.lifetime is not Lifetime.TRANSIENT:
            return service.lifetime is Lifetime.SCOPED
        if is_generator(service.make) or is_async_generator(service.make):
            return True
        needed = self._given(self._wanted[kind]).values()
        return any(self._is_scoped(each, (*asked, kind)) for each in needed if each not in asked)

    # --- told

    @property
    def registered(self) -> str:
        names = sorted({shown(kind) for kind in (*self._services, *self._foreign)})
        return f"registered are: {', '.join(names)}" if names else "none is registered"

    def _missing(self, error: GraphMissingFactoryError) -> str:
        kind = error.requested.type_hint
        asker = error.path[-1].source if error.path else None
        described = getattr(asker, "described", shown(asker))
        names = [name for name, each in getattr(asker, "__annotations__", {}).items() if each == kind]
        where = f"{described} cannot be made: parameter {(names or ['?'])[0]!r} asks for {shown(kind)}"
        if not self._is_registered(kind):
            return (
                f"{where}, which is not registered; add it to the services of the DurableStack, as in "
                f"services.add_singleton({getattr(kind, '__name__', kind)}), or give the parameter a default; "
                f"{self.registered}"
            )
        if described.startswith("job "):
            return f"{where}: {_needs_scope(kind, kind)}"
        return f"{where}, which lives for one attempt only, while a singleton outlives it; make one of them the other"

    # --- found

    def recipe(self, key: DependencyKey) -> Recipe | None:
        """How the service is made; None if there is none."""
        factory = self._factory(key)
        if factory is None:
            return None
        needed = [*factory.dependencies, *factory.kw_dependencies.values()]
        needed += [variant.provides for variant in factory.when_dependencies]
        recipes = [found for each in needed if (found := self.recipe(each)) is not None]
        singletons = dict.fromkeys(each for recipe in recipes for each in recipe.singletons)
        if factory.scope <= _APP and _is_made_at_once(factory):
            singletons[key] = None
        scoped = key.type_hint if factory.scope > _APP else None
        return Recipe(
            awaits=factory.type in _AWAITED or any(recipe.awaits for recipe in recipes),
            singletons=tuple(singletons),
            scoped=next((recipe.scoped for recipe in recipes if recipe.scoped is not None), scoped),
        )

    def _factory(self, key: DependencyKey) -> Any:
        registry: Any = (self.root.parent_container or self.root).registry
        while registry is not None and registry.scope <= _REQUEST:
            if (factory := registry.get_factory(key)) is not None:
                return factory
            registry = registry.child_registry
        return None


def _is_made_at_once(factory: Any) -> bool:
    """Whether it may be made before whatever needs it: once, and under no condition."""
    always = factory.when_active in (None, BoolMarker(True)) and not factory.when_dependencies
    return bool(factory.cache and always and factory.provides.depth == 0 and factory.type in _MAKING)


def _needs_scope(kind: Any, scoped: Any) -> str:
    itself = "it" if scoped is kind else f"it needs {shown(scoped)}, which"
    return (
        f"{itself} lives for one attempt, and there is no scope for it: job_activation is root_provider, or no "
        "attempt is under way; make it a singleton, or leave job_activation at scoped_per_execution"
    )


def _source(make: Make, given: dict[str, Any], described: str) -> Any:
    """What dishka calls: it asks for nothing but what is given, and a clean-up meets the error as in a `with` block."""
    source: Any
    if is_async_generator(make):
        amanager = make if is_from_contextlib(make) else asynccontextmanager(make)

        async def source(**arguments: Any) -> Any:
            opened = amanager(**arguments)
            error = yield await opened.__aenter__()
            await opened.__aexit__(*_raised(error))

    elif is_generator(make):
        manager = make if is_from_contextlib(make) else contextmanager(make)

        def source(**arguments: Any) -> Any:
            opened = manager(**arguments)
            error = yield opened.__enter__()
            opened.__exit__(*_raised(error))

    elif inspect.iscoroutinefunction(make):

        async def source(**arguments: Any) -> Any:
            return await make(**arguments)

    else:

        def source(**arguments: Any) -> Any:
            return make(**arguments)

    keyword = inspect.Parameter.KEYWORD_ONLY
    source.__signature__ = inspect.Signature([inspect.Parameter(n, keyword, annotation=k) for n, k in given.items()])
    source.__annotations__ = given
    source.described = described
    return source


def _raised(error: BaseException | None) -> tuple[Any, Any, Any]:
    return (None, None, None) if error is None else (type(error), error, error.__traceback__)
