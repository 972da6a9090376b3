"""Tells the database who works on this host, and frees at once what a worker held whose death can be proven here.

    register --> look: a worker of this host that is dead? --expire its leases--> forget it, once it holds none
       ^           |
       +-- rest <--+                                                             leave: forget ourselves

A worker on another host, or of which anything may be left, is none of our business: its leases expire by themselves.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from datetime import timedelta
from uuid import UUID

import anyio
from anyio import to_thread

from durablestack.errors import StoreError
from durablestack.stores.contract import Store
from durablestack.workers import Worker

from .door import ask_store
from .incarnation import proven_dead
from .leases import boottime

log = logging.getLogger(__name__)

_REGISTER_EVERY_SECONDS = 600.0
_FORGOTTEN_AFTER = timedelta(days=1)


class Residents:
    """`on_freed` is called on the event loop when there are leases that have expired just now."""

    def __init__(
        self, store: Store, worker: Worker, *, look_every_seconds: float, on_freed: Callable[[], None]
    ) -> None:
        self.freed = 0  # leases, since the start
        self._store = store
        self._worker = worker
        self._look_every_seconds = look_every_seconds
        self._on_freed = on_freed
        self._register_at = 0.0
        self._unanswered = False
        self._told_of: set[UUID] = set()  # bounded by the workers of this host

    async def run(self) -> None:
        if not self._worker.boot_id:
            return
        while True:
            try:
                await self._register()
                await self._look()
                self._unanswered = False
            except StoreError as error:
                if not self._unanswered:
                    log.warning("could not look for dead workers of this host, trying again: %s", error)
                self._unanswered = True
            await anyio.sleep(self._look_every_seconds * random.uniform(0.9, 1.0))

    async def leave(self) -> None:
        """Nothing is held any more: nobody needs to look for us."""
        try:
            await ask_store(self._store.forget_worker, self._worker.id)
        except StoreError as error:
            log.debug("could not take this worker out of the database: %s", error)

    async def _register(self) -> None:
        if boottime() < self._register_at:
            return
        await ask_store(self._store.register_worker, self._worker)
        await ask_store(self._store.prune_workers, _FORGOTTEN_AFTER)
        self._register_at = boottime() + _REGISTER_EVERY_SECONDS

    async def _look(self) -> None:
        for worker in await ask_store(self._store.find_workers, self._worker.boot_id):
            if worker.id == self._worker.id:
                continue
            if await to_thread.run_sync(proven_dead, worker):
                await self._free(worker)
            elif worker.name == self._worker.name:
                self._tell_of_namesake(worker)

    def _tell_of_namesake(self, worker: Worker) -> None:
        """No harm is done, names fence nothing; but whoever reads them is misled."""
        if worker.id not in self._told_of:
            self._told_of.add(worker.id)
            log.warning("another worker that may be alive has our name, %s (process %d)", worker.name, worker.pid)

    async def _free(self, worker: Worker) -> None:
        freed = await ask_store(self._store.expire_leases, worker.id)
        if not freed:  # nor will there be any: whatever it had asked for has been answered by now
            await ask_store(self._store.forget_worker, worker.id)
            return
        self.freed += freed
        log.warning("worker %s of this host is dead: the leases of its %d runs end now", worker.name, freed)
        self._on_freed()
