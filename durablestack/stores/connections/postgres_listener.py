"""Hears the notifications of PostgreSQL, on a connection of its own.

    open      listen "<channel>_<of its own>"
    works     pg_notify of that, by another connection: behind a pooler of transactions it never comes
    heard     listen "<channel>", then whatever comes

By another connection, since a session hears what it has sent itself, whoever it belongs to by then.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio
from anyio import to_thread

from durablestack.errors import StoreError, StoreUnavailable

from ..hints import WITHHELD

if TYPE_CHECKING:
    import psycopg

_ANSWER_WITHIN_SECONDS = 2.0


class PostgresListener:
    """`tell` notifies by a connection of the pool; `translated` makes our error of the driver's."""

    def __init__(
        self,
        conninfo: str,
        channel: str,
        *,
        tell: Callable[[str], None],
        translated: Callable[[psycopg.Error], StoreError],
    ) -> None:
        import psycopg

        self._errors = psycopg.Error
        self._connection_class = _bounded_connection_class()
        self._conninfo = conninfo
        self._channel = channel
        self._own_channel = f"{channel}_{secrets.token_hex(4)}"  # one for good: what a pooler keeps of it stays little
        self._tell = tell
        self._translated = translated
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._listens = False
        self._answered = False  # to what we sent ourselves
        self._hints: set[bool] = set()  # since it was last asked: whether they say that others are withheld

    async def open(self) -> None:
        try:
            self._connection = await self._connection_class.connect(
                self._conninfo, autocommit=True, prepare_threshold=None
            )
        except self._errors as error:
            raise self._translated(error) from error
        self._connection.add_notify_handler(lambda notify: self._note(notify.channel, notify.payload))
        self._listens = False
        await self._listen_to(self._own_channel)

    async def works(self) -> bool:
        self._answered = False
        await to_thread.run_sync(self._tell, self._own_channel)
        with anyio.move_on_after(_ANSWER_WITHIN_SECONDS):
            while not self._answered:
                await self._receive()
        return self._answered

    async def heard(self) -> bool:
        if not self._listens:
            await self._listen_to(self._channel)
            self._listens = True
            return True  # of what came before nothing was heard
        while not self._hints:
            await self._receive()
        hints, self._hints = self._hints, set()
        return any(hints)

    def _note(self, channel: str, text: str) -> None:
        if channel == self._own_channel:
            self._answered = True
        else:
            self._hints.add(text == WITHHELD)

    async def _listen_to(self, channel: str) -> None:
        with anyio.CancelScope(shield=True):  # bounded; an interrupted statement would be cancelled at length
            try:
                await self._opened.execute(f'listen "{channel}"'.encode())  # the prefix in it has letters and digits
            except self._errors as error:
                raise self._translated(error) from error

    async def _receive(self) -> None:
        """Wait for whatever comes on the connection."""
        pgconn = self._opened.pgconn
        try:
            await anyio.wait_readable(pgconn.socket)
            pgconn.consume_input()
            while notify := pgconn.notifies():
                self._note(notify.relname.decode(), notify.extra.decode())
        except self._errors as error:
            raise self._translated(error) from error

    @property
    def _opened(self) -> psycopg.AsyncConnection[Any]:
        if self._connection is None or self._connection.closed:
            raise StoreUnavailable("the connection on which notifications come is closed")
        return self._connection

    async def close(self) -> None:
        if self._connection is not None:
            with anyio.CancelScope(shield=True):  # nothing is waited for
                await self._connection.close()
        self._connection = None
        self._hints.clear()


def _bounded_connection_class() -> type[psycopg.AsyncConnection[Any]]:
    import psycopg

    class BoundedConnection(psycopg.AsyncConnection[Any]):
        """Gives a silent server up."""

        async def wait(self, gen: Any, *args: Any, **keywords: Any) -> Any:
            try:
                return await super().wait(gen, *args, **{**keywords, "timeout": _ANSWER_WITHIN_SECONDS})
            except psycopg.errors._WaitTimeout:
                await self.close()
                raise psycopg.OperationalError(f"no answer within {_ANSWER_WITHIN_SECONDS:g} s") from None

    return BoundedConnection
