"""Answers who wants to know where the code of a run is: its stack is taken here, and written on the run."""

from __future__ import annotations

import logging
from collections.abc import Collection
from uuid import UUID

import anyio

from durablestack.errors import StoreError
from durablestack.runs import Run
from durablestack.stores.contract import Store

from .door import ask_store
from .executor import Executor
from .pool import Pool

log = logging.getLogger(__name__)


class Stacks:
    """Each request is told again and again until it is answered; while it is being answered that changes nothing."""

    def __init__(self, store: Store, pool: Pool) -> None:
        self._store = store
        self._pool = pool
        self._asked: set[UUID] = set()
        self._taking: set[UUID] = set()
        self._more = anyio.Event()

    def asked(self, run_ids: Collection[UUID]) -> None:
        """Called on the event loop."""
        self._asked |= set(run_ids) - self._taking
        self._more.set()

    async def run(self) -> None:
        async with anyio.create_task_group() as taking:
            while True:
                await self._more.wait()
                self._more = anyio.Event()
                for run_id in self._asked:
                    self._taking.add(run_id)
                    taking.start_soon(self._take, run_id)
                self._asked = set()

    async def _take(self, run_id: UUID) -> None:
        try:
            for executor in self._pool.busy:
                if executor.assignment is not None and executor.assignment.run.id == run_id:
                    await self._answer(executor, executor.assignment.run)
                    return
        except StoreError as error:  # it will be asked for again
            log.warning("could not write down the stack of run %s: %s", run_id, error)
        finally:
            self._taking.discard(run_id)

    async def _answer(self, executor: Executor, run: Run) -> None:
        text = await executor.stacks()
        if text is not None:
            await ask_store(self._store.write_stack, run.lease, text)
