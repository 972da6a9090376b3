"""How each fault is done, and undone: one block of `with` each, for as long as it lasts."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial

import psycopg
import pymysql
from msgspec import Struct

from benchmarks.chaos.database import Absent, Database
from benchmarks.chaos.scene import Client, Scene, Seat, stopped
from benchmarks.chaos.schedule import Fault, Kind
from benchmarks.chaos_jobs import boottime
from benchmarks.history import Disturbance
from processes import descendants
from proxy import TcpProxy
from servers import ServerFailed

SLOW_SECONDS = 0.15
SLOW_BYTES_PER_SECOND = 10_000
COMMITS = (b"set status = 'leased'", b"set status = 'succeeded'", b"set lease_until_utc", b"insert into")


class Struck(Struct, frozen=True):
    """Which processes were struck; none stands for all that the target has."""

    pids: frozenset[int] = frozenset()


class Nemesis:
    """Does what the schedule says, and keeps a journal of what it did, and of what it could not do."""

    def __init__(self, scene: Scene) -> None:
        self.disturbances: list[Disturbance] = []
        self.skipped: list[str] = []
        self._scene = scene
        self._active: list[tuple[float, ExitStack]] = []

    def strike(self, fault: Fault) -> None:
        block = ExitStack()
        try:
            block.enter_context(self._noted(fault))
        except (Absent, OSError, psycopg.Error, pymysql.Error, ServerFailed, subprocess.SubprocessError) as error:
            self.skipped.append(f"{fault.kind}: {error or type(error).__name__}")
            return
        self._active.append((boottime() + fault.seconds, block))

    def let_go(self) -> None:
        """Undo what has lasted long enough."""
        now = boottime()
        over = [block for ends_at, block in self._active if ends_at <= now]
        self._active = [(ends_at, block) for ends_at, block in self._active if ends_at > now]
        for block in over:
            block.close()

    def heal(self) -> None:
        """Undo everything, the lines and the database last to be struck first."""
        while self._active:
            self._active.pop()[1].close()
        for line in self._scene.lines:
            line.pass_through()

    @contextmanager
    def _noted(self, fault: Fault) -> Iterator[None]:
        began_at = boottime()
        with _BLOCKS[fault.kind](self._scene, fault) as struck:
            yield
        self.disturbances.append(
            Disturbance(
                kind=fault.kind,
                began_at=began_at,
                ended_at=boottime(),
                lives=self._lives(fault, began_at),
                pids=struck.pids,
                froze_together=fault.kind is Kind.FREEZE_BOTH,
                took_holder=fault.kind in _TAKES_HOLDER,
            )
        )

    def _lives(self, fault: Fault, began_at: float) -> frozenset[str]:
        """Empty for all of them. The clients' line has none of a supervisor."""
        if fault.target == "client" or (fault.target == "line" and fault.number >= len(self._scene.seats)):
            return frozenset({"clients"})
        if fault.target == "database":
            return frozenset()
        return self._scene.seats[fault.number].lives_between(began_at, boottime())


_TAKES_HOLDER = {
    Kind.KILL_SUPERVISOR,
    Kind.FREEZE_SUPERVISOR,
    Kind.KILL_BOTH,
    Kind.FREEZE_BOTH,
    Kind.KILL_CHILD,
    Kind.FREEZE_CHILD,
    Kind.KILL_FORK_SERVER,
}

Block = Callable[[Scene, Fault], AbstractContextManager[Struck]]
_BLOCKS: dict[Kind, Block] = {}


def _block(kind: Kind) -> Callable[[Callable[[Scene, Fault], Iterator[Struck]]], Block]:
    def register(function: Callable[[Scene, Fault], Iterator[Struck]]) -> Block:
        block = _BLOCKS[kind] = contextmanager(function)
        return block

    return register


def _seat(scene: Scene, fault: Fault) -> Seat:
    return scene.seats[fault.number]


def _line(scene: Scene, fault: Fault) -> TcpProxy:
    return scene.lines[fault.number]


def _running(pid: int | None) -> int:
    if pid is None:
        raise Absent("the supervisor does not run just now")
    return pid


def _one_of(pids: Sequence[int], fault: Fault, what: str) -> int:
    if not pids:
        raise Absent(f"there is no {what} just now")
    return pids[int(fault.pick * len(pids))]


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


# --- processes


@contextmanager
def _left_empty(place: Seat | Client) -> Iterator[None]:
    """Nobody is started there while the block lasts."""
    place.wanted = False
    try:
        yield
    finally:
        place.wanted = True


@_block(Kind.KILL_SUPERVISOR)
def _kill_supervisor(scene: Scene, fault: Fault) -> Iterator[Struck]:
    seat = _seat(scene, fault)
    _running(seat.pid)
    with _left_empty(seat):
        seat.kill()
        yield Struck()


@_block(Kind.STOP_SUPERVISOR)
def _stop_supervisor(scene: Scene, fault: Fault) -> Iterator[Struck]:
    seat = _seat(scene, fault)
    _running(seat.pid)
    with _left_empty(seat):
        seat.ask_to_stop()
        yield Struck()


@_block(Kind.FREEZE_SUPERVISOR)
def _freeze_supervisor(scene: Scene, fault: Fault) -> Iterator[Struck]:
    with stopped(_running(_seat(scene, fault).pid)):
        yield Struck()


