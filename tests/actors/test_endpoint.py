"""The endpoint: what it answers, and what strangers may do to it."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from functools import partial
from urllib.error import HTTPError

import anyio
import pytest
from anyio import to_thread

from durablestack import OptionsError
from durablestack.supervisor import endpoint as endpoint_module
from durablestack.supervisor.endpoint import Answer, Endpoint

pytestmark = pytest.mark.anyio

HUGE = b"x" * 50_000_000
ANSWERS: dict[str, Callable[[], Answer]] = {
    "/hello": lambda: Answer(b"hello\n"),
    "/huge": lambda: Answer(HUGE),
    "/broken": lambda: Answer(b"%d" % (1 // 0)),
}


@asynccontextmanager
async def listening() -> AsyncIterator[Endpoint]:
    endpoint = Endpoint("127.0.0.1", 0, ANSWERS)
    async with endpoint.listening():
        yield endpoint


def get(port: int, path: str, method: str = "GET") -> tuple[int, bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.read()
    except HTTPError as error:
        with error:
            return error.code, error.read()


def connected(port: int, sent: bytes) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=30)
    client.sendall(sent)
    return client


def said(client: socket.socket) -> bytes:
    """All that the endpoint says before it closes the connection."""
    received = b""
    with closing(client):
        try:
            while chunk := client.recv(65_536):
                received += chunk
        except ConnectionResetError:  # it closed without having read all that we sent
            pass
    return received


async def asked(port: int, path: str, method: str = "GET") -> tuple[int, bytes]:
    return await to_thread.run_sync(partial(get, port, path, method))


async def answered(port: int, sent: bytes) -> bytes:
    return await to_thread.run_sync(lambda: said(connected(port, sent)))


async def test_what_is_asked_for_is_answered_and_nothing_else_is() -> None:
    async with listening() as endpoint:
        assert await asked(endpoint.port, "/hello") == (200, b"hello\n")
        assert await asked(endpoint.port, "/hello?probe=1") == (200, b"hello\n")
        assert (await asked(endpoint.port, "/"))[0] == 404
        assert (await asked(endpoint.port, "/hello/../hello"))[0] == 404
        for method in ("POST", "HEAD", "DELETE"):
            assert (await asked(endpoint.port, "/hello", method))[0] == 405


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\r\n\r\n", b"400"),
        (b"GET /hello\r\n\r\n", b"400"),
        (b"GET /hello HTTP/2.0\r\n\r\n", b"400"),
        (b"GET  /hello HTTP/1.1\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\xff\xfe\r\n\r\n", b"400"),
        (b"GET /h\xe4llo HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /hello HTTP/1.1\r\nX: " + b"y" * 100_000, b"431"),
        (b"\0" * 100_000, b"431"),
    ],
)
async def test_garbage_is_refused_and_the_next_one_is_answered(sent: bytes, status: bytes) -> None:
    async with listening() as endpoint:
        answer = await answered(endpoint.port, sent)
        assert answer.startswith(b"HTTP/1.1 " + status) or (len(sent) > 8_192 and answer == b"")  # reset, unread
        assert await asked(endpoint.port, "/hello") == (200, b"hello\n")


async def test_an_answer_that_cannot_be_given_costs_its_own_connection_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with listening() as endpoint:
        assert (await asked(endpoint.port, "/broken"))[0] == 500
        assert "ZeroDivisionError" in caplog.text
        assert await asked(endpoint.port, "/hello") == (200, b"hello\n")


async def test_who_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "_CONNECTION_SECONDS_MAX", 0.05)
    async with listening() as endpoint:
        assert await answered(endpoint.port, b"") == b""
        assert await answered(endpoint.port, b"GET /hello HTTP/1.1\r\nX") == b""


async def test_who_does_not_read_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "_CONNECTION_SECONDS_MAX", 0.05)
    async with listening() as endpoint:
        client = await to_thread.run_sync(connected, endpoint.port, b"GET /huge HTTP/1.1\r\n\r\n")
        with anyio.fail_after(30):
            while not endpoint._connections:
                await anyio.sleep(0.01)
            while endpoint._connections:
                await anyio.sleep(0.01)
        assert len(await to_thread.run_sync(said, client)) < len(HUGE)


async def test_many_that_say_nothing_keep_nobody_from_asking() -> None:
    async with listening() as endpoint:
        idlers = [await to_thread.run_sync(connected, endpoint.port, b"GET /") for _ in range(100)]
        for _ in range(10):
            assert await asked(endpoint.port, "/hello") == (200, b"hello\n")
            idlers.append(await to_thread.run_sync(connected, endpoint.port, b""))
        assert len(endpoint._connections) <= endpoint_module._CONNECTIONS_MAX
        assert await to_thread.run_sync(said, idlers[0]) == b""  # it had to make room
        for idler in idlers:
            idler.close()


async def test_who_is_connected_when_it_closes_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "_CONNECTION_SECONDS_MAX", 300)
    async with listening() as endpoint:
        client = await to_thread.run_sync(connected, endpoint.port, b"GET /")
        with anyio.fail_after(30):
            while not endpoint._connections:
                await anyio.sleep(0.01)
    assert await to_thread.run_sync(said, client) == b""
    with pytest.raises(ConnectionRefusedError):
        connected(endpoint.port, b"")


async def test_a_port_that_is_taken_and_a_host_that_is_not_ours_are_refused() -> None:
    async with listening() as endpoint:
        with pytest.raises(OptionsError, match=rf"monitoring\.port = {endpoint.port}: cannot listen .* in use"):
            async with Endpoint("127.0.0.1", endpoint.port, ANSWERS).listening():
                pytest.fail("listening")
    for host in ("192.0.2.1", "no.such.host.invalid", "x" * 200):
        with pytest.raises(OptionsError, match="cannot listen on"):
            async with Endpoint(host, 0, ANSWERS).listening():
                pytest.fail("listening")
