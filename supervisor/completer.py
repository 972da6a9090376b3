"""Writes down how attempts ended, many at a time, and does not let go until it is written.

An outcome that cannot be written is not another outcome: it is written again, until the database has it or says
that the lease is no longer ours. While one batch is on its way the next one gathers, so that the busier we are
the larger the batches become, and nobody waits when we are not.

If the claimer is about to ask the database anyway, it takes the batch along: one transaction for both.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import anyio
from msgspec import Struct
from msgspec.structs import replace

from durablestack.errors import StoreError, StoreUnavailable
from durablestack.events import EventType
from durablestack.options import Secret
from durablestack.runs import (
    CANCELLED_MESSAGE,
    NO_OUTPUT,
    Cancelled,
    Failed,
    Failure,
    Outcome,
    Output,
    Released,
    Run,
    RunStatus,
    Succeeded,
)
from durablestack.stores.contract import Store
from durablestack.text import clean

from . import verdict
from .bus import Course, Emit, Told
from .door import ask_store
from .leases import LeaseTable

log = logging.getLogger(__name__)

_BATCH_SIZE_MAX = 500
_BACKOFF_SECONDS_FIRST = 0.1
_BACKOFF_SECONDS_MAX = 3.0
_TOLD_WITHIN_SECONDS = 1.0


class Counts(Struct):
    """What has been recorded since the start; `refused`: the lease was no longer ours."""

    succeeded: int = 0
    failed: int = 0
    retried: int = 0
    cancelled: int = 0
    released: int = 0
    refused: int = 0


class Completer:
    """Runs until it is told that no more comes, and nothing is left to write."""

    def __init__(
        self, store: Store, leases: LeaseTable, *, room_for: int, emit: Emit, secrets: Collection[Secret] = ()
    ) -> None:
        self.counts = Counts()
        self.on_recorded: Callable[[Run], None] = lambda run: None
        self.on_retry: Callable[[timedelta], None] = lambda delay: None
        self.is_fetched: Callable[[], bool] = lambda: False  # whether somebody comes by for what is waiting
        self._store = store
        self._leases = leases
        self._room_for = room_for
        self._emit = emit
        self._secrets = secrets
        # bounded by the claimer, which claims nothing while there is no room
        self._waiting: list[Told] = []
        self._on_the_way = 0
        self._given_back = set[int]()  # of those on the way, by number: who may be claimed anew before we are answered
        self._answered = asyncio.Event()
        self._refused = False
        self._more = asyncio.Event()
        self._room = asyncio.Event()
        self._last = False

    # --- told by the pool and asked by the claimer, on the event loop

    def record(self, ended: Sequence[Told]) -> None:
        for run, outcome, course in ended:
            silent = type(outcome) is Succeeded and outcome.output is NO_OUTPUT
            told = outcome if silent or not self._secrets else verdict.redacted(outcome, self._secrets)
            self._waiting.append((run, told, course))
        self._more.set()

    def no_more_comes(self) -> None:
        self._last = True
        self._more.set()

    async def wait_for_room(self) -> None:
        """Wait while more outcomes are unwritten than we care to hold."""
        while self.is_full:
            self._room = asyncio.Event()
            await self._room.wait()

    @property
    def is_full(self) -> bool:
        return self.unrecorded >= self._room_for

    @property
    def unrecorded(self) -> int:
        return len(self._waiting) + self._on_the_way

    # --- whoever comes by

    def take(self) -> list[Told]:
        """What is waiting, to be written: `written` or `put_back` is to follow."""
        return [] if self._refused else self._begin_batch()

    def _begin_batch(self) -> list[Told]:
        batch = self._next_batch()
        self._on_the_way += len(batch)
        self._given_back |= _given_back(batch)
        return batch

    def _end_batch(self, batch: Sequence[Told]) -> None:
        self._on_the_way -= len(batch)
        if self._given_back:
            self._given_back -= _given_back(batch)
            self._answered.set()

    def written(self, batch: Sequence[Told], recorded: Mapping[UUID, RunStatus]) -> None:
        """The database has answered: the runs whose outcome it took, and what they are now."""
        self._leases.drop([outcome.lease for _, outcome, _ in batch])
        for run, outcome, course in batch:
            status = recorded.get(run.id)
            if status is RunStatus.SUCCEEDED:
                self._tell_success(run, course)
            else:
                self._tell(run, outcome, course, status)
            self.on_recorded(run)
        self._end_batch(batch)
        self._room.set()

    def put_back(self, batch: Sequence[Told], *, refused: bool = False) -> None:
        """It could not be written. `refused`: one of them is the reason, which is to be found out before there are
        others."""
        self._refused = self._refused or (refused and bool(batch))
        self._end_batch(batch)
        self._waiting = [*batch, *self._waiting]
        self._more.set()

    async def wait_until_told(self, runs: Sequence[Run]) -> None:
        """Wait a moment until it is told of these runs that they were given back, so that nobody hears first that they
        are claimed anew."""
        if not self._given_back:
            return
        numbers = {run.id.int for run in runs}
        with anyio.move_on_after(_TOLD_WITHIN_SECONDS):
            while not numbers.isdisjoint(self._given_back):
                self._answered = asyncio.Event()
                await self._answered.wait()

    def look(self) -> None:
        """Nobody may come by any more: what is waiting is written from here."""
        if self._waiting:
            self._more.set()

    # --- the actor

    async def run(self) -> None:
        while self.unrecorded or not self._last:
            self._more = asyncio.Event()
            if self._waiting and (self._refused or not self.is_fetched()):
                batch, self._refused = self._begin_batch(), False
                self.written(batch, await self._until_written([outcome for _, outcome, _ in batch]))
            else:
                await self._more.wait()

    def _next_batch(self) -> list[Told]:
        """Up to a second outcome of one run: of two attempts at it, the answer would not tell which was recorded."""
        runs = set[int]()  # by the number that the id of each is
        for run, _, _ in self._waiting[:_BATCH_SIZE_MAX]:
            if run.id.int in runs:
                break
            runs.add(run.id.int)
        batch, self._waiting = self._waiting[: len(runs)], self._waiting[len(runs) :]
        return batch

    async def _until_written(self, batch: Sequence[Outcome]) -> dict[UUID, RunStatus]:
        """Write until the database has answered for each; return the runs whose outcome it took, and what they are."""
        backoff_seconds = _BACKOFF_SECONDS_FIRST
        told_with_less = False
        while True:
            try:
                return await ask_store(self._store.record, batch)
            except StoreUnavailable as error:
                log.warning("could not record %d outcomes, trying again: %s", len(batch), error)
            except StoreError as error:
                log.error("the database refuses %d outcomes: %s", len(batch), error)
                if len(batch) > 1:
                    recorded: dict[UUID, RunStatus] = {}
                    for outcome in batch:
                        recorded |= await self._until_written([outcome])
                    return recorded
                if told_with_less:  # left to the expiry of its lease; it must not hold up the others
                    return {}
                batch, told_with_less = [_told_with_less(batch[0], error)], True
            await anyio.sleep(backoff_seconds * random.uniform(0.8, 1.2))
            backoff_seconds = min(backoff_seconds * 2, _BACKOFF_SECONDS_MAX)

    def _tell_success(self, run: Run, course: Course) -> None:
        self.counts.succeeded += 1
        if log.isEnabledFor(logging.INFO):
            log.info("run succeeded: %s", _names(run))
        self._emit(EventType.JOB_SUCCEEDED, run, course=course)

    def _tell(self, run: Run, outcome: Outcome, course: Course, status: RunStatus | None) -> None:
        """`status` is what the run is now; None if the outcome was not taken."""
        names = _names(run)
        if status is None:
            self.counts.refused += 1
            kind = type(outcome).__name__.lower()
            log.error(
                "outcome not recorded, the lease is no longer ours or the database refuses: %s outcome=%s", names, kind
            )
            self._emit(EventType.LEASE_LOST, run, course=course, message=f"its outcome was not recorded: {kind}")
            return
        match outcome:
            case Succeeded():
                self._tell_success(run, course)
            case Failed(failure=failure, retry_after=None):
                self.counts.failed += 1
                log.error("run failed: %s error=%s: %s", names, failure.error_type, failure.error_message)
                self._emit(EventType.JOB_FAILED, run, course=course, failure=failure)
                if course.quarantined:
                    self._emit(EventType.RUN_QUARANTINED, run, course=course, failure=failure)
            case Failed(failure=failure, retry_after=timedelta() as delay) if status is not RunStatus.CANCELLED:
                self.counts.retried += 1
                self.on_retry(delay)
                what = f"{failure.error_type}: {failure.error_message}"
                log.warning("attempt failed, retry in %.3g s: %s error=%s", delay.total_seconds(), names, what)
                retry_at = datetime.now(UTC) + delay
                self._emit(EventType.JOB_FAILED, run, course=course, failure=failure, retry_at=retry_at)
                self._emit(
                    EventType.RETRY_SCHEDULED, run, course=replace(course, duration_seconds=None), retry_at=retry_at
                )
            case Released() if status is not RunStatus.CANCELLED:
                self.counts.released += 1
                log.info("run released: %s", names)
                self._emit(EventType.JOB_RELEASED, run, course=course)
            case Cancelled() | Failed() | Released():
                self.counts.cancelled += 1
                log.info("run cancelled: %s", names)
                self._emit(EventType.JOB_CANCELLED, run, course=course, message=CANCELLED_MESSAGE)


def _given_back(batch: Sequence[Told]) -> set[int]:
    """The runs that may be claimed anew, by the number that the id of each is."""
    return {run.id.int for run, outcome, _ in batch if not isinstance(outcome, Succeeded)}


def _names(run: Run) -> str:
    return f"run_id={run.id} job_name={run.job_name} attempt={run.attempt}"


def _told_with_less(outcome: Outcome, error: StoreError) -> Outcome:
    """What the database will take of an outcome that it refused: that it was, and why more is not told."""
    match outcome:
        case Failed():
            message = clean(str(error), 500)
            failure = Failure(error_type="Unrecordable", error_message=message, crashed=outcome.failure.crashed)
            return Failed(outcome.lease, failure, outcome.retry_after)
        case Succeeded() | Cancelled():
            return replace(outcome, output=Output())
        case Released():
            return outcome
