"""DurableStack: the options, the jobs and the store of one application, wired once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from types import ModuleType, TracebackType
from typing import Any

from durablestack.client import AsyncDurableStackClient, DurableStackClient
from durablestack.errors import TargetError
from durablestack.jobs import JobRegistry, import_targets, jobs_in
from durablestack.options import DurableStackOptions
from durablestack.queries import RunQueries
from durablestack.stores.contract import Store
from durablestack.stores.providers import open_store


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
        keywords: options by name.

    Raises:
        OptionsError: an option that cannot be meant.
    """

    def __init__(
        self,
        *targets: str,
        options: DurableStackOptions | None = None,
        jobs: Iterable[Callable[..., Any]] = (),
        **keywords: Any,
    ) -> None:
        self.options = options or DurableStackOptions.load(**keywords)
        self.targets = tuple(dict.fromkeys(targets))
        self._given_jobs = tuple(jobs)
        self._wakers: list[Callable[[], None]] = []

    @cached_property
    def jobs(self) -> JobRegistry:
        """The registered jobs. They are looked for when first asked for, so that a module may go on declaring.

        Raises:
            TargetError: a target cannot be imported.
            JobDefinitionError: a job cannot be one, or two have one name.
        """
        registry = JobRegistry(self._given_jobs)
        if self.options.job_registration.auto_discover_jobs_from_assembly:
            for job in jobs_in(import_targets(self.targets)):
                if job not in registry:
                    registry.add(job)
        return registry

    @cached_property
    def store(self) -> Store:
        return open_store(self.options)

    def open_store(self, *, connections_max: int, timeout_seconds: float | None = None) -> Store:
        """A store with connections of its own; the same store, if it lives in memory."""
        if not self.store.durable:
            return self.store
        return open_store(self.options, connections_max=connections_max, timeout_seconds=timeout_seconds)

    @cached_property
    def client(self) -> DurableStackClient:
        return DurableStackClient(
            self.store, self.jobs, payload_bytes_max=self.options.payload_bytes_max, enqueued=self._wake
        )

    @cached_property
    def async_client(self) -> AsyncDurableStackClient:
        return AsyncDurableStackClient(self.client, self.store)

    @cached_property
    def queries(self) -> RunQueries:
        return RunQueries(self.store)

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

    # --- a supervisor in this process is woken by an enqueue

    def add_waker(self, wake: Callable[[], None]) -> None:
        self._wakers.append(wake)

    def remove_waker(self, wake: Callable[[], None]) -> None:
        self._wakers.remove(wake)

    def _wake(self) -> None:
        for wake in list(self._wakers):
            wake()

    # --- from names on a command line

    @classmethod
    def load(cls, targets: Sequence[str], **changes: Any) -> DurableStack:
        """The application that `targets` name: modules, packages, or `module:attribute` for a DurableStack.

        If one of them holds a DurableStack, that is it, with the jobs of all targets; otherwise one is made.
        `changes` are options that go before those of the application.

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
            return cls(*modules, **changes)
        stack = found[0]
        return cls(
            *stack.targets,
            *modules,
            options=stack.options.replace(**changes) if changes else stack.options,
            jobs=stack._given_jobs,
        )

    @staticmethod
    def load_jobs(targets: Sequence[str]) -> JobRegistry:
        """The jobs alone, as `load` finds them, without a look at any options.

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
        return registry

    @property
    def child_targets(self) -> tuple[str, ...]:
        """The targets, as another process can import them."""
        return tuple(_importable(target) for target in self.targets)


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
                raise TargetError(f"{target!r}: {module_name} has no DurableStack called {attribute!r}")
            stacks[id(value)] = value
    if not stacks:
        for module in modules:
            # the type, not isinstance: a lazy proxy that stands in a module is not to be woken
            stacks.update(
                (id(value), value) for value in vars(module).values() if issubclass(type(value), DurableStack)
            )
    return list(stacks.values())
