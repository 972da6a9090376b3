"""The services of one attempt, as its job gets them: made when first asked for, ended with the attempt."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Collection, Coroutine, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar, overload

from durablestack.errors import ServiceError
from durablestack.options import JobActivation

from .services import Services, shown

if TYPE_CHECKING:
    from .container import ServiceContainer
    from .context import JobContext
    from .registration import JobRegistration

T = TypeVar("T")


class ServiceScope:
    """Used by the job's own thread. A scope that nobody asks for anything costs nothing.

    What a factory without `async` makes is made, and ended, outside of the event loop, unless the job itself
    is on it: synchronous libraries may refuse to work below a running loop.
    """

    def __init__(self, container: ServiceContainer | None = None, context: JobContext | None = None) -> None:
        self._container = container
        self._context = context
        self._opened: Any = None
        self._closed = False
        self._asking: asyncio.Task[Any] | None = None
        self._turn: asyncio.Lock | None = None  # few ask for what has to be awaited
        # one context for all that is done on the loop for a job that is not on it: what sets a variable can reset it
        self._loop_context: contextvars.Context | None = None

    # --- asked by jobs

    @overload
    def get(self, kind: type[T]) -> T: ...
    @overload
    def get(self, kind: Any) -> Any: ...
    def get(self, kind: Any) -> Any:
        """The service that is registered as `kind`.

        An `async` job can only get what takes no `async` factory to make; see `aget`.

        Raises:
            ServiceError: it is not registered, or not to be had here.
        """
        container = self._usable_for(kind)
        if not container.recipe(kind).awaits:
            return container.make(self._place(), kind)
        if _on_a_loop():
            raise ServiceError(
                f"service {shown(kind)} takes an async factory to make: await context.services.aget({_name(kind)})"
            )
        return self._on_loop(self._aget(kind))

    @overload
    async def aget(self, kind: type[T]) -> T: ...
    @overload
    async def aget(self, kind: Any) -> Any: ...
    async def aget(self, kind: Any) -> Any:
        """The same for `async` jobs, whatever its factory is.

        Raises:
            ServiceError: as `get`.
        """
        container = self._usable_for(kind)
        if asyncio.get_running_loop() is not container.runner.get_loop():
            raise ServiceError(
                f"service {shown(kind)} belongs to the event loop of its process, on which this is not running; "
                "make the job's execute an async def"
            )
        return await self._aget(kind)

    async def _aget(self, kind: Any) -> Any:
        """One at a time, so that tasks of one job get the same; but what is being made may ask for more."""
        assert self._container is not None
        if self._asking is asyncio.current_task():
            return await self._container.amake(self._place(), kind)
        if self._turn is None:
            self._turn = asyncio.Lock()
        async with self._turn:
            self._asking = asyncio.current_task()
            try:
                return await self._container.amake(self._place(), kind)
            finally:
                self._asking = None

    def _usable_for(self, kind: Any) -> ServiceContainer:
        if self._container is None:
            raise ServiceError(f"service {shown(kind)} is not registered; none is registered")
        if threading.get_ident() != self._container.thread:
            raise ServiceError(
                f"service {shown(kind)} is asked for in another thread than the job's: get it there, and hand it over"
            )
        if self._closed:
            raise ServiceError(f"service {shown(kind)} is asked for after the attempt has ended")
        self._container.check(kind, scoped=self._context is not None)
        return self._container

    def _place(self) -> Any:
        """Where it is made: the attempt's own container, opened when first needed, or the root."""
        assert self._container is not None
        if self._context is None:
            return self._container.root
        if self._opened is None:
            self._opened = self._container.open(self._context)
        return self._opened

    # --- asked by whoever executes the attempt

    def construct(self, job: type) -> Any:
        """An instance of a job's class, given what its constructor asks for."""
        return self.get(job) if self._gives(job) else job()

    async def aconstruct(self, job: type) -> Any:
        return await self.aget(job) if self._gives(job) else job()

    def _gives(self, job: type) -> bool:
        return self._container is not None and self._container.knows(job)

    @property
    def lasting_tasks(self) -> Collection[asyncio.Task[Any]]:
        """Tasks that singletons have started, and still need when the attempt has ended."""
        return self._container.tasks if self._container is not None else ()

    def close(self, error: BaseException | None) -> None:
        """End what was made for this attempt, which ended with `error`.

        Raises:
            Exception: the one thing that went wrong, or a group of several.
        """
        if self._opened is None:
            self._closed = True
        elif self._loop_context is not None:
            self._on_loop(self.aclose(error))
        else:
            _finish(self.aclose(error))

    async def aclose(self, error: BaseException | None) -> None:
        self._closed = True
        opened, self._opened = self._opened, None
        if opened is not None:
            await _close(opened, error)

    def _on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        assert self._container is not None
        if self._loop_context is None:
            self._loop_context = contextvars.copy_context()
        return self._container.runner.run(work, context=self._loop_context)


NO_SERVICES = ServiceScope()
"""For all attempts of an application that has none: nothing is kept in it."""


async def _close(opened: Any, error: BaseException | None) -> None:
    raised: Exception | None = None
    try:
        await opened.close(error)
    except ExceptionGroup as group:  # dishka's own
        raised = group.exceptions[0] if len(group.exceptions) == 1 else group
    if raised is not None:
        raise raised


def _finish(work: Coroutine[Any, Any, None]) -> None:
    """Run what is written as a coroutine, and has nothing to wait for."""
    try:
        work.send(None)
    except StopIteration:
        return
    work.close()
    raise RuntimeError("a service that no async factory made has waited for the event loop")


def _on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _name(kind: Any) -> str:
    return str(getattr(kind, "__name__", kind))


def open_services(
    services: Services,
    jobs: Iterable[JobRegistration],
    activation: JobActivation,
    runner: asyncio.Runner,
    expected: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> ServiceContainer | None:
    """What makes the services; None if there are none, and no job asks for any.

    Raises:
        JobDefinitionError: as `ServiceContainer`.
    """
    jobs = list(jobs)
    if not services and not any(parameter.required for job in jobs for parameter in job.constructor):
        return None
    from .container import ServiceContainer  # dishka takes a while to import

    return ServiceContainer(services, jobs, activation, runner, expected)
