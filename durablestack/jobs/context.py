"""What a job may know about the run it is executing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cached_property
from time import time  # a job may put something else in its place
from uuid import UUID

from msgspec import Struct, field

from durablestack.errors import RunCancelled

from .scope import NO_SERVICES, ServiceScope


class CancelFlag:
    """Set by the listener thread of the child, read by the job's thread.

    `noticed` tells whether the job came to know of it: a job that returns without having noticed has
    done its work, one that returns after noticing has given up.
    """

    _lock = threading.Lock()
    """Over the three below. One for all flags, for it is never held for long."""
    _is_set = False
    _awaited: threading.Event | None = None  # most jobs never wait for it
    _interrupt: Callable[[], None] | None = None
    noticed = False

    def set(self) -> None:
        with self._lock:
            self._is_set = True
            awaited, interrupt = self._awaited, self._interrupt
        if awaited is not None:
            awaited.set()
        if interrupt is not None:
            interrupt()

    def interrupt_with(self, interrupt: Callable[[], None] | None) -> None:
        """Name what is to be called once the flag is set; called at once if it is set already."""
        with self._lock:
            self._interrupt = interrupt
            already_set = self._is_set
        if already_set and interrupt is not None:
            interrupt()

    def check(self) -> bool:
        if self._is_set:
            self.noticed = True
            return True
        return False

    def wait(self, timeout_seconds: float | None) -> bool:
        with self._lock:
            if self._awaited is None:
                self._awaited = threading.Event()
            if self._is_set:
                self._awaited.set()
            awaited = self._awaited
        awaited.wait(timeout_seconds)
        return self.check()


class JobContext(Struct, kw_only=True, eq=False, dict=True, weakref=True):
    """The run that a job is executing, handed to `execute` as its last argument.

    Attributes:
        run_id: the run. Stable over all attempts, so it serves as an idempotency key for side effects.
        job_name: the name under which the job is registered.
        attempt: number of this attempt, 1 for the first. An attempt that was given back counts again as the same.
        max_attempts: how many attempts there are, this one and the first included.
        scheduled_for: when the run was due: an aware datetime in UTC.
        started_at: when this attempt began, by the clock of this machine: an aware datetime in UTC.
        services: the services of the application: `context.services.get(Mailer)`.
    """

    run_id: UUID
    job_name: str
    attempt: int
    max_attempts: int
    scheduled_for: datetime
    services: ServiceScope = NO_SERVICES
    _cancel_flag: CancelFlag = field(default_factory=CancelFlag)
    _started_at_seconds: float = field(default_factory=time)

    @cached_property
    def started_at(self) -> datetime:
        return datetime.fromtimestamp(self._started_at_seconds, UTC)

    @property
    def cancelled(self) -> bool:
        """Whether this attempt should end: the run was cancelled, timed out, or the worker is stopping.

        A job that sees it has `cancel_grace_seconds` to leave; then its process is ended.
        An `async` job need not look: it is cancelled as asyncio tasks are.
        """
        return self._cancel_flag.check()

    def raise_if_cancelled(self) -> None:
        """Leave the job here if it should end.

        Raises:
            RunCancelled: it should.
        """
        if self.cancelled:
            raise RunCancelled(f"run {self.run_id} is to end")

    def wait_cancelled(self, timeout_seconds: float | None = None) -> bool:
        """Sleep up to `timeout_seconds` (None: for ever), but no longer than until `cancelled`; return `cancelled`."""
        return self._cancel_flag.wait(timeout_seconds)

    def __repr__(self) -> str:
        return f"<JobContext {self.job_name} run {self.run_id} attempt {self.attempt}/{self.max_attempts}>"
