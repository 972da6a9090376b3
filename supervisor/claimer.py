"""Claims due runs for executors that are idle or about to be, and of short runs some that wait behind others."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from datetime import timedelta
from uuid import uuid4

import anyio

from durablestack.errors import StoreError
from durablestack.events import EventType
from durablestack.runs import CANCELLED_MESSAGE, LEASE_EXPIRED, Failure, RunStatus
from durablestack.stores.contract import Claim, Claimed, ExpiredRun, Store
from durablestack.workers import Worker

from .bus import Emit
from .completer import Completer
from .door import ask_store
from .exchange import Exchange
from .expiry import Expiry
from .leases import LeaseTable, boottime
from .pace import Pace
from .pool import NO_ROOM, Pool, Room

log = logging.getLogger(__name__)

_BACKOFF_SECONDS_FIRST = 0.5
_BACKOFF_SECONDS_MAX = 5.0
_DUE_AFTER_SECONDS = 0.01  # the database counts from its own commit


def _no() -> bool:
    return False


def _yes() -> bool:
    return True


_Claim = Callable[[Room, Callable[[], None]], Awaitable[Claimed]]
"""For so much room; what it is given to call is called once the database is being asked."""


class _Claiming:
    """A claim, from when it is begun until what it has brought is handed out."""

    def __init__(self, room: Room, claim: _Claim, on_end: Callable[[], None]) -> None:
        self.room = room
        self.claimed = Claimed([], [])
        self.asked = asyncio.Event()
        self.has_ended = False
        self.task = asyncio.create_task(self._run(claim, on_end))  # which nobody cancels

    async def _run(self, claim: _Claim, on_end: Callable[[], None]) -> None:
        try:
            self.claimed = await claim(self.room, self.asked.set)
        finally:
            self.asked.set()  # if it did not come to that
            self.has_ended = True
            on_end()

    @property
    def is_full(self) -> bool:
        return len(self.claimed.runs) == self.room.size


class Claimer:
    """Never claims more than can start at once, or in a moment: a claimed run that waits is a lease that ages.

    Where there are many short runs, up to `claims_max` claims are under way beside the batch that is handed out.
    `guarded` returns once there is somebody who ends children when we cannot.
    """

    def __init__(
        self,
        store: Store,
        pool: Pool,
        leases: LeaseTable,
        completer: Completer,
        *,
        worker: Worker,
        job_names: Collection[str],
        batch_size: int,
        lease_duration: timedelta,
        poll_interval_seconds: float,
        poll_jitter_ratio: float,
        claims_max: int = 1,
        guarded: Callable[[], Awaitable[None]],
        is_guarded: Callable[[], bool] = _yes,
        emit: Emit,
    ) -> None:
        self._store = store
        self._pool = pool
        self._leases = leases
        self._completer = completer
        self._worker = worker
        self._job_names = tuple(job_names)
        self._batch_size = batch_size
        self._claims_max = claims_max
        self._lease_duration = lease_duration
        self._poll_interval_seconds = poll_interval_seconds
        self.pace = Pace(poll_interval_seconds, poll_jitter_ratio)
        self._guarded = guarded
        self._is_guarded = is_guarded
        self._emit = emit
        self._woken = asyncio.Event()
        self._some_ended = asyncio.Event()
        self._enqueued = False
        self._comes_by: Callable[[], bool] = _no
        self._failures_in_a_row = 0
        self._exchange = Exchange(store, completer)
        self._expiry = Expiry(store, lease_duration, emit)

    def wake(self) -> None:
        """There may be something to claim: a slot became free, or somebody enqueued."""
        self._woken.set()

    def enqueued(self) -> None:
        """Somebody has just enqueued, and would like to see it begin: all else can wait for a moment."""
        self._enqueued = True
        self.wake()

    def look_for_expired(self) -> None:
        """There are leases that have expired."""
        self._expiry.tell()
        self.wake()

    @property
    def unanswered(self) -> bool:
        """Whether the last claim failed, or one that failed may have leased what is yet to be released."""
        return self._failures_in_a_row > 0 or self._exchange.uncertain

    def wake_after(self, delay: timedelta) -> None:
        """There will be something to claim. What is further off than the next poll is left to it."""
        if delay.total_seconds() < self._poll_interval_seconds:
            asyncio.get_running_loop().call_later(delay.total_seconds() + _DUE_AFTER_SECONDS, self.wake)

    def comes_by(self) -> bool:
        """Whether it asks the database in a moment, and takes along what the completer has to write."""
        return self._comes_by()

    async def run(self) -> None:
        filled = False
        try:
            async with anyio.create_task_group() as meanwhile:
                for _ in range(self._claims_max):
                    meanwhile.start_soon(self._warm_up)
                await self._pool.wait_for_children()
            while True:
                await self._completer.wait_for_room()
                self._comes_by = self._there_is_room
                await self._pool.wait_for_room()
                if not self._is_guarded():
                    self._stays_away()
                    await self._guarded()
                self._woken = asyncio.Event()
                self._comes_by = _yes
                if filled:  # there is a backlog: to claim for several at once is worth a moment
                    await self._pool.wait_for_more_room()
                filled = await self._fill(backlog=filled)
                self._stays_away()
                if not filled:
                    await self._rest()
        finally:
            self._stays_away()

    async def _warm_up(self) -> None:
        with suppress(StoreError):  # the claim that follows tells of it
            await ask_store(self._store.warm_up)

    def _there_is_room(self) -> bool:
        return self._pool.has_room

    def _stays_away(self) -> None:
        self._comes_by = _no
        self._completer.look()

    async def _fill(self, *, backlog: bool = False) -> bool:
        """Claim runs for all the room there is; return whether each claim found as many as it asked for."""
        room = self._pool.take_room(self._batch_size)
        if not room.size:  # it was that of a child which has gone meanwhile: look again, and do not rest
            return True
        under_way: list[_Claiming] = []
        all_were_there = True
        try:
            self._begin(room, under_way)
            if backlog:
                await self._begin_ahead(under_way)
            while under_way:
                claiming = await self._first_ended(under_way)
                all_were_there = all_were_there and claiming.is_full
                if all_were_there:
                    await self._begin_ahead(under_way)
                under_way.remove(claiming)
                self._hand_out(claiming)
                claiming.task.result()
        finally:
            if under_way:  # whatever happens, what is claimed is handed out
                with anyio.CancelScope(shield=True):
                    for claiming in under_way:
                        await asyncio.wait([claiming.task])
                        self._hand_out(claiming)
        return all_were_there

    async def _first_ended(self, under_way: Collection[_Claiming]) -> _Claiming:
        """As `asyncio.wait`, in fewer turns of the event loop."""
        while True:
            for claiming in under_way:
                if claiming.has_ended:
                    return claiming
            self._some_ended = asyncio.Event()
            await self._some_ended.wait()

    def _room_ahead(self, under_way: Collection[_Claiming]) -> Room:
        """Room for one more batch, while others are under way or yet to be handed out: if there are so many short runs
        that both the database and we have enough to do."""
        if self._completer.is_full or not self._is_guarded():
            return NO_ROOM
        if sum(not claiming.task.done() for claiming in under_way) >= self._claims_max:
            return NO_ROOM
        ahead = self._pool.room_after([claiming.room for claiming in under_way], self._batch_size)
        return ahead if 2 * ahead.size >= self._batch_size else NO_ROOM

    async def _begin_ahead(self, under_way: list[_Claiming]) -> None:
        """Begin further claims, as far as there is room for them; return once the database is being asked."""
        while (ahead := self._room_ahead(under_way)).size:
            self._begin(ahead, under_way)
            await under_way[-1].asked.wait()

    def _begin(self, room: Room, under_way: list[_Claiming]) -> None:
        under_way.append(_Claiming(room, self._claim, lambda: self._some_ended.set()))

    def _hand_out(self, claiming: _Claiming) -> None:
        self._pool.hand_out(claiming.room, claiming.claimed.runs, claiming.claimed.passed_over)

    async def _claim(self, room: Room, begun: Callable[[], None]) -> Claimed:
        try:
            await self._exchange.release_uncertain()
            claim = Claim(
                worker_name=self._worker.name,
                worker_id=self._worker.id,
                lease_token=uuid4(),
                job_names=self._job_names,
                batch_size=room.size,
                begin_max=len(room.idle) if room.behind else None,
                may_wait=self._pool.short_jobs,
                lease_duration=self._lease_duration,
                end_expired=await self._expiry.confirm(),
                looks_for_expired=self._expiry.takes_a_look(in_a_hurry=self._enqueued),
            )
            self._enqueued = False
            asked_at = boottime()
            claimed = await self._exchange.claim(claim, begun)
        except StoreError as error:
            self._failed(error)
            return Claimed([], [])
        self._answered()
        if claimed.look is not None and self._expiry.saw(claimed.look, asked_at):
            self.wake()
        await self._completer.wait_until_told(claimed.runs)
        self._tell_expired(claimed.expired)
        self._leases.hold((run.lease for run in claimed.runs), asked_at, self._lease_duration)
        if claimed.runs:
            self.pace.found_work()
        for run in claimed.runs:
            self._emit(EventType.JOB_CLAIMED, run)
        return claimed

    def _failed(self, error: StoreError) -> None:
        if self._failures_in_a_row == 0:
            log.warning("could not claim, trying again until it works: %s", error)
        self._failures_in_a_row += 1

    def _answered(self) -> None:
        if self._failures_in_a_row:
            log.info("the database answers again, after %d failed claims", self._failures_in_a_row)
        self._failures_in_a_row = 0

    async def _rest(self) -> None:
        """Wait for the next poll, or for a reason to look earlier."""
        if self.unanswered:
            backoff_seconds = _BACKOFF_SECONDS_FIRST * 2.0 ** min(max(self._failures_in_a_row - 1, 0), 8)
            await anyio.sleep(min(backoff_seconds, _BACKOFF_SECONDS_MAX) * random.uniform(0.8, 1.0))
            return
        with anyio.move_on_after(self.pace.rest_seconds()):
            await self._woken.wait()

    def _tell_expired(self, expired: list[ExpiredRun]) -> None:
        for run in expired:
            log.warning(
                "lease of %s had expired, run is now %s: run_id=%s job_name=%s attempt=%d",
                run.lease_owner,
                run.status,
                run.run_id,
                run.job_name,
                run.attempt,
            )
            if run.status is RunStatus.FAILED:
                why = f"the lease of {run.lease_owner} had expired, and no attempts remain"
                failure = Failure(error_type=LEASE_EXPIRED, error_message=why)
                self._emit(EventType.RUN_QUARANTINED, run, failure=failure)
            elif run.status is RunStatus.CANCELLED:
                self._emit(EventType.JOB_CANCELLED, run, message=CANCELLED_MESSAGE)
