"""The application inside a child: loaded, made ready for its first run, and let go of in good order."""

from __future__ import annotations

import asyncio
import inspect
import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

from msgspec import Struct

from durablestack.events import tracing
from durablestack.jobs.scope import ServiceScope, open_services
from durablestack.jobs.services import shown
from durablestack.options import JobActivation, TraceRelation
from durablestack.stack import ChildApplication, DurableStack, Hook

from .residue import Residue

FORK_SERVER_TARGETS = "DURABLESTACK_FORK_SERVER_TARGETS"
"""In the environment of a fork server when it begins, with spaces between: what it is to load for its children."""

_FLUSH_WITHIN_SECONDS = 1.0


class ChildSettings(Struct, frozen=True):
    """What a child is told of the options when it is started."""

    activation: JobActivation = JobActivation.SCOPED_PER_EXECUTION
    trace_relation: TraceRelation = TraceRelation.LINK
    worker_name: str = ""


class StartHookFailed(Exception):
    """A start hook raised. The child does not start; another one may."""


@cache
def load(targets: tuple[str, ...]) -> ChildApplication:
    """What a child needs of the application. The fork server has loaded it for all children, if it could.

    Raises:
        TargetError, JobDefinitionError: it cannot be loaded.
    """
    with _options_told():
        return DurableStack.load_application(targets)


@contextmanager
def _options_told() -> Iterator[None]:
    """The supervisor has said what there is to say of them."""
    log = logging.getLogger("durablestack.options")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


class Application:
    """The jobs that this child can execute, and the services that it makes for them.

    Raises:
        DurableStackError: the application cannot be loaded, or a service is asked for that there is not.
        StartHookFailed: a start hook raised.
    """

    def __init__(self, targets: tuple[str, ...], settings: ChildSettings, runner: asyncio.Runner) -> None:
        loaded = load(targets)
        self.settings = settings
        self.jobs = loaded.jobs
        self.runner = runner
        self.residue = Residue(runner)
        self.container = open_services(loaded.services, loaded.jobs, settings.activation, runner, self.residue.expected)
        self._stop_hooks = loaded.stop_hooks
        for hook in loaded.start_hooks:
            self._start(hook)
        self.residue.forgive()

    def _start(self, hook: Hook) -> None:
        try:
            self._call(hook)
        except BaseException as error:
            raise StartHookFailed(f"start hook {shown(hook)}: {type(error).__name__}: {error}") from error

    def leave(self) -> None:
        """Call the stop hooks, last first, and end the singletons. Whoever waits for us does not wait for long."""
        for hook in reversed(self._stop_hooks):
            _try(partial(self._call, hook))
        if self.container is not None:
            _try(self.container.close)
        tracing.flush(_FLUSH_WITHIN_SECONDS)

    def _call(self, hook: Hook) -> None:
        parameters = inspect.signature(hook).parameters.values()
        takes_services = any(p.default is p.empty and p.kind is not p.VAR_KEYWORD for p in parameters)
        result = hook(*[ServiceScope(self.container)] if takes_services else [])
        if inspect.isawaitable(result):
            self.runner.run(_awaited(result))


async def _awaited(result: Any) -> None:
    await result


def _try(call: Callable[[], object]) -> None:
    try:
        call()
    except BaseException:  # the next one has its turn all the same
        traceback.print_exc()
