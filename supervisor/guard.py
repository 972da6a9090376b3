"""The guard: a process that ends the children of a supervisor when the supervisor itself cannot.

    supervisor -- ADOPT(key, pid) + pidfd, DEADLINE(key, boottime), FORGET(key), LEAVE --> guard
               <------------------------------------------------------- UP, KILLED(key) --

A supervisor that is frozen or stuck keeps no deadline: the guard ends what is past its own. When the supervisor is
gone the guard ends everything, and leaves. It runs the code of this file and no other, so that nothing can hold it up.

A process is known by its pidfd, never by its number alone, which may be somebody else's by now. What is to end is
stopped first, with all that descends from it, so that none of them starts another meanwhile.
"""

from __future__ import annotations

import array
import math
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress

RECORD = struct.Struct("<cQd")
"""What it is, the key of the child, and a value: a pid, or when on the boot clock. A packet holds one or several."""

ADOPT, DEADLINE, FORGET, LEAVE = b"a", b"d", b"f", b"l"
UP, KILLED = b"u", b"k"
PACKET_RECORDS_MAX = 64
PACKET_BYTES_MAX = PACKET_RECORDS_MAX * RECORD.size

_LOOK_EVERY_MILLISECONDS = 250
"""At least, with deadlines to keep: the clock that `poll` waits by stands still while the machine is suspended."""

_SUPERVISOR_ENDS_WITHIN_MILLISECONDS = 2000
_LOOKS_AGAIN_MAX = 20
_LOOK_AGAIN_SECONDS = 0.005
_OOM_SCORE_ADJUSTMENT = -500
_NICENESS = -10


def boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Child:
    __slots__ = ("pid", "pidfd", "until")

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.until = math.inf


class Guard:
    """`marker` is what stands in the environment of whatever the supervisor has started, NAME=value; empty: nothing."""

    def __init__(self, channel: socket.socket, supervisor_pidfd: int, marker: bytes = b"") -> None:
        self.children: dict[int, Child] = {}
        self._channel = channel
        self._supervisor_pidfd = supervisor_pidfd
        self._marker = marker
        self._spared_sessions = {os.getsid(0)}
        self._left = False  # the supervisor told us to go, and lives
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)
        self._poll.register(supervisor_pidfd, select.POLLIN)

    def watch(self) -> None:
        """Until the supervisor is gone, or says that it needs no guard any more."""
        self._tell(UP, [0])
        ready: set[int] = set()
        while self._listen() and self._supervisor_pidfd not in ready:
            self._end_overdue()
            ready = {fd for fd, _ in self._poll.poll(self._rest_milliseconds())}
        end(self.children.values())
        if not self._left and readable(self._supervisor_pidfd, _SUPERVISOR_ENDS_WITHIN_MILLISECONDS):
            # in these sessions there may be what the application itself has started
            self._end_marked(lambda session: session not in self._spared_sessions)

    def _rest_milliseconds(self) -> float | None:
        until = min((child.until for child in self.children.values()), default=math.inf)
        if until == math.inf:
            return None
        return max(0.0, min((until - boottime()) * 1000, _LOOK_EVERY_MILLISECONDS))

    def _end_overdue(self) -> None:
        now = boottime()
        overdue = {key: child for key, child in self.children.items() if child.until <= now}
        # told before it is done, for the death must not be taken for a crash
        self._tell(KILLED, [key for key, child in overdue.items() if not readable(child.pidfd)])
        died_before = end(overdue.values())
        for key in overdue:
            self._forget(key)
        if left := died_before - {child.pid for child in self.children.values()}:  # the number may be another's by now
            self._end_marked(lambda session: session in left)

    # --- the supervisor

    def _listen(self) -> bool:
        """Hear all that was said; return whether the supervisor goes on."""
        while not self._left:
            try:
                packet, ancillary, _, _ = self._channel.recvmsg(
                    PACKET_BYTES_MAX, socket.CMSG_LEN(4), socket.MSG_DONTWAIT
                )
            except BlockingIOError:
                return True
            except ConnectionResetError:  # it left without hearing us out; what it had said before is still there
                continue
            if not packet:
                return False
            self._heed(packet, _descriptors(ancillary))
        return False

    def _heed(self, packet: bytes, pidfds: list[int]) -> None:
        if len(packet) % RECORD.size == 0:
            for kind, key, value in RECORD.iter_unpack(packet):
                if kind == ADOPT and pidfds and 1 < value < math.inf:
                    self._adopt(key, value, pidfds.pop())
                elif kind == DEADLINE and key in self.children and not math.isnan(value):
                    self.children[key].until = value
                elif kind == FORGET:
                    self._forget(key)
                elif kind == LEAVE:
                    self._left = True
        for unclaimed in pidfds:
            os.close(unclaimed)

    def _adopt(self, key: int, pid: float, pidfd: int) -> None:
        self._forget(key)
        self.children[key] = Child(int(pid), pidfd)
        parent = _parent_and_session(int(pid))[0]  # the supervisor or its fork server: their sessions are not a job's
        self._spared_sessions.add(_parent_and_session(parent)[1])

    def _forget(self, key: int) -> None:
        if (child := self.children.pop(key, None)) is not None:
            os.close(child.pidfd)

    def _tell(self, kind: bytes, keys: list[int]) -> None:
        for start in range(0, len(keys), PACKET_RECORDS_MAX):
            packet = b"".join(RECORD.pack(kind, key, 0.0) for key in keys[start : start + PACKET_RECORDS_MAX])
            with suppress(OSError):  # it does not listen, and we do not wait
                self._channel.send(packet, socket.MSG_DONTWAIT)

    # --- what has left its family, or has lost it

    def _end_marked(self, wanted: Callable[[int], bool]) -> None:
        """End what the supervisor has started, and what came of that, in the sessions that are wanted."""
        seen: set[int] = set()
        looks_again = 0
        while self._marker and (new := _all_processes() - seen):  # until none has come while we looked
            seen |= new
            between_programs = {pid for pid in new if not self._end_if_marked(pid, wanted)}
            if between_programs and looks_again < _LOOKS_AGAIN_MAX:
                looks_again += 1
                seen -= between_programs
                time.sleep(_LOOK_AGAIN_SECONDS)

    def _end_if_marked(self, pid: int, wanted: Callable[[int], bool]) -> bool:
        """Return False where nothing is told of its environment: so it is while it begins to execute a program."""
        with suppress(OSError):
            pidfd = os.pidfd_open(pid)
            try:
                if not wanted(_parent_and_session(pid)[1]):
                    return True
                environment = _read(f"/proc/{pid}/environ")
                if self._marker in environment.split(b"\0"):
                    _signal(pidfd, signal.SIGKILL)
                return environment != b"" or readable(pidfd)
            finally:
                os.close(pidfd)
        return True


