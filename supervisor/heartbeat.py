"""Keeps our leases alive, and ends the runs whose lease is gone.

In a thread and on a connection of its own: neither a busy event loop nor another statement may delay it.

    extend at lease/2 --answered--> trust until asked + lease - margin
          |                         what was not kept is lost: its child is killed
          +--no answer--> again every lease/10, until the time of trust is up: then its child is killed
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Collection
from datetime import timedelta
from typing import TypeVar
from uuid import UUID

import anyio

from durablestack.errors import StoreError
from durablestack.events import EventType
from durablestack.runs import Lease
from durablestack.stores.contract import Store

from .bus import Emit
from .leases import LeaseTable, boottime
from .verdict import Ending

log = logging.getLogger(__name__)

INTERVAL_SECONDS_MIN = 0.25
_CANCEL_CHECK_SECONDS = 1.0
_TRUST_CHECK_SECONDS = 0.5
_JOIN_WITHIN_SECONDS = 5.0
_STUCK_AFTER_SECONDS_MIN = 10.0

Argument = TypeVar("Argument")


def attempt_timeout_seconds(lease_duration: timedelta) -> float:
    """How long one try may take: three of them fit between lease/2 and the end of trust."""
    return max(lease_duration.total_seconds() / 10, 0.1)


class Heartbeat:
    """`end_runs` is called on the event loop, with runs that are to be stopped and why."""

    def __init__(
        self,
        store: Store,
        leases: LeaseTable,
        end_runs: Callable[[Collection[UUID], Ending], None],
        *,
        lease_duration: timedelta,
        emit: Emit,
    ) -> None:
        self.extensions = 0  # of leases, since the start; like `unanswered` written by the thread, read by others
        self.unanswered = False
        self.on_stack_requested: Callable[[Collection[UUID]], None] = lambda run_ids: None
        self._store = store
        self._leases = leases
        self._end_runs = end_runs
        self._lease_duration = lease_duration
        self._emit = emit
        self._interval_seconds = max(INTERVAL_SECONDS_MIN, lease_duration.total_seconds() / 2)
        self._try_again_seconds = attempt_timeout_seconds(lease_duration)
        self._next_beat_at = 0.0
        self._next_cancel_check_at = 0.0
        self._stopping = threading.Event()
        self._turned_at: float | None = None

    @property
    def turns(self) -> bool:
        """Whether the thread goes on, as far as it has begun. A statement may hold it up, but not for this long."""
        stuck_after_seconds = max(_STUCK_AFTER_SECONDS_MIN, self._lease_duration.total_seconds())
        return self._turned_at is None or boottime() - self._turned_at < stuck_after_seconds

    async def run(self) -> None:
        self._loop = asyncio.get_running_loop()
        ended = anyio.Event()
        failure: list[BaseException] = []
        thread = threading.Thread(target=self._live, args=(ended, failure), name="durablestack-heartbeat", daemon=True)
        thread.start()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._watch_trust)
                await ended.wait()
                raise failure[0]
        finally:
            self._stopping.set()
            thread.join(_JOIN_WITHIN_SECONDS)

    async def _watch_trust(self) -> None:
        """The thread ends what may not be trusted any more; should a statement hold it up, it is ended from here."""
        while True:
            self._tell_lost(self._leases.lose_distrusted(), "not renewed in time")
            deadline = self._leases.seconds_to_deadline()
            await anyio.sleep(_TRUST_CHECK_SECONDS if deadline is None else min(deadline, _TRUST_CHECK_SECONDS) + 0.01)

    def _live(self, ended: anyio.Event, failure: list[BaseException]) -> None:
        try:
            self._next_beat_at = boottime() + self._interval_seconds
            while not self._stopping.wait(self._seconds_to_next()):
                self._step()
                self._turned_at = boottime()
        except BaseException as error:  # a heartbeat that stopped unnoticed would be the worst of all
            failure.append(error)
            self._on_loop(lambda _: ended.set(), None)

    def _seconds_to_next(self) -> float:
        now = boottime()
        waits = [self._next_beat_at - now, self._next_cancel_check_at - now]
        deadline = self._leases.seconds_to_deadline()
        return max(0.0, min(waits if deadline is None else [*waits, deadline]))

    def _step(self) -> None:
        self._tell_lost(self._leases.lose_distrusted(), "not renewed in time")
        if boottime() >= self._next_beat_at:
            self._next_beat_at = boottime() + (self._interval_seconds if self._beat() else self._try_again_seconds)
            self._emit(EventType.WORKER_HEARTBEAT)
        elif boottime() >= self._next_cancel_check_at:
            self._check_requests()
            self._next_cancel_check_at = boottime() + _CANCEL_CHECK_SECONDS

    def _beat(self) -> bool:
        """Extend all leases; return whether the database answered. No answer is neither success nor loss."""
        held = self._leases.held()
        if not held:
            self.unanswered = False
            return True
        asked_at = boottime()
        try:
            extended = self._store.extend_leases(held, self._lease_duration)
        except StoreError as error:
            log.warning("could not extend %d leases, trying again: %s", len(held), error)
            self._leases.tell_deadlines()
            self.unanswered = True
            return False
        self.unanswered = False
        self.extensions += len(extended.held)
        self._tell_lost(self._leases.extend(extended.held, held, asked_at, self._lease_duration), "no longer ours")
        self._tell_cancelled(extended.cancel_requested)
        return True

    def _check_requests(self) -> None:
        try:
            requests = self._store.find_requests(self._leases.held())
        except StoreError as error:
            log.debug("could not look for requests: %s", error)
            return
        self._tell_cancelled(requests.cancel)
        if requests.stack:  # told until it is answered, should an answer not be written
            self._on_loop(lambda run_ids: self.on_stack_requested(run_ids), requests.stack)

    def _tell_cancelled(self, run_ids: Collection[UUID]) -> None:
        """Until it has ended: one that is claimed, and not handed out yet, is with nobody who could end it."""
        if run_ids:
            self._on_loop(lambda ids: self._end_runs(ids, Ending.CANCELLED), run_ids)

    def _tell_lost(self, leases: list[Lease], why: str) -> None:
        """Their children have been killed already; tell those who keep the books."""
        for lease in leases:
            log.error("lease lost, %s: run_id=%s attempt=%d", why, lease.run_id, lease.attempt)
        if leases:
            self._on_loop(lambda ids: self._end_runs(ids, Ending.LEASE_LOST), {lease.run_id for lease in leases})

    def _on_loop(self, call: Callable[[Argument], None], argument: Argument) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, argument)
