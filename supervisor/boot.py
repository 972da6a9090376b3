"""Starts a child, and waits for its word that it is ready.

start --> Ready, and it knows our jobs --> it is ready
            |
            +--> BootFailed, other jobs, dead, or the startup timeout --> BootFailed: the slot tries again later
                                                                      --> or no child could ever start: give up
"""

from __future__ import annotations

import anyio

from durablestack.errors import JobDefinitionError, TargetError

from . import wire
from .child import EXIT_REENTERED
from .death import Death
from .process import ChildProcess
from .slots import Slots
from .starter import Starter


class BootFailed(Exception):
    """A child could not be started, or could not load the application. No run is to blame."""


class Boot:
    """Of one child after the other. `on_ready` and `on_failure` tell it what the one that is starting says."""

    def __init__(self, slots: Slots, starter: Starter, timeout_seconds: float) -> None:
        self._slots = slots
        self._starter = starter
        self._timeout_seconds = timeout_seconds
        self._answered = anyio.Event()
        self._failure: wire.BootFailed | None = None
        self._ready: wire.Ready | None = None

    async def start(self, child: ChildProcess) -> None:
        """Start the child, and wait until it is ready. Raises BootFailed if it will not be; JobDefinitionError or
        TargetError if none ever would."""
        self._answered, self._failure, self._ready = anyio.Event(), None, None
        try:
            with anyio.fail_after(self._timeout_seconds):
                await child.start()
                death = await self._answered_or_dead(child)
        except TimeoutError:
            if not self._slots.busy:
                self._starter.unstick()
            raise BootFailed(f"it was not ready within {self._timeout_seconds:g} s") from None
        except (OSError, EOFError, RuntimeError) as error:  # RuntimeError: no thread, or no process, can be had
            raise BootFailed(f"{type(error).__name__}: {error}") from error
        if self._failure is not None:
            raise self._refused(self._failure)
        if death is not None:
            raise _died(child, death)
        child.tells_beginnings = self._ready is not None and self._ready.tells_beginnings

    def on_ready(self, ready: wire.Ready) -> None:
        self._ready = ready
        missing = self._slots.job_names.difference(ready.job_names)
        if missing:
            message = f"it does not know the jobs {', '.join(sorted(missing))}, which the supervisor has registered"
            self._failure = wire.BootFailed("JobsDiffer", message, "")
        self._answered.set()

    def on_failure(self, failure: wire.BootFailed) -> None:
        self._failure = failure
        self._answered.set()

    async def _answered_or_dead(self, child: ChildProcess) -> Death | None:
        """Wait until the child says whether it is ready; return its death if that comes first."""
        death: Death | None = None
        async with anyio.create_task_group() as waiting:

            async def watch_death() -> None:
                nonlocal death
                death = await child.dead()
                waiting.cancel_scope.cancel()

            waiting.start_soon(watch_death)
            await self._answered.wait()
            waiting.cancel_scope.cancel()
        return None if self._answered.is_set() else death

    def _refused(self, failure: wire.BootFailed) -> BootFailed | JobDefinitionError:
        if failure.final and not self._slots.has_started:
            return JobDefinitionError(failure.error_message)
        return BootFailed(f"{failure.error_type}: {failure.error_message}\n{failure.error_detail}".strip())


def _died(child: ChildProcess, death: Death) -> BootFailed | TargetError:
    if death.exit_code == EXIT_REENTERED:
        return TargetError(
            "the program starts a supervisor again in each child that imports it; put what it does under "
            "if __name__ == '__main__':"
        )
    stderr = child.take_output().stderr_tail or "What it said stands above, if it said anything."
    return BootFailed(f"it ended with {death.how} before it was ready. {stderr}")
