"""Deletes runs that ended long ago: some at a time, apart from claiming."""

from __future__ import annotations

import logging
import random
from datetime import timedelta

import anyio

from durablestack.errors import StoreError
from durablestack.stores.contract import Store

from .door import ask_store

log = logging.getLogger(__name__)

_FIRST_WITHIN_SECONDS = 5.0
_BETWEEN_BATCHES_SECONDS = 0.01


class Sweeper:
    """Any number of workers may sweep: one passes over what another is deleting."""

    def __init__(
        self, store: Store, *, run_retention: timedelta, sweep_interval_seconds: float, delete_batch_size: int
    ) -> None:
        self.pruned = 0
        self._store = store
        self._run_retention = run_retention
        self._sweep_interval_seconds = sweep_interval_seconds
        self._delete_batch_size = delete_batch_size

    async def run(self) -> None:
        await anyio.sleep(random.uniform(0, min(self._sweep_interval_seconds, _FIRST_WITHIN_SECONDS)))
        while True:
            await self._sweep()
            await anyio.sleep(self._sweep_interval_seconds * random.uniform(0.9, 1.1))

    async def _sweep(self) -> None:
        """Delete until nothing is left that is old enough."""
        deleted = 0
        try:
            while (batch := await self._prune_batch()) > 0:
                deleted += batch
                self.pruned += batch
                if batch < self._delete_batch_size:
                    break
                await anyio.sleep(_BETWEEN_BATCHES_SECONDS)
        except StoreError as error:
            log.warning("could not delete old runs, trying again at the next sweep: %s", error)
        if deleted:
            log.info("deleted %d runs that ended more than %s ago", deleted, self._run_retention)

    async def _prune_batch(self) -> int:
        return await ask_store(self._store.prune_runs, self._run_retention, self._delete_batch_size)