def end(children: Collection[Child]) -> set[int]:
    """End children, and all that descends from them; return those that were dead, so that their family is unknown."""
    alive, dead = [], set()
    for child in children:
        if readable(child.pidfd):
            dead.add(child.pid)
        else:
            alive.append(child)
    for child in alive:  # from here on they do nothing more, however long the rest takes
        _signal(child.pidfd, signal.SIGSTOP)
    for child in alive:
        family = stop_family(child.pid)
        with suppress(ProcessLookupError, PermissionError):  # it may not lead its group yet
            os.killpg(child.pid, signal.SIGKILL)
        for pidfd in [child.pidfd, *family]:
            _signal(pidfd, signal.SIGKILL)
        for pidfd in family:
            os.close(pidfd)
    return dead


def stop_family(ancestor: int) -> list[int]:
    """Stop the descendants of a stopped process, wherever they went; their pidfds."""
    found: dict[int, int] = {}
    grew = True
    while grew:
        grew = False
        for parent in [ancestor, *found]:
            for pid in _children_of(parent) - found.keys():
                with suppress(OSError):
                    pidfd = os.pidfd_open(pid)
                    if _parent_and_session(pid)[0] != parent:  # it ended, and another has its number
                        os.close(pidfd)
                        continue
                    _signal(pidfd, signal.SIGSTOP)
                    found[pid], grew = pidfd, True
    return list(found.values())


def readable(fd: int, within_milliseconds: int = 0) -> bool:
    """Whether there is something to read: of a pidfd, whether the process has ended."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(within_milliseconds))


def _signal(pidfd: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        signal.pidfd_send_signal(pidfd, number)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(content[: len(content) - len(content) % found.itemsize])
    return found.tolist()


# --- what Linux tells of processes


def _all_processes() -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}


def _children_of(pid: int) -> set[int]:
    found: set[int] = set()
    with suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            found.update(map(int, _read(f"/proc/{pid}/task/{task}/children").split()))
    return found


def _parent_and_session(pid: int) -> tuple[int, int]:
    """0 and 0 if there is no such process."""
    fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return (int(fields[1]), int(fields[3])) if fields else (0, 0)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:  # it has ended, or we may not look
        return b""


# --- where the process begins


def main() -> None:
    channel_fd, supervisor_pidfd = int(sys.argv[1]), int(sys.argv[2])
    marker = os.environb.get(os.fsencode(sys.argv[3]))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # whoever means us all means the supervisor, which then decides
    _be_the_last_to_starve()
    channel = socket.socket(fileno=channel_fd)
    Guard(channel, supervisor_pidfd, os.fsencode(sys.argv[3]) + b"=" + marker if marker else b"").watch()


def _be_the_last_to_starve() -> None:
    """As far as we may."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, min(_NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
    with suppress(OSError):
        adjustment = min(_OOM_SCORE_ADJUSTMENT, int(_read("/proc/self/oom_score_adj") or 0))
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(adjustment))
    with suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)  # a descriptor for each child
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    main()
