"""A Redis of our own, as durable as its documentation recommends; and the few words that one has to say to it.

From "Redis persistence" (redis.io/docs/latest/operate/oss_and_stack/management/persistence): `appendonly yes` with
`appendfsync everysec`, the suggested default: up to a second of acknowledged writes is lost with the machine. That is
less than the databases here promise, which write through at each commit.
"""

from __future__ import annotations

import functools
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from servers import (
    START_TIMEOUT_SECONDS,
    STOP_TIMEOUT_SECONDS,
    ServerAbsent,
    ServerFailed,
    free_port,
    spawn,
    start_guard,
)

SETTINGS = {"bind": "127.0.0.1", "appendonly": "yes", "appendfsync": "everysec", "save": "", "daemonize": "no"}
ANSWER_SECONDS_MAX = 10.0


class Redis:
    """A server that answers, and a connection to it."""

    def __init__(self, port: int, pid: int) -> None:
        self.port, self.pid = port, pid
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_SECONDS_MAX)
        self._lines = self._socket.makefile("rb")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @functools.cached_property
    def version(self) -> str:
        return next(line for line in self.ask("info server").split() if line.startswith("redis_version:"))[14:]

    def ask(self, command: str) -> str:
        """The answer to a command that is answered with one value; none is empty.

        Raises:
            ServerFailed: it is answered with an error.
        """
        self._socket.sendall(command.encode() + b"\r\n")
        line = self._lines.readline().decode().rstrip()
        if line.startswith("-"):
            raise ServerFailed(f"{command}: {line}")
        if not line.startswith("$"):
            return line[1:]
        if line == "$-1":
            return ""
        return self._lines.read(int(line[1:]) + 2).decode().rstrip()

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@contextmanager
def redis_server() -> Iterator[Redis]:
    """A server with a folder of its own; both are gone in the end.

    Raises:
        ServerAbsent: there is no redis-server.
        ServerFailed: it does not start.
    """
    binary = shutil.which("redis-server")
    if binary is None:
        raise ServerAbsent("there is no redis-server (package redis-server)")
    with tempfile.TemporaryDirectory(prefix="durablestack-redis-") as folder:
        settings = {**SETTINGS, "port": str(free_port()), "dir": folder}
        words = [word for name, setting in settings.items() for word in (f"--{name}", setting)]
        with open(Path(folder) / "server.log", "wb") as log:
            process = spawn([binary, *words], Path(folder), None, log)
        guard = start_guard(process.pid, Path(folder), "TERM")
        try:
            redis = _connected(process, int(settings["port"]))
            yield redis
            redis.close()
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            guard.kill()
            guard.communicate()


def _connected(process: subprocess.Popen[bytes], port: int) -> Redis:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerFailed(f"redis-server ended with {process.returncode}")
        try:
            return Redis(port, process.pid)
        except ConnectionRefusedError:
            time.sleep(0.02)
    raise ServerFailed(f"redis-server does not answer within {START_TIMEOUT_SECONDS} s")
