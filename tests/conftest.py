"""What every test can have: databases, a table prefix of its own, and the certainty that no process is left behind.

xdist controller ── starts each server once ── workerinput ──> workers: Databases(handed over)
no xdist         ── starts a server when the first test asks for it
"""

import multiprocessing
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import pytest

from mariadb import MariaDbServer, provide_mysql, start_mariadb
from processes import children_of, command_line, descendants
from servers import (
    Absent,
    Available,
    PostgresServer,
    ServerAbsent,
    provide_postgres,
    provide_sqlserver,
    start_postgres,
)

PROVIDERS: dict[str, Callable[[], Available | Absent]] = {
    "PostgreSQL": provide_postgres,
    "MySQL": provide_mysql,
    "SQL Server": provide_sqlserver,
}

OwnServer = TypeVar("OwnServer", PostgresServer, MariaDbServer)

WORKERINPUT_KEY = "durablestack_databases"
CHILDREN_GRACE_SECONDS = 2.0
LASTING_CHILDREN = (b"multiprocessing.resource_tracker", b"multiprocessing.forkserver")


class Databases:
    """The databases of this session, by name; in an xdist worker all of them were handed over."""

    def __init__(self, handed_over: dict[str, dict[str, str]] | None = None) -> None:
        self._found: dict[str, Available | Absent] = {}
        for name, found in (handed_over or {}).items():
            self._found[name] = Available(found["dsn"]) if "dsn" in found else Absent(found["reason"])

    def get(self, name: str) -> Available | Absent:
        if name not in self._found:
            self._found[name] = PROVIDERS[name]()
        return self._found[name]

    def hand_over(self) -> dict[str, dict[str, str]]:
        """All of them, in words that travel to a worker."""
        plain = {}
        for name in PROVIDERS:
            match self.get(name):
                case Available(dsn=dsn):
                    plain[name] = {"dsn": dsn}
                case Absent(reason=reason):
                    plain[name] = {"reason": reason}
        return plain

    def not_examined(self) -> dict[str, str]:
        return {name: found.reason for name, found in self._found.items() if isinstance(found, Absent)}

    def pids(self) -> frozenset[int]:
        """The servers that live as long as the session."""
        servers = (found.server for found in self._found.values() if isinstance(found, Available))
        return frozenset(pid for server in servers if server is not None for pid in server.pids)

    def close(self) -> None:
        for found in self._found.values():
            if isinstance(found, Available) and found.server is not None:
                found.server.close()


DATABASES = pytest.StashKey[Databases]()


def pytest_configure(config: pytest.Config) -> None:
    workerinput = getattr(config, "workerinput", None)
    config.stash[DATABASES] = Databases(workerinput[WORKERINPUT_KEY] if workerinput else None)


@pytest.hookimpl(optionalhook=True)  # xdist's, and xdist may be absent
def pytest_configure_node(node: Any) -> None:
    """In the controller, before each worker starts; the first one waits for the servers."""
    node.workerinput[WORKERINPUT_KEY] = node.config.stash[DATABASES].hand_over()


def pytest_unconfigure(config: pytest.Config) -> None:
    if DATABASES in config.stash:
        config.stash[DATABASES].close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Soaks take minutes: they run when they are asked for, with -m."""
    if not config.option.markexpr:
        soaks = [item for item in items if item.get_closest_marker("soak")]
        items[:] = [item for item in items if item not in soaks]
        config.hook.pytest_deselected(items=soaks)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    not_examined = config.stash[DATABASES].not_examined()
    if not_examined:
        terminalreporter.section("not examined", yellow=True)
        for name, reason in not_examined.items():
            terminalreporter.line(f"{name}: {reason}")


@pytest.fixture(scope="session")
def databases(request: pytest.FixtureRequest) -> Databases:
    return request.config.stash[DATABASES]


@pytest.fixture(scope="session")
def postgres_dsn(databases: Databases) -> str:
    """The PostgreSQL that all tests share: keep to your `table_prefix`, and break nothing."""
    return dsn_or_skip(databases, "PostgreSQL")


@pytest.fixture(scope="session")
def mysql_dsn(databases: Databases) -> str:
    """The MySQL or MariaDB that all tests share: keep to your `table_prefix`, and break nothing."""
    return dsn_or_skip(databases, "MySQL")


@pytest.fixture(scope="session")
def sqlserver_dsn(databases: Databases) -> str:
    """The SQL Server that all tests share: keep to your `table_prefix`, and break nothing."""
    return dsn_or_skip(databases, "SQL Server")


def dsn_or_skip(databases: Databases, name: str) -> str:
    match databases.get(name):
        case Available(dsn=dsn):
            return dsn
        case Absent(reason=reason):
            pytest.skip(f"{name}: {reason}")


@pytest.fixture
def own_postgres() -> Iterator[Callable[[], PostgresServer]]:
    """A PostgreSQL of this test alone, about a second per call: restart it, break it."""
    with own_servers("PostgreSQL", start_postgres) as start:
        yield start


@pytest.fixture
def own_mariadb() -> Iterator[Callable[[], MariaDbServer]]:
    """A MariaDB of this test alone, about a second per call: restart it, break it."""
    with own_servers("MariaDB", start_mariadb) as start:
        yield start


@contextmanager
def own_servers(name: str, start: Callable[[], OwnServer]) -> Iterator[Callable[[], OwnServer]]:
    """A way to start servers, which are gone after the block."""
    servers: list[OwnServer] = []

    def start_one() -> OwnServer:
        try:
            server = start()
        except ServerAbsent as absent:
            pytest.skip(f"{name} of our own: {absent}")
        servers.append(server)
        return server

    try:
        yield start_one
    finally:
        for server in servers:
            server.close()


@pytest.fixture
def anyio_backend() -> str:
    """What coroutines of tests run on, as the supervisor does."""
    return "asyncio"


@pytest.fixture
def table_prefix() -> str:
    return f"t{secrets.token_hex(5)}_"


@pytest.fixture(autouse=True)
def no_process_left_behind(databases: Databases) -> Iterator[None]:
    """Set up first and torn down last, so that it sees what the other fixtures forgot."""
    before = descendants(os.getpid())
    yield
    deadline = time.monotonic() + CHILDREN_GRACE_SECONDS
    while (left := _left_behind(before, databases)) and time.monotonic() < deadline:
        time.sleep(0.02)
    if left:
        described = [f"{pid} {_describe(pid)}" for pid in sorted(left)]
        _kill(left)
        pytest.fail("processes left behind:\n" + "\n".join(described), pytrace=False)


def _left_behind(before: frozenset[int], databases: Databases) -> frozenset[int]:
    now = descendants(os.getpid(), leave_out=databases.pids())
    lasting = frozenset(pid for pid in now if _lasts(pid))
    return now - before - lasting


def _lasts(pid: int) -> bool:
    """Our own resource tracker or forkserver; a forkserver's children have its command line, not its parent."""
    return pid in children_of(os.getpid()) and any(name in command_line(pid) for name in LASTING_CHILDREN)


def _describe(pid: int) -> str:
    return command_line(pid).decode(errors="replace").strip()[:200] or "(zombie: ended, but nobody waited for it)"


def _kill(pids: frozenset[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    multiprocessing.active_children()  # reaps those that are ours
