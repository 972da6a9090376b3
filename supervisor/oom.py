"""Whether it was the kernel, out of memory, that killed a process: as the counter of our control group tells it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from msgspec import Struct

_MAY_TAKE_SECONDS = 10.0
"""How long a process may need to be gone once it was killed: all of its memory has to be given back before."""

_KILLS = re.compile(rb"^oom_kill (\d+)$", re.MULTILINE)


class OomKills:
    """The kernel only counts. A kill explains one death that came soon after it, and nobody else has caused."""

    def __init__(
        self, counter: Path | None = None, clock: Callable[[], float] = time.monotonic, proc: Path = Path("/proc/self")
    ) -> None:
        self._counter = counter or find_counter(proc)
        self._clock = clock
        self._seen = 0
        self._seen = self._explained = self._read()
        self._seen_at = clock()

    def look(self) -> None:
        """Take note of what has happened; to be called now and then, so that what is long past explains nothing."""
        kills, now = self._read(), self._clock()
        if now - self._seen_at > _MAY_TAKE_SECONDS:
            self._explained = self._seen
        if kills != self._seen:
            self._seen, self._seen_at = kills, now

    def explain_one(self) -> bool:
        """Whether there is a kill that has not explained any death yet; it now explains this one."""
        self.look()
        if self._explained >= self._seen:
            return False
        self._explained += 1
        return True

    def _read(self) -> int:
        try:
            found = _KILLS.search(self._counter.read_bytes()) if self._counter is not None else None
        except OSError:  # no descriptor is to be had
            return self._seen
        return int(found[1]) if found else self._seen


class _Mount(Struct, frozen=True):
    """A hierarchy of control groups: `path` shows what lies below `root`."""

    path: Path
    root: str
    kind: str
    options: list[str]


def find_counter(proc: Path) -> Path | None:
    """The file that counts for this process: of its own group, else of the whole machine; None if there is none."""
    candidates = [*_of_our_group(proc), Path("/proc/vmstat")]
    return next((path for path in candidates if _counts(path)), None)


def _counts(path: Path) -> bool:
    try:
        return _KILLS.search(path.read_bytes()) is not None
    except OSError:
        return False


def _of_our_group(proc: Path) -> Iterator[Path]:
    try:
        groups = [line.split(":", 2) for line in (proc / "cgroup").read_text().splitlines()]
        mounts = list(_mounts((proc / "mountinfo").read_text()))
    except (OSError, ValueError):
        return
    for _, controllers, group in groups:
        for mount in mounts:
            below = group.removeprefix(mount.root.rstrip("/")).lstrip("/")
            if controllers == "" and mount.kind == "cgroup2":
                yield mount.path / below / "memory.events"
            elif "memory" in controllers.split(",") and mount.kind == "cgroup" and "memory" in mount.options:
                yield mount.path / below / "memory.oom_control"


def _mounts(mountinfo: str) -> Iterator[_Mount]:
    for line in mountinfo.splitlines():
        place, _, kind = line.partition(" - ")
        fields, kinds = place.split(), kind.split()
        if kinds[0] in ("cgroup", "cgroup2"):
            yield _Mount(Path(fields[4]), fields[3], kinds[0], kinds[2].split(","))
