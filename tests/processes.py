"""Which processes there are, as Linux tells it in /proc."""

import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def descendants(pid: int, leave_out: frozenset[int] = frozenset()) -> frozenset[int]:
    """The children of a process and theirs (a forkserver's children are ours in spirit); none but on Linux."""
    found: set[int] = set()
    parents = [pid] if sys.platform == "linux" else []
    while parents:
        children = children_of(parents.pop()) - leave_out - found
        found |= children
        parents.extend(children)
    return frozenset(found)


def without_tracker(pids: Iterable[int]) -> frozenset[int]:
    """Those but multiprocessing's resource tracker, which comes when a job first needs it, and stays."""
    return frozenset(pid for pid in pids if b"resource_tracker" not in command_line(pid))


def children_of(pid: int) -> frozenset[int]:
    found: set[int] = set()
    for path in _children_files(pid):
        with suppress(OSError):  # the thread, or the process, has just ended
            found |= {int(child) for child in path.read_text().split()}
    return frozenset(found)


def _children_files(pid: int) -> list[Path]:
    with suppress(OSError):  # ended, while we look
        return list(Path(f"/proc/{pid}/task").glob("*/children"))
    return []


def command_line(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    return b""


def stat_fields(pid: int) -> list[str]:
    """State, parent, group, session and the rest, in this order; empty once the process is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


def open_files(pid: int) -> list[str]:
    """What the descriptors of a process lead to, without those that it closes while we look."""
    found = []
    with suppress(OSError):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                found.append(str(fd.readlink()))
    return found


def still_running(pid: int) -> bool:
    fields = stat_fields(pid)
    return bool(fields) and fields[0] != "Z"
