"""What the nemesis wants of a database: ended, frozen, locked, filled; and with an audit that it writes itself.

The audit is a trigger: each change of a run's status, attempt or token is written down by the transaction that makes
it. What the database did is then known from the database, not from those who asked it to.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

RUNS = "durable_stack_job_runs"
AUDIT = "audit"
ADMIN_TIMEOUT_SECONDS = 15

AUDIT_COLUMNS = (
    "run_id, at, before_status, after_status, before_attempt, after_attempt, before_token, after_token, error_type"
)
AUDIT_SELECT = f"select {AUDIT_COLUMNS} from {AUDIT} order by seq"


class Absent(Exception):
    """This fault cannot be injected here, and the message says why."""


class Database(Protocol):
    """What the nemesis wants of a database. Blocks of `with` undo at their end what they did."""

    url: str
    port: int | None

    def audit(self) -> None: ...

    def audited(self) -> list[tuple[Any, ...]]: ...

    def down(self, *, crash: bool) -> contextlib.AbstractContextManager[None]: ...

    def frozen(self) -> contextlib.AbstractContextManager[None]: ...

    def end_connections(self) -> None: ...

    def read_only(self) -> contextlib.AbstractContextManager[None]: ...

    def runs_locked(self) -> contextlib.AbstractContextManager[None]: ...

    def disk_full(self) -> contextlib.AbstractContextManager[None]: ...

    def close(self) -> None: ...


@contextmanager
def stopped_while(pids: Callable[[], Sequence[int]]) -> Iterator[None]:
    """Freeze processes, the first one first, so that it makes no more of them."""
    frozen: list[int] = []
    try:
        while more := [pid for pid in pids() if pid not in frozen]:
            for pid in more:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
                frozen.append(pid)
        yield
    finally:
        for pid in reversed(frozen):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
