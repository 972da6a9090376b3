"""DurableStack: the options, the jobs and the store of one application, wired once.

Children import this too, and have no store: what needs one is imported where it is asked for.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import Struct

from durablestack.errors import TargetError
from durablestack.events import EventSink, LoggingEventSink
from durablestack.jobs import JobRegistry, import_targets, jobs_in
from durablestack.jobs.services import Services
from durablestack.options import DurableStackOptions

if TYPE_CHECKING:
    from durablestack.admin import ScheduleAdmin
    from durablestack.client import AsyncDurableStackClient, DurableStackClient
    from durablestack.queries import RunQueries
    from durablestack.stores.contract import Store

log = logging.getLogger(__name__)

APPLICATION_NAME_LENGTH_MAX = 200

Hook = Callable[..., Any]
"""Sync or async. In a child it takes nothing, or the services; in a supervisor, nothing."""

AnyHook = TypeVar("AnyHook", bound=Hook)


class DurableStack:
    """One application's jobs, on one database.

        stack = DurableStack(__name__, database_url="postgresql://localhost/shop")
        stack.client.enqueue(SendEmail, Email(to="ada@example.com"))

    Args:
        targets: modules and packages whose decorated jobs belong to the application; usually `__name__`,
            for the jobs of this module, or the name of a package, for all that is in it.
        options: the options, ready made. Otherwise `durablestack.toml`, the environment and `keywords` make them
            (see `DurableStackOptions.load`).
        jobs: jobs to register besides those found.
        event_sinks: who is told of events; see `add_event_sink`.
        services: what jobs may ask for. Each child makes them for itself.
        keywords: options by name.

    Raises:
        OptionsError: an option that cannot be meant.
    """

    def __init__(
        self,
        *targets: str,
        options: DurableStackOptions | None = None,
        jobs: Iterable[Callable[..., Any]] = (),
        event_sinks: Iterable[EventSink] = (),
        services: Services | None = None,
        **keywords: Any,
    ) -> None:
        self.options = options or DurableStackOptions.load(**keywords)
        self.targets = tuple(dict.fromkeys(targets))
        self._given_jobs: list[tuple[Callable[..., Any], dict[str, Any]]] = [(job, {}) for job in jobs]
        self._event_sinks = list(event_sinks)
        self.services = Services() if services is None else services
        self.supervisor_start_hooks: list[Hook] = []
        self._start_hooks: list[Hook] = []
        self._stop_hooks: list[Hook] = []
        self._loaded_from: DurableStack | None = None
        self._wakers: list[Callable[[], None]] = []
        self._warned_of_memory = False

    @cached_property
    def jobs(self) -> JobRegistry:
        """The registered jobs. They are looked for when first asked for, so that a module may go on declaring.

        Raises:
            TargetError: a target cannot be imported.
            JobDefinitionError: a job cannot be one, or two have one name.
        """
        registry = JobRegistry()
        for job, changes in self._given_jobs:
            registry.add(job, **changes)
        if self.options.job_registration.auto_discover_jobs_from_assembly:
            for job in jobs_in(import_targets(self.targets)):
                if job not in registry:
                    registry.add(job)
        return registry

    def add_job(self, job: Callable[..., Any], **changes: Any) -> None:
        """Register a job without decorators, or otherwise than they say: see `JobRegistry.add`.

        Belongs into a module of the application, which supervisors and children import too.
        """
        if "jobs" in vars(self):
            self.jobs.add(job, **changes)
        self._given_jobs.append((job, changes))

    @cached_property
    def store(self) -> Store:
        from durablestack.stores.providers import open_store

        return open_store(self.options)

    def open_store(self, *, connections_max: int, timeout_seconds: float | None = None) -> Store:
        """A store with connections of its own; the same store, if it lives in memory."""
        if not self.store.durable:
            return self.store
        from durablestack.stores.providers import open_store

        return open_store(self.options, connections_max=connections_max, timeout_seconds=timeout_seconds)

    @cached_property
    def client(self) -> DurableStackClient:
        from durablestack.client import DurableStackClient

        return DurableStackClient(
            self.store, self.jobs, payload_bytes_max=self.options.payload_bytes_max, enqueued=self._wake
        )

    @cached_property
    def async_client(self) -> AsyncDurableStackClient:
        from durablestack.client import AsyncDurableStackClient

        return AsyncDurableStackClient(self.client, self.store)

    @cached_property
    def queries(self) -> RunQueries:
        from durablestack.queries import RunQueries

        return RunQueries(self.store)

    @cached_property
    def schedules(self) -> ScheduleAdmin:
        """Look after the schedules of recurring jobs."""
        from durablestack.admin import ScheduleAdmin

        return ScheduleAdmin(self.store, enqueued=self._wake)

    @property
    def application_name(self) -> str:
        """Who declares the schedules of recurring jobs: the modules, or the program where none was named."""
        names = map(_lasting_name, self.targets or ("__main__",))
        return self.options.application_name or ",".join(names)[:APPLICATION_NAME_LENGTH_MAX]

    def migrate(self) -> list[int]:
        """Create or update the tables; return the versions applied, none if all was there."""
        return self.store.migrate()

    def close(self) -> None:
        if "store" in vars(self):
            self.store.close()

    def __enter__(self) -> DurableStack:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    # --- who is told of events

    def add_event_sink(self, sink: EventSink) -> None:
        """Tell `sink` what happens in a supervisor of this application that is made from now on.

        It is called in the supervisor's process only, although the application's modules are imported in children.
        """
        self._event_sinks.append(sink)

    def use_logging_event_sink(self) -> None:
        """Write every event to the logger `durablestack.events`."""
        self.add_event_sink(LoggingEventSink())

    @property
    def event_sinks(self) -> tuple[EventSink, ...]:
        return tuple(self._event_sinks)

    def on_supervisor_start(self, hook: AnyHook) -> AnyHook:
        """Call `hook`, sync or async, once in the process of each supervisor, before it claims anything.

        The place to configure OpenTelemetry's metrics. What it raises stops the supervisor.
        """
        self.supervisor_start_hooks.append(hook)
        return hook

    # --- what happens in children

    def on_child_start(self, hook: AnyHook) -> AnyHook:
        """Call `hook`, sync or async, once in each child, after the application was loaded and before its first run.

        A hook with a parameter is given the services that are not scoped: `services.get(Pool)`. While one raises,
        no child starts, and no run is claimed; it is tried again and again.
        """
        self._start_hooks.append(hook)
        return hook

    def on_child_stop(self, hook: AnyHook) -> AnyHook:
        """Call `hook` when a child leaves in good order, which takes 2 seconds at most. A child may also be killed."""
        self._stop_hooks.append(hook)
        return hook

    @property
    def ends_in_children(self) -> bool:
        """Whether there is anything to do when a child leaves."""
        return bool(self.services or self._stop_hooks)

    # --- a supervisor in this process is woken by an enqueue

    def add_waker(self, wake: Callable[[], None]) -> None:
        self._wakers.append(wake)

    def remove_waker(self, wake: Callable[[], None]) -> None:
        self._wakers.remove(wake)

    def _wake(self) -> None:
        if not self._wakers and not self.store.durable and not self._warned_of_memory:
            self._warned_of_memory = True
            log.warning(
                "what was enqueued is kept in the memory of this process, where no supervisor runs: name a database in "
                "database_url, or run one here with supervise()"
            )
        for wake in list(self._wakers):
            wake()

    # --- from names on a command line

    @classmethod
    def load(cls, targets: Sequence[str], *, config: str | Path | None = None, **changes: Any) -> DurableStack:
        """The application that `targets` name: modules, packages, or `module:attribute` for a DurableStack.

        If one of them holds a DurableStack, that is it, with the jobs of all targets; otherwise one is made.
        `config` names a file of options, which go before those that the application was made with; where none was
        made, it is read in the place of `durablestack.toml`. `changes` are options that go before all others.

        Raises:
            TargetError: a target cannot be found or imported, or there are several DurableStacks to choose from.
            OptionsError: an option that cannot be meant.
        """
        modules = [target.partition(":")[0] for target in targets]
        found = _stacks_in(targets, import_targets(modules))
        if len(found) > 1:
            raise TargetError(
                f"{', '.join(targets)} holds {len(found)} DurableStacks; name the one you mean, as module:attribute"
            )
        if not found:
            return cls(*modules, options=DurableStackOptions.from_command_line(file=config, **changes))
        stack = found[0]
        loaded = cls(
            *stack.targets,
            *modules,
            options=stack.options.replace(file=config, **changes) if changes or config else stack.options,
            event_sinks=stack._event_sinks,
            services=stack.services,
        )
        loaded._start_hooks, loaded._stop_hooks = stack._start_hooks, stack._stop_hooks
        loaded.supervisor_start_hooks = stack.supervisor_start_hooks
        loaded._given_jobs = stack._given_jobs
        loaded._loaded_from = stack
        return loaded

    @staticmethod
    def load_application(targets: Sequence[str]) -> ChildApplication:
        """What a child needs of the application, as `load` finds it, without a look at any options.

        Raises:
            TargetError, JobDefinitionError: as `load`.
        """
        modules = import_targets(target.partition(":")[0] for target in targets)
        stacks = _stacks_in(targets, modules)
        registry = JobRegistry()
        for registration in (each for stack in stacks[:1] for each in stack.jobs):
            registry.take(registration)
        for job in jobs_in(modules):
            if job not in registry:
                registry.add(job)
        if not stacks:
            return ChildApplication(registry, Services())
        stack = stacks[0]
        return ChildApplication(registry, stack.services, tuple(stack._start_hooks), tuple(stack._stop_hooks))

    @property
    def child_targets(self) -> tuple[str, ...]:
        """The targets, as another process can import them; if that matters, with the place where this stack stands.

        Raises:
            TargetError: no child could find the services and hooks of this stack.
        """
        targets = tuple(_importable(target) for target in self.targets)
        modules = import_targets(self.targets)
        needed = bool(self.services or self._start_hooks or self._stop_hooks)
        if not needed and len(_stacks_in((), modules)) < 2:
            return targets
        for module in modules:
            for name, value in list(vars(module).items()):
                if value is self or (value is self._loaded_from and value is not None):
                    return (*targets, f"{_importable(module.__name__)}:{name}")
        if not needed:
            return targets
        raise TargetError(
            "children look for the services and hooks of a DurableStack where it stands: assign it to a name in one of "
            "the modules that are its targets, as in stack = DurableStack(__name__, services=services)"
        )


class ChildApplication(Struct, frozen=True):
    """An application, as far as a child executes it."""

    jobs: JobRegistry
    services: Services
    start_hooks: tuple[Hook, ...] = ()
    stop_hooks: tuple[Hook, ...] = ()


def _lasting_name(target: str) -> str:
    """The name of a module, also of the program that was started."""
    main = sys.modules.get("__main__")
    if target != "__main__" or main is None:
        return target
    spec = getattr(main, "__spec__", None)
    return str(spec.name) if spec is not None else Path(getattr(main, "__file__", "__main__")).stem


def _importable(target: str) -> str:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if target == "__main__" and spec is not None and spec.name.endswith(".__main__"):
        return str(spec.name)  # multiprocessing does not load such a module as __main__ of a child
    return target


def _stacks_in(targets: Sequence[str], modules: Sequence[ModuleType]) -> list[DurableStack]:
    stacks: dict[int, DurableStack] = {}
    for target in targets:
        module_name, colon, attribute = target.partition(":")
        if colon:
            value = getattr(sys.modules[module_name], attribute, None)
            if not isinstance(value, DurableStack):
                others = [name for name, held in vars(sys.modules[module_name]).items() if type(held) is DurableStack]
                it_has = f"; it has {', '.join(others)}" if others else ""
                raise TargetError(f"{target!r}: {module_name} has no DurableStack called {attribute!r}{it_has}")
            stacks[id(value)] = value
    if not stacks:
        for module in modules:
            # the type, not isinstance: a lazy proxy that stands in a module is not to be woken
            stacks.update(
                (id(value), value) for value in vars(module).values() if issubclass(type(value), DurableStack)
            )
    return list(stacks.values())
