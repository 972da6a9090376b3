"""A MariaDB of our own for the tests, in the manner of `servers`: a folder, a process, and a guard.

provide_mysql() ── DSN in the environment ──> Available(dsn)
      │
      └─ start_mariadb() ─ system binaries ─> Available(dsn, server)
                           └─ none work ────> Absent(reason)
"""

import atexit
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pymysql

from servers import (
    INITDB_TIMEOUT_SECONDS,
    LOG_TAIL_LINES,
    PORT_ATTEMPTS_MAX,
    START_TIMEOUT_SECONDS,
    STOP_TIMEOUT_SECONDS,
    Absent,
    Account,
    Available,
    PortTaken,
    ServerAbsent,
    ServerFailed,
    free_port,
    spawn,
    start_guard,
    unprivileged_account,
)

MYSQL_DSN_VARIABLE = "DURABLESTACK_TEST_MYSQL"
USER, DATABASE = "durablestack", "durablestack"

MARIADB_SETTINGS = {
    "bind-address": "127.0.0.1",
    "skip-name-resolve": "on",
    "skip-log-bin": "on",
    "innodb-flush-log-at-trx-commit": "0",
    "sync-binlog": "0",
    "innodb-flush-method": "nosync",
    "innodb-buffer-pool-size": "64M",
    "innodb-log-file-size": "64M",
    "max-connections": "300",
    "performance-schema": "off",
}

FIRST_STATEMENTS = f"""
create database if not exists {DATABASE};
create user if not exists {USER}@'%';
grant all on *.* to {USER}@'%' with grant option;
"""


def provide_mysql() -> Available | Absent:
    """The MySQL or MariaDB of this test session."""
    if dsn := os.environ.get(MYSQL_DSN_VARIABLE):
        return Available(dsn)
    try:
        server = start_mariadb()
    except ServerAbsent as absent:
        return Absent(str(absent))
    return Available(server.dsn, server)


def start_mariadb(settings: Mapping[str, str] = MappingProxyType({})) -> "MariaDbServer":
    """A fresh server from the system's binaries; `settings` go over MARIADB_SETTINGS."""
    if os.name != "posix":
        raise ServerAbsent(f"own servers need POSIX; name one in {MYSQL_DSN_VARIABLE}")
    server, installer = mariadb_binaries()
    if server is None or installer is None:
        raise ServerAbsent(f"no {MYSQL_DSN_VARIABLE}, and no mariadbd of the system (package mariadb-server)")
    mariadb = MariaDbServer(server, installer, settings)
    try:
        mariadb.start()
    except (ServerFailed, OSError, subprocess.SubprocessError) as error:
        mariadb.close()
        raise ServerAbsent(f"{server}: {error}") from None
    return mariadb


def mariadb_binaries() -> tuple[str | None, str | None]:
    """The server and what creates its data; the server is often not on the path of a plain user."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin", "/usr/libexec"])
    return shutil.which("mariadbd", path=path), shutil.which("mariadb-install-db", path=path)


class MariaDbServer:
    """One private server: `start` and `stop` as often as you like, `close` removes it with its data."""

    def __init__(self, binary: str, installer: str, settings: Mapping[str, str] = MappingProxyType({})) -> None:
        self._binary = binary
        self._installer = installer
        self._settings = {**MARIADB_SETTINGS, **settings}
        self._account: Account | None = None
        self._folder: Path | None = None
        self._port: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._owner_pid = os.getpid()

    @property
    def port(self) -> int:
        if self._port is None:
            raise ServerFailed("the server was never started")
        return self._port

    @property
    def dsn(self) -> str:
        return f"mysql://{USER}@127.0.0.1:{self.port}/{DATABASE}"

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

    def stop(self, first_signal: signal.Signals = signal.SIGTERM) -> None:
        """Ends the server and keeps its data; SIGKILL is a crash, from which the next start recovers."""
        if self._process is not None:
            self._end_process(first_signal)
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
            self._guard = None

    def close(self) -> None:
        """Ends the server and removes its folder."""
        self.stop(signal.SIGKILL)
        atexit.unregister(self._close_at_exit)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def log(self) -> str:
        """The last lines of the server's log."""
        lines = (self.folder / "server.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-LOG_TAIL_LINES:])

    def _create_data(self) -> None:
        self._account = unprivileged_account("mysql", "nobody")
        self._folder = Path(tempfile.mkdtemp(prefix="durablestack-mariadb-", dir=tempfile.gettempdir()))
        atexit.register(self._close_at_exit)
        (self._folder / "first.sql").write_text(FIRST_STATEMENTS)
        if self._account is not None:
            os.chown(self._folder, self._account.uid, self._account.gid)
            os.chown(self._folder / "first.sql", self._account.uid, self._account.gid)
        options = ["--skip-test-db", "--auth-root-authentication-method=normal"]
        command = [self._installer, "--no-defaults", f"--datadir={self.folder / 'data'}", *options]
        with open(self.folder / "install.log", "w+b") as log:
            process = spawn(command, self.folder, self._account, log)
            try:
                returncode = process.wait(INITDB_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                returncode = process.wait()
            if returncode != 0:
                log.seek(0)
                raise ServerFailed(f"mariadb-install-db ended with {returncode}\n{log.read().decode(errors='replace')}")

    def _start_on(self, port: int) -> None:
        files = {"datadir": "data", "socket": "socket", "pid-file": "pid", "init-file": "first.sql"}
        places = {name: str(self.folder / file) for name, file in files.items()}
        settings = {**self._settings, **places, "port": str(port)}
        # written anew at each start: what is in it tells why this start failed
        with open(self.folder / "server.log", "wb") as log:
            command = [self._binary, "--no-defaults", *(f"--{name}={value}" for name, value in settings.items())]
            self._process = spawn(command, self.folder, self._account, log)
        self._guard = start_guard(self._process.pid, self.folder, "KILL")
        known_port, self._port = self._port, port
        try:
            self._wait_until_it_answers(self._process)
        except BaseException:
            self._port = known_port
            self.stop(signal.SIGKILL)
            raise

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            if process.poll() is not None:
                kind = PortTaken if "already in use" in self.log() else ServerFailed
                raise kind(f"mariadbd ended with {process.returncode} on port {self.port}\n{self.log()}")
            if self._answers():
                return
            time.sleep(0.02)
        raise ServerFailed(f"mariadbd does not answer within {START_TIMEOUT_SECONDS} s\n{self.log()}")

    def _answers(self) -> bool:
        """Whether it is *our* server that answers on the port."""
        try:
            connection = pymysql.connect(
                host="127.0.0.1", port=self.port, user=USER, database=DATABASE, connect_timeout=5, read_timeout=5
            )
        except pymysql.Error:  # not yet up, still recovering, or no MariaDB
            return False
        with connection, connection.cursor() as cursor:
            cursor.execute("select @@datadir")
            (datadir,) = cursor.fetchone()
        return os.path.realpath(datadir) == os.path.realpath(self.folder / "data")

    def _end_process(self, first_signal: signal.Signals) -> None:
        assert self._process is not None
        for number in (first_signal, signal.SIGKILL):
            self._process.send_signal(number)
            try:
                self._process.wait(STOP_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                continue
            self._process = None
            return
        raise ServerFailed("mariadbd survives SIGKILL")

    def _close_at_exit(self) -> None:
        if os.getpid() == self._owner_pid:  # not in a fork of us
            self.close()
