"""A contender at work: its place, its notes, and its worker, whose whole family ends with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.peers.performance.contenders import Contender
from benchmarks.peers.performance.footprint import family, session_of
from benchmarks.peers.performance.places import Place, Servers, open_place
from processes import still_running
from servers import start_guard

ADAPTER_SECONDS_MAX = 120.0
START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 10.0
LOG_TAIL_LENGTH = 1500


class NotMeasured(Exception):
    """Why a contender could not be measured: the end of what it said."""


class Crew:
    """Enqueues through the contender's adapter, starts its worker, reads the notes of its jobs."""

    def __init__(self, contender: Contender, place: Place, folder: Path, children: int) -> None:
        self.contender, self.place = contender, place
        self._folder = folder
        self._python = contender.package.interpreter()
        leave_out = "PYTHONPATH" if contender.package.pins else ""
        self._environment = {
            **{name: value for name, value in os.environ.items() if name != leave_out},
            "PEERS_URL": place.url,
            "PEERS_NOTES": str(folder),
            "PEERS_CHILDREN": str(children),
            "PEERS_SETTINGS": contender.settings,
        }
        self.adapter("install")

    def adapter(self, *arguments: str) -> dict[str, float]:
        """What an adapter's command prints.

        Raises:
            NotMeasured: it failed, or took too long.
        """
        try:
            done = subprocess.run(
                self._command(*arguments),
                env=self._environment,
                cwd=self._folder,
                capture_output=True,
                text=True,
                timeout=ADAPTER_SECONDS_MAX,
            )
        except subprocess.TimeoutExpired:
            raise NotMeasured(f"{arguments[0]} took more than {ADAPTER_SECONDS_MAX:g} s") from None
        if done.returncode != 0:
            raise NotMeasured(f"{arguments[0]}: {done.stderr[-LOG_TAIL_LENGTH:]}")
        lines = done.stdout.splitlines()
        return json.loads(lines[-1]) if lines else {}

    def enqueue(self, job: str, argument: float | None, count: int, how: str = "bulk") -> dict[str, float]:
        return self.adapter("enqueue", job, json.dumps(argument), str(count), how)

    def not_done(self) -> int:
        return self.place.count(self.contender.not_done)

    def notes(self, name: str) -> list[float]:
        """What jobs have written down."""
        with suppress(FileNotFoundError):
            text = (self._folder / name).read_text()
            return [float(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        return []

    @contextmanager
    def worker(self) -> Iterator[int]:
        """The process id of a worker that was started; it ends, with all that it has started."""
        log_path = self._folder / "worker.log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                self._command("worker"),
                env=self._environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        guard = start_guard(process.pid, self._folder, "TERM")  # if we are killed, it does not work on for ever
        try:
            yield process.pid
        except NotMeasured as reason:
            log_tail = log_path.read_text(errors="replace")[-LOG_TAIL_LENGTH:]
            raise NotMeasured(f"{reason}\n{log_tail}") from None
        finally:
            _end(process)
            guard.kill()
            guard.communicate()

    def until_noted(self, name: str, count: int, worker: int, seconds_max: float = START_SECONDS_MAX) -> list[float]:
        """Wait until so many jobs have written it down."""

        def noted() -> bool:
            return len(self.notes(name)) >= count

        if not until(noted, seconds_max, lambda: still_running(worker)):
            why = f"within {seconds_max:g} s" if still_running(worker) else "when the worker ended"
            raise NotMeasured(f"{len(self.notes(name))} of {count} noted in {name!r} {why}")
        return self.notes(name)

    def _command(self, *arguments: str) -> list[str]:
        return [self._python, str(self.contender.package.adapter), *arguments]


@contextmanager
def crew_of(contender: Contender, servers: Servers, children: int) -> Iterator[Crew]:
    """A contender in a place that nobody has used."""
    with (
        open_place(contender.store, servers) as place,
        tempfile.TemporaryDirectory(prefix="durablestack-peers-") as folder,
    ):
        yield Crew(contender, place, Path(folder), children)


def until(look: Callable[[], bool], seconds_max: float, alive: Callable[[], bool], pause: float = 0.001) -> bool:
    """Look often; whether it was so in time, and before whom we wait for had ended."""
    deadline = time.monotonic() + seconds_max
    while not look():
        if time.monotonic() > deadline or not alive():
            return False
        time.sleep(pause)
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, some seconds, and SIGKILL for whoever is left of the family, orphans of a worker that crashed too."""
    members = family(process.pid)
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS_MAX)
    for pid in {*members, *session_of(process.pid)}:
        if still_running(pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.wait()
