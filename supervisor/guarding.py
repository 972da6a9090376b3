"""Our side of the guard: it is started, told of each child and of its deadline, and replaced should it die.

    up --its pidfd: it died--> down: nothing is claimed --a new one is told of all children--> up
                                ^                                   |
                                +--------- it died again: later ----+

Where no such process can be had, each child keeps its own deadline, as well as it can: see `watchdog`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import threading
from typing import Protocol

import anyio
from anyio.abc import TaskStatus

from durablestack.options import GuardKind

from . import guard, wire
from .guard_process import GuardDied, GuardProcess
from .restarts import restart_delay_seconds

log = logging.getLogger(__name__)

_GONE_WITHIN_SECONDS = 3.0
_LIVES_WELL_AFTER_SECONDS = 60.0
_TELL_WITHIN_SECONDS = 1.0
_TELL_WITHIN_RATIO = 0.1  # of the time that the guard believes to be left


class Guarded(Protocol):
    """A child, as far as the guard is concerned."""

    killed_by_guard: bool

    @property
    def pid(self) -> int: ...
    @property
    def pidfd(self) -> int | None: ...
    def send(self, message: wire.Order) -> None: ...


class _Ward:
    __slots__ = ("child", "key", "told", "until")

    def __init__(self, key: int, child: Guarded) -> None:
        self.key = key
        self.child = child
        self.until = math.inf
        self.told = math.inf  # what the guard knows: perhaps less than the truth, for a moment, and never more

    def adoption(self) -> bytes:
        return guard.RECORD.pack(guard.ADOPT, self.key, float(self.child.pid)) + self.deadline()

    def deadline(self) -> bytes:
        self.told = self.until
        return guard.RECORD.pack(guard.DEADLINE, self.key, self.until)


class Guard:
    """`adopt`, `trust_until` and `forget` may be called from any thread, and wait for nobody."""

    def __init__(self, kind: GuardKind = GuardKind.CHILD) -> None:
        self.restarts = 0
        self._in_children = kind is GuardKind.CHILD
        self._lock = threading.Lock()  # over the three below, and over what is sent
        self._wards: dict[Guarded, _Ward] = {}
        self._untold: set[_Ward] = set()
        self._telling: asyncio.TimerHandle | None = None
        self._process: GuardProcess | None = None
        self._loop_thread = 0
        self._keys = itertools.count(1)
        self._up = anyio.Event()

    @property
    def pid(self) -> int | None:
        """None while there is none."""
        return None if self._process is None else self._process.pid

    @property
    def is_up(self) -> bool:
        """Whether children are guarded."""
        return self._in_children or self._up.is_set()

    async def up(self) -> None:
        """Wait until children are guarded."""
        if not self.is_up:
            await self._up.wait()

    # --- the children

    def adopt(self, child: Guarded) -> None:
        with self._lock:
            if self._in_children or child.pidfd is None:
                return
            ward = self._wards[child] = _Ward(next(self._keys), child)
            if self._process is not None:
                self._process.send(ward.adoption(), child.pidfd)

    def trust_until(self, child: Guarded, boottime: float | None) -> None:
        """When the child has to be dead, should nobody else have ended it; None: it may live."""
        with self._lock:
            if (ward := self._wards.get(child)) is not None:
                ward.until = math.inf if boottime is None else boottime
                self._tell_soon(ward)
                return
        child.send(wire.Trust(boottime))

    def _tell_soon(self, ward: _Ward) -> None:
        """At once, if the guard believes in a later deadline. Else the event loop tells it with those of others, well
        before the one that it believes in: runs of milliseconds would keep the guard busy, and each time that it wakes
        the cores forget what they were doing. The heartbeat does not rely on the event loop."""
        if self._process is None or ward.until == ward.told:
            return
        if ward.until < ward.told or threading.get_ident() != self._loop_thread:
            self._untold.discard(ward)  # when it was to be told was reckoned from another deadline
            self._process.send(ward.deadline())
            return
        if ward in self._untold:
            return
        self._untold.add(ward)
        self._tell_all_by(min(_TELL_WITHIN_SECONDS, (ward.told - guard.boottime()) * _TELL_WITHIN_RATIO))

    def _tell_all_by(self, within_seconds: float) -> None:
        loop = asyncio.get_running_loop()
        at = loop.time() + within_seconds
        if self._telling is not None:
            if self._telling.when() <= at:
                return
            self._telling.cancel()
        self._telling = loop.call_at(at, self._tell_all)

    def _tell_all(self) -> None:
        self._telling = None
        with self._lock:
            news = [ward.deadline() for ward in self._untold if ward.until != ward.told]
            self._untold.clear()
            if self._process is not None:
                for start in range(0, len(news), guard.PACKET_RECORDS_MAX):
                    self._process.send(b"".join(news[start : start + guard.PACKET_RECORDS_MAX]))

    def forget(self, child: Guarded) -> None:
        with self._lock:
            if (ward := self._wards.pop(child, None)) is None:
                return
            self._untold.discard(ward)
            if self._process is not None:
                self._process.send(guard.RECORD.pack(guard.FORGET, ward.key, 0.0))

    def hear(self) -> None:
        """Take note of what the guard has said, so far, of children it killed. On the event loop."""
        if self._process is None:
            return
        told = self._process.receive()
        with self._lock:
            killed = {key for kind, key in told if kind == guard.KILLED}
            for ward in self._wards.values():
                if ward.key in killed:
                    ward.child.killed_by_guard = True
                    log.error("the guard has killed child %d, whose lease was not renewed in time", ward.child.pid)

    # --- the guard's life

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Have a guard for as long as this runs; it has begun when there is one."""
        deaths_in_a_row = 0
        self._loop_thread = threading.get_ident()
        try:
            await self._begin()
            task_status.started()
            while True:
                lived_seconds = await self._until_dead()
                deaths_in_a_row = 1 if lived_seconds > _LIVES_WELL_AFTER_SECONDS else deaths_in_a_row + 1
                await anyio.sleep(restart_delay_seconds(deaths_in_a_row))
                await self._replace()
        finally:
            with anyio.CancelScope(shield=True):
                await self._leave()

    async def _begin(self) -> None:
        if self._in_children:
            return
        try:
            await self._start()
        except GuardDied as error:
            self._in_children = True
            log.warning("no guard process can be had here, children watch themselves: %s", error)

    async def _replace(self) -> None:
        try:
            await self._start()
        except GuardDied as error:
            log.error("the guard cannot be started again, trying again: %s", error)
            return
        self.restarts += 1
        log.warning("a new guard watches over %d children", len(self._wards))

    async def _start(self) -> None:
        """Raises GuardDied."""
        process, is_up = GuardProcess(), False
        try:
            is_up = await process.up()
        finally:
            if not is_up:
                process.kill()
                how = await process.gone()
        if not is_up:
            raise GuardDied(f"it did not come up: {how}")
        with self._lock:
            self._process = process
            self._untold.clear()
            for ward in self._wards.values():
                if ward.child.pidfd is not None:
                    process.send(ward.adoption(), ward.child.pidfd)
        process.on_readable(self.hear)
        self._up.set()

    async def _until_dead(self) -> float:
        """Returns the seconds that it lived."""
        began_at = anyio.current_time()
        if self._in_children:
            await anyio.sleep_forever()
        if (process := self._process) is None:
            return 0.0
        await process.dead()
        self._up = anyio.Event()
        self.hear()
        with self._lock:
            self._process = None
        log.error("the guard has died (%s): nothing is claimed until there is a new one", await process.gone())
        return anyio.current_time() - began_at

    async def _leave(self) -> None:
        """It is told to go, with all that it still guards."""
        with self._lock:
            process, self._process = self._process, None
            if process is None:
                return
            process.send(guard.RECORD.pack(guard.LEAVE, 0, 0.0))
        with anyio.move_on_after(_GONE_WITHIN_SECONDS):
            await process.dead()
        process.kill()
        await process.gone()
