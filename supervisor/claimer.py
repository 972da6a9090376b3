"""Claims due runs for idle executors."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Collection
from datetime import timedelta
from uuid import UUID, uuid4

import anyio

from durablestack.errors import StoreError, StoreUnavailable
from durablestack.events import EventType
from durablestack.runs import CANCELLED_MESSAGE, LEASE_EXPIRED, Failure, Run, RunStatus
from durablestack.stores.contract import Claim, Claimed, ExpiredRun, Store
from durablestack.workers import Worker

from .bus import Emit
from .clocks import DatabaseClock
from .completer import Completer
from .door import ask_store
from .executor import Executor
from .leases import LeaseTable, boottime
from .pool import Pool

log = logging.getLogger(__name__)

_BACKOFF_SECONDS_FIRST = 0.5
_BACKOFF_SECONDS_MAX = 5.0
_LOOK_FOR_EXPIRED_SECONDS = 0.5
_DUE_AFTER_SECONDS = 0.01  # the database counts from its own commit


class Claimer:
    """Never claims more than can start at once: a claimed run that waits is a lease that ages.

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
        guarded: Callable[[], Awaitable[None]],
        emit: Emit,
    ) -> None:
        self._store = store
        self._pool = pool
        self._leases = leases
        self._completer = completer
        self._worker = worker
        self._job_names = tuple(job_names)
        self._batch_size = batch_size
        self._lease_duration = lease_duration
        self._poll_interval_seconds = poll_interval_seconds
        self._poll_jitter_ratio = poll_jitter_ratio
        self._guarded = guarded
        self._emit = emit
        self._woken = anyio.Event()
        self._failures_in_a_row = 0
        self._look_for_expired_at = 0.0
        self._database_clock = DatabaseClock(lease_duration)
        self._uncertain_claims: set[UUID] = set()

    def wake(self) -> None:
        """There may be something to claim: a slot became free, or somebody enqueued."""
        self._woken.set()

    def look_for_expired(self) -> None:
        """There are leases that have expired."""
        self._look_for_expired_at = 0.0
        self.wake()

    @property
    def unanswered(self) -> bool:
        """Whether the last claim failed."""
        return self._failures_in_a_row > 0

    def wake_after(self, delay: timedelta) -> None:
        """There will be something to claim. What is further off than the next poll is left to it."""
        if delay.total_seconds() < self._poll_interval_seconds:
            asyncio.get_running_loop().call_later(delay.total_seconds() + _DUE_AFTER_SECONDS, self.wake)

    async def run(self) -> None:
        while True:
            await self._completer.has_room()
            idle = await self._pool.take_idle(self._batch_size)
            await self._guarded()
            self._woken = anyio.Event()
            claimed = await self._claim_for(idle)
            if claimed < len(idle):
                await self._rest()

    async def _claim_for(self, idle: list[Executor]) -> int:
        """Claim a run for each of the idle executors, as far as there are runs; return how many there were."""
        with anyio.CancelScope(shield=True):  # what is claimed is handed out
            runs = await self._claim_batch(len(idle))
            for executor, run in zip(idle, runs, strict=False):
                self._pool.assign(executor, run)
            self._pool.give_back(idle[len(runs) :])
        return len(runs)

    async def _claim_batch(self, size: int) -> list[Run]:
        try:
            await self._release_uncertain_claims()
            claim = Claim(
                worker_name=self._worker.name,
                worker_id=self._worker.id,
                lease_token=uuid4(),
                job_names=self._job_names,
                batch_size=size,
                lease_duration=self._lease_duration,
                end_expired=await self._may_end_expired(),
            )
            asked_at = boottime()
            claimed = await self._ask_for_claim(claim)
        except StoreError as error:
            self._failed(error)
            return []
        self._answered()
        self._tell_expired(claimed.expired)
        self._leases.hold((run.lease for run in claimed.runs), asked_at, self._lease_duration)
        for run in claimed.runs:
            self._emit(EventType.JOB_CLAIMED, run)
        return claimed.runs

    async def _may_end_expired(self) -> bool:
        """Now and then; and not for a while after the clock that decides has jumped."""
        asked_at = boottime()
        if asked_at < self._look_for_expired_at:
            return False
        jump = self._database_clock.saw(await ask_store(self._store.now), asked_at, boottime())
        self._look_for_expired_at = asked_at + _LOOK_FOR_EXPIRED_SECONDS
        if jump is not None:
            what = f"the database's clock has jumped by {jump.total_seconds():+.1f} s"
            log.error("%s: no lease is ended for the next %s", what, self._lease_duration)
            self._emit(EventType.CLOCK_JUMP_DETECTED, message=what)
        return self._database_clock.trusted

    async def _ask_for_claim(self, claim: Claim) -> Claimed:
        try:
            return await ask_store(self._store.claim_due_runs, claim)
        except StoreUnavailable as error:
            if error.uncertain:
                self._uncertain_claims.add(claim.lease_token)
            raise

    async def _release_uncertain_claims(self) -> None:
        """Runs that a claim leased whose answer was lost: nobody works on them, and nobody else may."""
        for token in list(self._uncertain_claims):
            released = await ask_store(self._store.release_claim, token)
            self._uncertain_claims.discard(token)
            if released:
                log.info("released %d runs of a claim whose answer was lost", len(released))

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
        if self._failures_in_a_row:
            backoff_seconds = _BACKOFF_SECONDS_FIRST * 2.0 ** min(self._failures_in_a_row - 1, 8)
            await anyio.sleep(min(backoff_seconds, _BACKOFF_SECONDS_MAX) * random.uniform(0.8, 1.0))
            return
        jitter = random.uniform(-self._poll_jitter_ratio, self._poll_jitter_ratio)
        with anyio.move_on_after(self._poll_interval_seconds * (1 + jitter)):
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
