"""Counts what is due, for whoever measures. It claims nothing, and no claim waits for it."""

from __future__ import annotations

import logging
import random
from collections.abc import Collection

import anyio

from durablestack.errors import StoreError
from durablestack.stores.contract import Backlog, Store

from .door import ask_store

log = logging.getLogger(__name__)

DUE_COUNT_MAX = 10_000


class BacklogWatch:
    """`latest` is what was measured last; None before the first time, and while the database does not answer."""

    def __init__(self, store: Store, job_names: Collection[str], *, interval_seconds: float) -> None:
        self.latest: Backlog | None = None
        self.unanswered = False
        self._store = store
        self._job_names = tuple(job_names)
        self._interval_seconds = interval_seconds

    async def run(self) -> None:
        while True:
            await self._measure()
            await anyio.sleep(self._interval_seconds * random.uniform(0.9, 1.1))

    async def _measure(self) -> None:
        try:
            self.latest = await ask_store(self._store.measure_backlog, self._job_names, DUE_COUNT_MAX)
            self.unanswered = False
        except StoreError as error:
            log.debug("could not count what is due: %s", error)
            self.latest, self.unanswered = None, True
