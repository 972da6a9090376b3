"""Enqueue, schedule and cancel runs. `AsyncDurableStackClient` has the same names, to be awaited."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

from anyio import to_thread
from msgspec.structs import replace

from durablestack.errors import EnqueueUncertain, PayloadError, StoreUnavailable
from durablestack.events import tracing
from durablestack.ids import new_run_id, new_run_ids
from durablestack.jobs import JobRegistry
from durablestack.runs import NewRun
from durablestack.stores.contract import Store, checked_run_id

log = logging.getLogger(__name__)

JobReference = str | Callable[..., Any]

_TRIES_MAX = 3
_TRY_FOR_SECONDS = 5.0
_TRY_AGAIN_AFTER_SECONDS = 0.2


@contextmanager
def _traced(runs: Sequence[NewRun]) -> Iterator[Sequence[NewRun]]:
    """The runs with the context of a trace on them, if the application traces."""
    if not runs or not tracing.loaded():
        yield runs
        return
    with tracing.sending(runs[0].job_name, len(runs)) as trace_context:
        yield runs if trace_context is None else [replace(run, trace_context=trace_context) for run in runs]


class DurableStackClient:
    """Puts work into the queue.

    A job is named by its class or function, or by its registered name. Where `connection` is given, the run
    becomes part of that connection's open transaction: it exists once the caller commits, and not if the caller
    rolls back. It may be a connection of the store's driver, or a SQLAlchemy connection or session over one.

    All methods that enqueue raise:
        UnknownJob: the job is not registered.
        PayloadError: the arguments do not fit the job.
        StoreUnavailable: the database cannot be reached; nothing was stored.
        StoreError: `run_id` is no UUID.
        EnqueueUncertain: the connection was lost at the commit; enqueueing again with the same run id is safe.
    """

    def __init__(
        self,
        store: Store,
        jobs: JobRegistry,
        *,
        payload_bytes_max: int,
        enqueued: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._payload_bytes_max = payload_bytes_max
        self._enqueued = enqueued

    def enqueue(
        self, job: JobReference, args: Any = None, *, run_id: UUID | None = None, connection: Any = None
    ) -> UUID:
        """Enqueue one run, due now, and return its id. `run_id` repeats an enqueue whose outcome was uncertain."""
        run = self.new_run(job, args, run_id=run_id)
        self._store_runs([run], connection)
        return run.id

    def enqueue_many(
        self,
        job: JobReference,
        args: Iterable[Any],
        *,
        run_ids: Sequence[UUID] | None = None,
        connection: Any = None,
    ) -> list[UUID]:
        """Enqueue a run for each of `args`, all or none, and return their ids in the same order."""
        runs = self.new_runs(job, args, run_ids)
        self._store_runs(runs, connection)
        return [run.id for run in runs]

    def schedule(
        self,
        job: JobReference,
        args: Any = None,
        *,
        run_at: datetime,
        run_id: UUID | None = None,
        connection: Any = None,
    ) -> UUID:
        """Enqueue one run that becomes due at `run_at`, an aware datetime, and return its id."""
        run = self.new_run(job, args, run_id=run_id, run_at=run_at)
        self._store_runs([run], connection)
        return run.id

    def cancel_run(self, run_id: UUID) -> bool:
        """Cancel a run.

        A pending run is cancelled at once. A run that is executing is asked to stop, then made to:
        it is `cancelled` as soon as its process has ended, within a few seconds.

        Returns:
            False if the run is unknown or has ended already.
        """
        return self._store.cancel_run(checked_run_id(run_id))

    def new_run(
        self, job: JobReference, args: Any = None, *, run_id: UUID | None = None, run_at: datetime | None = None
    ) -> NewRun:
        registration = self._jobs.find(job)
        if run_at is not None and not isinstance(run_at, datetime):
            raise PayloadError(f"run_at is a {type(run_at).__name__}; pass an aware datetime, as in UTC")
        if run_at is not None and run_at.tzinfo is None:
            raise PayloadError(f"run_at {run_at.isoformat()} has no time zone; pass an aware datetime, as in UTC")
        return NewRun(
            id=new_run_id() if run_id is None else checked_run_id(run_id),
            job_name=registration.name,
            payload=registration.codec.encode(args, self._payload_bytes_max),
            max_attempts=registration.max_attempts,
            scheduled_for=run_at,
            recurring=registration.recurrence is not None,
        )

    def new_runs(self, job: JobReference, args: Iterable[Any], run_ids: Sequence[UUID] | None) -> list[NewRun]:
        args = list(args)
        if run_ids is not None and len(run_ids) != len(args):
            raise PayloadError(f"{len(run_ids)} run_ids were given for {len(args)} runs; there must be one for each")
        registration = self._jobs.find(job)
        encode, bytes_max = registration.codec.encode, self._payload_bytes_max
        name, max_attempts = registration.name, registration.max_attempts
        recurring = registration.recurrence is not None
        ids = new_run_ids(len(args)) if run_ids is None else [checked_run_id(run_id) for run_id in run_ids]
        return [
            NewRun(
                id=run_id,
                job_name=name,
                payload=encode(each, bytes_max),
                max_attempts=max_attempts,
                recurring=recurring,
            )
            for each, run_id in zip(args, ids, strict=True)
        ]

    def _store_runs(self, runs: Sequence[NewRun], connection: Any) -> None:
        with _traced(runs) as traced:
            if connection is not None:
                self._store.enqueue(traced, connection)  # when its commit comes, only the caller knows
                return
            self._store_until_certain(traced)
        self._enqueued()

    def _store_until_certain(self, runs: Sequence[NewRun]) -> None:
        """The ids are drawn beforehand and a stored run is not stored twice, so that repeating is safe."""
        uncertain, give_up_at = False, time.monotonic() + _TRY_FOR_SECONDS
        for tries_left in reversed(range(_TRIES_MAX)):
            try:
                return self._store.enqueue(runs)
            except StoreUnavailable as error:
                uncertain = uncertain or error.uncertain
                if tries_left and time.monotonic() < give_up_at:
                    log.warning("enqueue failed, trying again: %s", error)
                    time.sleep(_TRY_AGAIN_AFTER_SECONDS)
                elif uncertain:
                    raise EnqueueUncertain(str(error), tuple(run.id for run in runs)) from error
                else:
                    raise


class AsyncDurableStackClient:
    """The same as `DurableStackClient`, without blocking the event loop.

    `connection` may also be an asynchronous connection of the store's driver, or SQLAlchemy's wrapper of one.
    """

    def __init__(self, client: DurableStackClient, store: Store) -> None:
        self._client = client
        self._store = store

    async def enqueue(
        self, job: JobReference, args: Any = None, *, run_id: UUID | None = None, connection: Any = None
    ) -> UUID:
        if connection is None:
            return await to_thread.run_sync(lambda: self._client.enqueue(job, args, run_id=run_id))
        run = self._client.new_run(job, args, run_id=run_id)
        with _traced([run]) as traced:
            await self._store.enqueue_async(traced, connection)
        return run.id

    async def enqueue_many(
        self,
        job: JobReference,
        args: Iterable[Any],
        *,
        run_ids: Sequence[UUID] | None = None,
        connection: Any = None,
    ) -> list[UUID]:
        if connection is None:
            return await to_thread.run_sync(lambda: self._client.enqueue_many(job, args, run_ids=run_ids))
        runs = self._client.new_runs(job, args, run_ids)
        with _traced(runs) as traced:
            await self._store.enqueue_async(traced, connection)
        return [run.id for run in runs]

    async def schedule(
        self,
        job: JobReference,
        args: Any = None,
        *,
        run_at: datetime,
        run_id: UUID | None = None,
        connection: Any = None,
    ) -> UUID:
        if connection is None:
            return await to_thread.run_sync(lambda: self._client.schedule(job, args, run_at=run_at, run_id=run_id))
        run = self._client.new_run(job, args, run_id=run_id, run_at=run_at)
        with _traced([run]) as traced:
            await self._store.enqueue_async(traced, connection)
        return run.id

    async def cancel_run(self, run_id: UUID) -> bool:
        return await to_thread.run_sync(self._client.cancel_run, run_id)
