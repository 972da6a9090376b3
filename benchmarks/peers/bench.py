"""One peer at work: a database of its own, a diary, and workers that a service manager would keep alive.

Bench ── enqueue, cancel ──> adapter in the peer's environment ──> database <── outcomes ── Bench
  └── Worker: a process; when it ends by itself, it is started again ──> jobs ──> diary <── notes ── Bench
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypedDict

import psycopg

from benchmarks.peers.setups import Setup, interpreter
from processes import descendants
from servers import PostgresServer

RESTART_SECONDS = 0.1  # as systemd does unless told otherwise
ADAPTER_SECONDS_MAX = 60.0
READY_SECONDS_MAX = 60.0


class Work(TypedDict):
    key: str
    kind: str
    seconds: float


class Note(NamedTuple):
    """A line of the diary: see hostile.py."""

    key: str
    execution: str
    what: str
    at: float


class Outcome(NamedTuple):
    status: str
    attempts: int


def boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Bench:
    """A peer's database, and everything that was enqueued there."""

    def __init__(self, setup: Setup, server: PostgresServer, folder: Path) -> None:
        self.setup = setup
        self.server = server
        self.folder = folder
        self.diary = folder / "diary"
        self.ids: dict[str, str] = {}
        self.workers: list[Worker] = []
        self._python = interpreter(setup.peer)
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH" or not setup.peer.pins},
            "PEERS_DSN": server.dsn.partition("?")[0] + "?sslmode=disable",  # asyncpg knows no more of libpq's words
            "PEERS_DIARY": str(self.diary),
            "PEERS_SETUP": "recovery" if setup.recovery else "defaults",
        }
        self._adapter("install")

    def command(self, *arguments: str) -> list[str]:
        return [self._python, str(self.setup.peer.adapter), *arguments]

    def _adapter(self, *arguments: str) -> str:
        done = subprocess.run(
            self.command(*arguments),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=ADAPTER_SECONDS_MAX,
            cwd=self.folder,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{self.setup.name}: {arguments[0]}: {done.stderr[-2000:]}")
        return done.stdout

    def enqueue(self, works: list[Work]) -> None:
        """All of them are acknowledged when this returns."""
        ids = json.loads(self._adapter("enqueue", json.dumps(works)))
        self.ids.update(zip((work["key"] for work in works), ids, strict=True))

    def cancel(self, key: str) -> None:
        self._adapter("cancel", self.ids[key])

    def worker(self) -> Worker:
        worker = Worker(self)
        self.workers.append(worker)
        return worker

    def notes(self) -> list[Note]:
        with contextlib.suppress(FileNotFoundError):
            lines = (line.split() for line in self.diary.read_text().splitlines())
            return [Note(key, execution, what, float(at)) for key, execution, what, at in lines]
        return []

    def until_noted(self, what: str, jobs: int = 1) -> float:
        """Wait until so many jobs have noted it; when the last of them did."""

        def enough() -> bool:
            return len({note.key for note in self.notes() if note.what == what}) >= jobs

        if not until(enough, boottime() + READY_SECONDS_MAX):
            raise TimeoutError(f"{self.setup.name}: no {what} within {READY_SECONDS_MAX:g} s\n{self.logs()}")
        return max(note.at for note in self.notes() if note.what == what)

    def outcomes(self) -> dict[str, Outcome]:
        """By key, as the database has it; raises psycopg.Error while that is away."""
        keys = {id: key for key, id in self.ids.items()}
        with psycopg.connect(self.server.dsn, autocommit=True, application_name="referee") as connection:
            rows = connection.execute(self.setup.peer.outcomes).fetchall()
        return {keys[id]: Outcome(status, attempts) for id, status, attempts in rows if id in keys}

    def cut_connections(self) -> None:
        with psycopg.connect(self.server.dsn, autocommit=True, application_name="referee") as connection:
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where backend_type = 'client backend' and pid <> pg_backend_pid()"
            )

    def logs(self) -> str:
        return "\n".join(worker.log_path.read_text(errors="replace")[-4000:] for worker in self.workers)

    def close(self) -> None:
        for worker in self.workers:
            worker.close()


class Worker:
    """A worker's process, and whoever starts it again: `process` changes with each life."""

    def __init__(self, bench: Bench) -> None:
        self.log_path = bench.folder / f"worker-{len(bench.workers)}.log"
        self._bench = bench
        self._log = self.log_path.open("wb")
        self._kept = True
        self.lives = 0
        self.process = self._start()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def _start(self) -> subprocess.Popen[bytes]:
        self.lives += 1
        return subprocess.Popen(
            self._bench.command("worker"),
            env=self._bench.environment,
            cwd=self._bench.folder,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _keep(self) -> None:
        while True:
            self.process.wait()
            time.sleep(RESTART_SECONDS)
            if not self._kept:
                return
            self.process = self._start()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def family(self) -> list[int]:
        """The process and those below it, the elder first."""
        return [self.process.pid, *sorted(descendants(self.process.pid))]

    def signal_family(self, number: signal.Signals) -> None:
        for pid in self.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self, grace_seconds: float) -> None:
        """As at a deploy: SIGTERM, not started again, and SIGKILL when the grace is over."""
        self._kept = False
        self.signal(signal.SIGTERM)
        killer = threading.Timer(grace_seconds, self.kill_if_running)
        killer.daemon = True
        killer.start()

    def kill_if_running(self) -> None:
        if self.process.poll() is None:
            self.signal_family(signal.SIGKILL)

    def close(self) -> None:
        self._kept = False
        time.sleep(RESTART_SECONDS)
        while self._keeper.is_alive():
            self.kill_if_running()
            self._keeper.join(timeout=1.0)
        self._log.close()


@contextlib.contextmanager
def bench(setup: Setup, server: PostgresServer, folder: Path) -> Iterator[Bench]:
    made = Bench(setup, server, folder)
    try:
        yield made
    finally:
        made.close()


def until(look: Callable[[], bool], deadline: float) -> bool:
    """Look several times a second; whether it was so before the deadline (of the boottime clock)."""
    while boottime() < deadline:
        if look():
            return True
        time.sleep(0.1)
    return False
