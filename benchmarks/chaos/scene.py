"""The processes of a chaos run: supervisors that are started again whenever they have ended, clients, and their lines.

A seat is the place of one supervisor; each process that takes it is a life, "0.3" the third of the first seat.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.chaos.database import Database
from benchmarks.chaos_jobs import FOLDER_VARIABLE, LIFE_VARIABLE, boottime
from benchmarks.history import Exit
from durablestack import DurableStack
from processes import children_of, command_line, stat_fields
from proxy import TcpProxy

ROOT = Path(__file__).parent.parent.parent
APPLICATION = "benchmarks.chaos_jobs"
RUN_VARIABLE = "CHAOS_RUN"
START_AGAIN_AFTER_SECONDS = 0.3
STOP_WITHIN_SECONDS = 30.0
CONNECTIONS_MAX = 256
LOOK_FOR_GUARDS_SECONDS = 0.5

SETTINGS = {
    "LEASE_DURATION_SECONDS": "2.5",
    "POLL_INTERVAL_SECONDS": "0.5",
    "MAX_CONCURRENT_RUNS": "3",
    "RETRY_DELAY": "0.2",
    "OPERATION_TIMEOUT_SECONDS": "2",
    "CANCEL_GRACE_SECONDS": "0.5",
    "TERMINATE_GRACE_SECONDS": "0.5",
    "SHUTDOWN_DRAIN_TIMEOUT_SECONDS": "1",
    "RESTART_LIMIT": "10000",
}


class Seat:
    """One supervisor after the other, all of one name."""

    def __init__(self, number: int, folder: Path, environment: dict[str, str]) -> None:
        self.number = number
        self.wanted = True
        self.exits: list[Exit] = []
        self.guards_seen: set[int] = set()  # their environment is not ours, so that we have to know them by number
        self._look_at = 0.0
        self._folder = folder
        self._environment = environment
        self._lives: list[tuple[str, float, float | None]] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._ending = ""
        self._kill_at = 0.0
        self._start_at = 0.0

    @property
    def life(self) -> str:
        return self._lives[-1][0] if self._lives else f"{self.number}.0"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def lives_between(self, began_at: float, ended_at: float) -> frozenset[str]:
        return frozenset(
            life for life, start, end in self._lives if start <= ended_at and (end is None or end >= began_at)
        )

    def tick(self) -> None:
        """Note an end, and take the seat again if that is wanted."""
        if boottime() >= self._look_at:
            self.guards_seen.update(self.guards())
            self._look_at = boottime() + LOOK_FOR_GUARDS_SECONDS
        if self._process is not None and self._process.poll() is not None:
            self._note_exit(self._process.returncode)
        if self._process is None and self.wanted and boottime() >= self._start_at:
            self._start()
        if self._process is not None and self._ending == "asked" and boottime() > self._kill_at:
            self._process.kill()

    def _note_exit(self, code: int) -> None:
        life, started_at, _ = self._lives[-1]
        now = boottime()
        self._lives[-1] = (life, started_at, now)
        self.exits.append(Exit(life=life, code=code, started_at=started_at, at=now, by=self._ending))
        self._process, self._ending, self._start_at = None, "", now + START_AGAIN_AFTER_SECONDS

    def _start(self) -> None:
        life = f"{self.number}.{len(self._lives) + 1}"
        with (self._folder / f"supervisor-{life}.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "durablestack.supervisor", APPLICATION, "--plain"],
                env={**self._environment, LIFE_VARIABLE: life, "DURABLESTACK__WORKER_NAME": f"seat-{self.number}"},
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._lives.append((life, boottime(), None))

    def kill(self) -> None:
        if self.pid is not None:
            self._ending = "killed"
            os.kill(self.pid, signal.SIGKILL)

    def ask_to_stop(self) -> None:
        """It has so long to leave; then it is killed, which the judge is told of by the code."""
        if self.pid is not None and not self._ending:
            self._ending, self._kill_at = "asked", boottime() + STOP_WITHIN_SECONDS
            os.kill(self.pid, signal.SIGTERM)

    # --- its family

    def guards(self) -> list[int]:
        return [pid for pid in self._children() if is_guard(pid)]

    def fork_servers(self) -> list[int]:
        return [pid for pid in self._children() if b"forkserver" in command_line(pid)]

    def executing(self) -> list[int]:
        """The children that execute runs: those of the fork server, without what jobs have started."""
        return sorted(child for server in self.fork_servers() for child in children_of(server))

    def _children(self) -> list[int]:
        return sorted(children_of(self.pid)) if self.pid is not None else []


class Client:
    """A process that enqueues, and is started again when it has ended."""

    def __init__(self, number: int, folder: Path, environment: dict[str, str], seed: int, rate: float) -> None:
        self.number = number
        self.wanted = True
        self.failures: list[str] = []
        self._folder = folder
        self._environment = environment
        self._seed = seed
        self._rate = rate
        self._life = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def tick(self) -> None:
        if self._process is not None and (code := self._process.poll()) is not None:
            if code not in (0, -signal.SIGKILL) and (self.wanted or code != -signal.SIGTERM):
                self.failures.append(f"client {self.number}.{self._life} ended with {code}")
            self._process = None
        if self._process is None and self.wanted:
            self._start()

    def _start(self) -> None:
        self._life += 1
        name = f"{self.number}.{self._life}"
        with (self._folder / f"client-{name}.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.chaos.client", f"{self._seed} {name}", str(self._rate)],
                env={**self._environment, "CHAOS_INTENTS": str(self._folder / "intents" / name)},
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self) -> None:
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)

    def ask_to_stop(self) -> None:
        if self.pid is not None:
            os.kill(self.pid, signal.SIGTERM)


class Scene:
    """Everything that runs. `lines` has one for each seat, then one for the clients; none for SQLite."""

    def __init__(
        self, folder: Path, database: Database, *, seed: int, supervisors: int, clients: int, rate: float
    ) -> None:
        self.folder = folder
        self.database = database
        self.lines: list[TcpProxy] = []
        self._marker = secrets.token_hex(8)
        self._cleanup = ExitStack()
        for name in ("executions", "intents"):
            (folder / name).mkdir()
        urls = [self._line() for _ in range(supervisors + 1)]
        self.seats = [Seat(number, folder, self._environment(urls[number])) for number in range(supervisors)]
        of_clients = self._environment(urls[-1])
        self.clients = [Client(number, folder, of_clients, seed, rate / clients) for number in range(clients)]
        self.stack = DurableStack(APPLICATION, database_url=database.url, operation_timeout_seconds=10.0)
        self._cleanup.callback(self.stack.close)

    def _line(self) -> str:
        """The way to the database, for one who may be cut off."""
        if self.database.port is None:
            return self.database.url
        line = self._cleanup.enter_context(TcpProxy("127.0.0.1", self.database.port, connections_max=CONNECTIONS_MAX))
        self.lines.append(line)
        return re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{line.port}", self.database.url)

    def _environment(self, url: str) -> dict[str, str]:
        """Nothing of what configures DurableStack where we run."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("DURABLESTACK__")}
        settings = {f"DURABLESTACK__{name}": value for name, value in SETTINGS.items()}
        return {
            **inherited,
            **settings,
            "DURABLESTACK__DATABASE_URL": url,
            FOLDER_VARIABLE: str(self.folder / "executions"),
            RUN_VARIABLE: self._marker,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        }

    def open(self) -> None:
        self.stack.migrate()
        self.database.audit()

    @property
    def _actors(self) -> list[Seat | Client]:
        return [*self.seats, *self.clients]

    def tick(self) -> None:
        for each in self._actors:
            each.tick()

    def stop_clients(self, within_seconds: float) -> None:
        self._stop(self.clients, within_seconds)

    def stop_supervisors(self, within_seconds: float) -> None:
        self._stop(self.seats, within_seconds)

    def _stop(self, actors: Sequence[Seat | Client], within_seconds: float) -> None:
        for each in actors:
            each.wanted = False
            each.ask_to_stop()
        deadline = boottime() + within_seconds
        while any(each.pid is not None for each in actors) and boottime() < deadline:
            time.sleep(0.02)
            self.tick()
        for each in actors:
            if each.pid is not None:
                os.kill(each.pid, signal.SIGKILL)  # of which the judge is told by the exit code
        while any(each.pid is not None for each in actors):
            time.sleep(0.02)
        self.tick()

    def left_behind(self, within_seconds: float) -> dict[int, str]:
        """Processes of this chaos run that are still alive after so long."""
        deadline = boottime() + within_seconds
        while (alive := self._alive()) and boottime() < deadline:
            time.sleep(0.1)
        return alive

    def _alive(self) -> dict[int, str]:
        """Found by the marker in their environment."""
        found: dict[int, str] = {}
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                pid = int(path.parent.name)
                if f"{RUN_VARIABLE}={self._marker}".encode() in path.read_bytes() and stat_fields(pid)[:1] != ["Z"]:
                    found[pid] = command_line(pid).decode(errors="replace").strip()
        guards = {pid for seat in self.seats for pid in seat.guards_seen if is_guard(pid)}
        return found | dict.fromkeys(guards, "a guard")

    def close(self) -> None:
        for each in self._actors:
            each.wanted = False
            each.kill()
        for _ in range(100):
            if not (left := self._alive()):
                break
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
            self.tick()
        self._cleanup.close()


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that stands still while the block lasts; its number may belong to another one when it ends."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        yield
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGSTOP)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGCONT)
        os.close(handle)


def is_guard(pid: int) -> bool:
    return any(argument.endswith(b"guard.py") for argument in command_line(pid).split())
