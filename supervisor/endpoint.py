"""Answers a few plain questions over HTTP: GET, one per connection.

    connection (few; the oldest makes room) --head (small, soon)--> answer --> closed

Whoever connects may be slow, hostile, or no browser at all: it costs us a socket for a few seconds, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus

from msgspec import Struct

from durablestack.errors import OptionsError

log = logging.getLogger(__name__)

_HEAD_BYTES_MAX = 8_192
_CONNECTION_SECONDS_MAX = 5.0
_CONNECTIONS_MAX = 16


class Answer(Struct, frozen=True):
    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    content_type: str = "text/plain; charset=utf-8"


class Endpoint:
    """`answers` has a function for each path; it is called on the event loop, and should not take long."""

    def __init__(self, host: str, port: int, answers: Mapping[str, Callable[[], Answer]]) -> None:
        self.host = host
        self.port = port  # 0 until it listens, if any free port will do
        self._answers = answers
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}  # the oldest first

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Listen while the block lasts.

        Raises:
            OptionsError: the port is taken, or the host is not ours.
        """
        server = await self._listen()
        try:
            yield
        finally:
            server.close()
            for task in list(self._connections):
                self._drop(task)

    async def _listen(self) -> asyncio.Server:
        try:
            server = await asyncio.start_server(
                self._connected, self.host, self.port, limit=_HEAD_BYTES_MAX, backlog=_CONNECTIONS_MAX
            )
        except (OSError, UnicodeError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise OptionsError(f"monitoring.port = {self.port}: cannot listen on {self.host!r}: {why}") from None
        self.port = server.sockets[0].getsockname()[1]
        paths = ", ".join(self._answers)
        log.info("listening on http://%s:%d: %s", f"[{self.host}]" if ":" in self.host else self.host, self.port, paths)
        return server

    # --- a connection

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= _CONNECTIONS_MAX:  # who has something to ask does so at once
            self._drop(next(iter(self._connections)))
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections[task] = writer
        task.add_done_callback(self._drop)

    def _drop(self, task: asyncio.Task[None]) -> None:
        writer = self._connections.pop(task, None)
        if writer is not None:
            writer.transport.abort()
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(high=0)  # so that `drain` waits until all has left
        try:
            async with asyncio.timeout(_CONNECTION_SECONDS_MAX):
                writer.write(_response(await self._answer(reader)))
                await writer.drain()
        except (EOFError, OSError):  # it went away, or did not get to the point; TimeoutError is an OSError
            return

    async def _answer(self, reader: asyncio.StreamReader) -> Answer:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        match head.partition(b"\r\n")[0].decode("latin-1").split(" "):
            case ["GET", target, "HTTP/1.1" | "HTTP/1.0"]:
                return self._answer_to(target.partition("?")[0])
            case [_, _, "HTTP/1.1" | "HTTP/1.0"]:
                return _refusal(HTTPStatus.METHOD_NOT_ALLOWED)
            case _:
                return _refusal(HTTPStatus.BAD_REQUEST)

    def _answer_to(self, path: str) -> Answer:
        answer = self._answers.get(path)
        if answer is None:
            return _refusal(HTTPStatus.NOT_FOUND)
        try:
            return answer()
        except Exception:  # whatever cannot be told, the supervisor goes on
            log.exception("%s could not be answered", path)
            return _refusal(HTTPStatus.INTERNAL_SERVER_ERROR)


def _refusal(status: HTTPStatus) -> Answer:
    return Answer(f"{status.phrase}\n".encode(), status)


def _response(answer: Answer) -> bytes:
    head = (
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}\r\n"
        f"Content-Type: {answer.content_type}\r\n"
        f"Content-Length: {len(answer.body)}\r\n"
        + ("Allow: GET\r\n" if answer.status is HTTPStatus.METHOD_NOT_ALLOWED else "")
        + "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode("latin-1") + answer.body