@_block(Kind.KILL_GUARD)
def _kill_guard(scene: Scene, fault: Fault) -> Iterator[Struck]:
    _kill(_one_of(_seat(scene, fault).guards(), fault, "guard"))
    yield Struck()


@_block(Kind.FREEZE_GUARD)
def _freeze_guard(scene: Scene, fault: Fault) -> Iterator[Struck]:
    with stopped(_one_of(_seat(scene, fault).guards(), fault, "guard")):
        yield Struck()


@_block(Kind.KILL_BOTH)
def _kill_both(scene: Scene, fault: Fault) -> Iterator[Struck]:
    seat = _seat(scene, fault)
    guard = _one_of(seat.guards(), fault, "guard")
    with _left_empty(seat):
        _kill(guard)
        seat.kill()
        yield Struck()


@_block(Kind.FREEZE_BOTH)
def _freeze_both(scene: Scene, fault: Fault) -> Iterator[Struck]:
    seat = _seat(scene, fault)
    with stopped(_one_of(seat.guards(), fault, "guard")), stopped(_running(seat.pid)):
        yield Struck()


@_block(Kind.KILL_CHILD)
def _kill_child(scene: Scene, fault: Fault) -> Iterator[Struck]:
    pid = _one_of(_seat(scene, fault).executing(), fault, "child")
    _kill(pid)
    yield Struck(frozenset({pid}))


@_block(Kind.FREEZE_CHILD)
def _freeze_child(scene: Scene, fault: Fault) -> Iterator[Struck]:
    pid = _one_of(_seat(scene, fault).executing(), fault, "child")
    with stopped(pid):
        yield Struck(frozenset({pid}))


@_block(Kind.KILL_FORK_SERVER)
def _kill_fork_server(scene: Scene, fault: Fault) -> Iterator[Struck]:
    server = _one_of(_seat(scene, fault).fork_servers(), fault, "fork server")
    struck = Struck(descendants(server))
    _kill(server)
    yield struck


@_block(Kind.FREEZE_FORK_SERVER)
def _freeze_fork_server(scene: Scene, fault: Fault) -> Iterator[Struck]:
    with stopped(_one_of(_seat(scene, fault).fork_servers(), fault, "fork server")):
        yield Struck()


@_block(Kind.KILL_CLIENT)
def _kill_client(scene: Scene, fault: Fault) -> Iterator[Struck]:
    client = scene.clients[fault.number]
    with _left_empty(client):
        client.kill()
        yield Struck()


# --- the database


@_block(Kind.END_CONNECTIONS)
def _end_connections(scene: Scene, fault: Fault) -> Iterator[Struck]:
    scene.database.end_connections()
    yield Struck()


@contextmanager
def _on_database(
    scene: Scene, fault: Fault, strike: Callable[[Database], AbstractContextManager[None]]
) -> Iterator[Struck]:
    with strike(scene.database):
        yield Struck()


_STRIKES: dict[Kind, Callable[[Database], AbstractContextManager[None]]] = {
    Kind.RESTART_DATABASE: lambda database: database.down(crash=False),
    Kind.CRASH_DATABASE: lambda database: database.down(crash=True),
    Kind.FREEZE_DATABASE: lambda database: database.frozen(),
    Kind.READ_ONLY: lambda database: database.read_only(),
    Kind.LOCK_RUNS: lambda database: database.runs_locked(),
    Kind.FULL_DISK: lambda database: database.disk_full(),
}
_BLOCKS |= {kind: partial(_on_database, strike=strike) for kind, strike in _STRIKES.items()}


# --- lines


@contextmanager
def _on_line(scene: Scene, fault: Fault, spoil: Callable[[TcpProxy], None]) -> Iterator[Struck]:
    line = _line(scene, fault)
    spoil(line)
    try:
        yield Struck()
    finally:
        line.pass_through()


_SPOILT: dict[Kind, Callable[[TcpProxy], None]] = {
    Kind.FREEZE_LINE: TcpProxy.freeze,
    Kind.REFUSE_LINE: TcpProxy.refuse,
    Kind.RESET_LINE: TcpProxy.reset_all,
    Kind.HOLD_ANSWERS: TcpProxy.hold_answers,
    Kind.HOLD_REQUESTS: TcpProxy.hold_requests,
    Kind.DROP_ANSWERS: TcpProxy.drop_answers,
    Kind.DELAY_LINE: lambda line: line.slow_down(seconds=SLOW_SECONDS),
    Kind.THROTTLE_LINE: lambda line: line.slow_down(bytes_per_second=SLOW_BYTES_PER_SECOND),
}
_BLOCKS |= {kind: partial(_on_line, spoil=spoil) for kind, spoil in _SPOILT.items()}


def _cut(scene: Scene, fault: Fault) -> Iterator[Struck]:
    """The next commit of a claim, of an outcome, of a heartbeat or of an enqueue, whatever the pick says."""
    line, marker = _line(scene, fault), COMMITS[int(fault.pick * len(COMMITS))]
    line.cut_commit("before" if fault.kind is Kind.CUT_BEFORE_COMMIT else "after", marker)
    try:
        yield Struck()
    finally:
        line.disarm()


_block(Kind.CUT_BEFORE_COMMIT)(_cut)
_block(Kind.CUT_AFTER_COMMIT)(_cut)
