"""A supervisor as a process of its own, as an operator starts it; what its processes use, by what they are for.

    with worker(stack, children=10) as supervisor:
        supervisor.until_ready()
        supervisor.memory()["child"]        of each role: the processes, their PSS and their own pages
        supervisor.cpu_seconds()            of each role

So that what a supervisor uses is its own, and not that of the process that measures.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

from msgspec import Struct

from benchmarks import machine
from benchmarks.bench import JOBS, READY_SECONDS
from durablestack import DurableStack, RunStatus
from processes import command_line, descendants, stat_fields, still_running

ROOT = Path(__file__).parent.parent
DONE_SECONDS = 3600.0


class Role(StrEnum):
    SUPERVISOR = "supervisor"
    GUARD = "guard"
    FORK_SERVER = "fork server"
    CHILD = "child"


class Memory(Struct, frozen=True):
    """What the processes of one role hold. A page that n processes share counts 1/n for each (PSS)."""

    processes: int
    pss_bytes: int
    own_bytes: int
    """Pages that nobody else has: what would be free if they were gone."""


class Worker:
    """A running supervisor with its children."""

    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes], children: int) -> None:
        self.process = process
        self.pid = process.pid
        self.began_at = time.time()
        self._log = log
        self._children = children

    def roles(self) -> dict[Role, list[int]]:
        """The processes of each role, as they are now."""
        found: dict[Role, list[int]] = {role: [] for role in Role}
        found[Role.SUPERVISOR].append(self.pid)
        for pid in sorted(descendants(self.pid)):
            found[role_of(command_line(pid), parent_command(pid))].append(pid)
        return found

    def until_ready(self) -> None:
        """Returns when all children are there and have nothing left to do at their start.

        Raises:
            RuntimeError: it has ended, or that takes too long; with its log.
        """
        give_up_at = time.monotonic() + READY_SECONDS
        calm, before = 0, -1.0
        while calm < 3:
            if self.process.poll() is not None or time.monotonic() > give_up_at:
                raise RuntimeError(f"the supervisor is not ready: {self.log()}")
            time.sleep(0.1)
            used = machine.tree_cpu_seconds(self.pid)
            there = len(self.roles()[Role.CHILD]) == self._children
            calm = calm + 1 if there and used - before <= 0.02 else 0
            before = used

    def cpu_seconds(self) -> dict[Role, float]:
        """CPU time so far; that of children who have ended is with the process that started them."""
        return {role: sum(map(machine.cpu_seconds, pids)) for role, pids in self.roles().items()}

    def memory(self) -> dict[Role, Memory]:
        return {role: memory_of(pids) for role, pids in self.roles().items()}

    def descriptors(self) -> int:
        """How many the supervisor has open."""
        with suppress(OSError):
            return len(os.listdir(f"/proc/{self.pid}/fd"))
        return 0

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def stop(self) -> None:
        """Let it leave in good order; end what does not."""
        family = sorted(descendants(self.pid))
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pid in family:
            with suppress(ProcessLookupError):
                if still_running(pid):
                    os.kill(pid, signal.SIGKILL)


@contextmanager
def worker(
    stack: DurableStack, settings: Mapping[str, Any], *, children: int, target: str = JOBS, log_level: str = "warning"
) -> Iterator[Worker]:
    """Start one on the tables of a stack; `settings` are the options of its database and its own."""
    prefix = stack.options.database_table_prefix
    options = {"poll_interval_seconds": 0.5, **settings, "database_table_prefix": prefix}
    environment = {
        **os.environ,
        **variables({**options, "max_concurrent_runs": children}),
        "PYTHONPATH": str(ROOT),
        "BENCHMARK_LOG_LEVEL": log_level,
    }
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "durablestack.supervisor", target, "--plain"],
            env=environment,
            cwd=tempfile.gettempdir(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        made = Worker(process, log, children)
        try:
            yield made
        finally:
            made.stop()


def until_done(stack: DurableStack, runs: int, workers: Sequence[Worker], *, look_every_seconds: float = 0.1) -> None:
    """Wait until so many runs have succeeded. A look costs the database half a millisecond.

    Raises:
        RuntimeError: a supervisor has ended, or it takes too long; with its log.
    """
    give_up_at = time.monotonic() + DONE_SECONDS
    while stack.queries.count_due(stack.jobs.names, count_max=1) or (
        stack.queries.count_runs()[RunStatus.SUCCEEDED] < runs
    ):
        for each in workers:
            if each.process.poll() is not None or time.monotonic() > give_up_at:
                raise RuntimeError(f"the runs are not done: {each.log()}")
        time.sleep(look_every_seconds)


def variables(options: Mapping[str, Any], prefix: str = "DURABLESTACK") -> dict[str, str]:
    """Options as the environment has them: groups become part of the name."""
    found: dict[str, str] = {}
    for name, value in options.items():
        key = f"{prefix}__{name.upper()}"
        found |= variables(value, key) if isinstance(value, Mapping) else {key: str(value)}
    return found


def role_of(command: bytes, parent: bytes) -> Role:
    """What a process below a supervisor is there for, from its command line and that of its parent."""
    if b"guard" in command and b"forkserver" not in command:
        return Role.GUARD
    if b"spawn_main" in command or (b"forkserver" in command and b"forkserver" in parent):
        return Role.CHILD
    return Role.FORK_SERVER  # or multiprocessing's resource tracker, which comes with it


def parent_command(pid: int) -> bytes:
    fields = stat_fields(pid)
    return command_line(int(fields[1])) if fields else b""


def memory_of(pids: list[int]) -> Memory:
    pages = list(map(pages_of, pids))
    return Memory(
        len(pids),
        sum(each.get("Pss", 0) for each in pages),
        sum(each.get("Private_Clean", 0) + each.get("Private_Dirty", 0) for each in pages),
    )


def pages_of(pid: int) -> dict[str, int]:
    """Bytes of Rss, Pss and the others of /proc/<pid>/smaps_rollup; nothing, when it has just ended."""
    with suppress(OSError):
        return rollup(Path(f"/proc/{pid}/smaps_rollup").read_text())
    return {}


def rollup(text: str) -> dict[str, int]:
    """Bytes by name, from the lines of such a file."""
    found = {}
    for line in text.splitlines():
        name, colon, rest = line.partition(":")
        if colon and rest.strip().endswith("kB"):
            found[name] = int(rest.split()[0]) * 1024
    return found
