"""Connections that a fork does not take along: two processes that speak on one socket understand nobody.

A web server that loads the application, enqueues, and then forks its workers is the common case.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from ..steps import Result, Waits
from .transaction import Connections, Transaction

if TYPE_CHECKING:
    from ..contract import Listener

_inherited: list[Connections] = []
"""Of the process that we were forked from: kept, since whatever is let go of is closed, at the other end too."""


class PerProcess:
    """Connections that are opened anew, by `connect`, in a process that was forked since."""

    def __init__(self, connect: Callable[[], Connections]) -> None:
        self._connect = connect
        self._connections = connect()
        self.driver = self._connections.driver
        self.execute_many = self._connections.execute_many
        self._pid = os.getpid()
        self._lock = threading.Lock()

    def prepare(self) -> None:
        self._ours().prepare()

    def transaction(self) -> AbstractContextManager[Transaction]:
        return self._ours().transaction()

    def waits_of_transaction(self, say: Callable[[Transaction], Result]) -> Waits[Result] | None:
        return self._ours().waits_of_transaction(say)

    def run_alone(self, statement: str, parameters: Mapping[str, Any]) -> None:
        self._ours().run_alone(statement, parameters)

    def read(self) -> AbstractContextManager[Transaction]:
        return self._ours().read()

    def listen(self, channel: str) -> Listener | None:
        return self._ours().listen(channel)

    def close(self) -> None:
        self._ours().close()

    def _ours(self) -> Connections:
        if self._pid != os.getpid():
            with self._lock:  # held by nobody at the fork but for an instant, within which nothing is waited for
                if self._pid != os.getpid():
                    _inherited.append(self._connections)
                    self._connections, self._pid = self._connect(), os.getpid()
        return self._connections
