"""Writes down how attempts ended, many at a time, and does not let go until it is written.

An outcome that cannot be written is not another outcome: it is written again, until the database has it or says
that the lease is no longer ours. While one batch is on its way the next one gathers, so that the busier we are
the larger the batches become, and nobody waits when we are not.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence

import anyio
from msgspec.structs import replace

from durablestack.errors import StoreError, StoreUnavailable
from durablestack.runs import Failed, Failure, Outcome
from durablestack.stores.contract import Store

from .door import ask_store
from .leases import LeaseTable

log = logging.getLogger(__name__)

_BATCH_SIZE_MAX = 500
_BACKOFF_SECONDS_FIRST = 0.1
_BACKOFF_SECONDS_MAX = 3.0


class Completer:
    """Runs until it is told that no more comes, and nothing is left to write."""

    def __init__(self, store: Store, leases: LeaseTable, *, room_for: int) -> None:
        self.recorded = 0
        self.fenced = 0
        self._store = store
        self._leases = leases
        self._room_for = room_for
        # bounded by the claimer, which claims nothing while there is no room
        self._waiting: list[Outcome] = []
        self._more = anyio.Event()
        self._room = anyio.Event()
        self._last = False

    # --- told by the pool and the claimer, on the event loop

    def record(self, outcome: Outcome) -> None:
        self._waiting.append(outcome)
        self._more.set()

    def no_more_comes(self) -> None:
        self._last = True
        self._more.set()

    async def has_room(self) -> None:
        """Wait while more outcomes are unwritten than we care to hold."""
        while len(self._waiting) >= self._room_for:
            self._room = anyio.Event()
            await self._room.wait()

    @property
    def unrecorded(self) -> int:
        return len(self._waiting)

    # --- the actor

    async def run(self) -> None:
        while self._waiting or not self._last:
            self._more = anyio.Event()
            if self._waiting:
                await self._record_batch()
            else:
                await self._more.wait()

    async def _record_batch(self) -> None:
        batch = self._waiting[:_BATCH_SIZE_MAX]
        await self._until_written(batch)
        del self._waiting[: len(batch)]
        self._leases.drop(outcome.lease for outcome in batch)
        self._room.set()

    async def _until_written(self, batch: Sequence[Outcome]) -> None:
        backoff_seconds = _BACKOFF_SECONDS_FIRST
        while True:
            try:
                recorded = await ask_store(self._store.record, batch)
                break
            except StoreUnavailable as error:
                log.warning("could not record %d outcomes, trying again: %s", len(batch), error)
            except StoreError as error:
                log.error("the database refuses %d outcomes: %s", len(batch), error)
                if len(batch) == 1:
                    batch = [_told_with_less(batch[0], error)]
                else:
                    for outcome in batch:
                        await self._until_written([outcome])
                    return
            await anyio.sleep(backoff_seconds * random.uniform(0.8, 1.2))
            backoff_seconds = min(backoff_seconds * 2, _BACKOFF_SECONDS_MAX)
        self.recorded += len(recorded)
        for outcome in batch:
            if outcome.lease.run_id not in recorded:
                self.fenced += 1
                _log_fenced(outcome)


def _told_with_less(outcome: Outcome, error: StoreError) -> Outcome:
    """What the database will take of an outcome that it refused: that it was, and why more is not told."""
    match outcome:
        case Failed():
            failure = Failure(error_type="Unrecordable", error_message=str(error)[:500])
            return Failed(outcome.lease, failure, outcome.retry_after)
        case _ if hasattr(outcome, "output"):
            return replace(outcome, output=type(outcome.output)())
    return outcome


def _log_fenced(outcome: Outcome) -> None:
    lease = outcome.lease
    log.error(
        "outcome refused, the lease is no longer ours: run_id=%s attempt=%d outcome=%s",
        lease.run_id,
        lease.attempt,
        type(outcome).__name__.lower(),
    )
