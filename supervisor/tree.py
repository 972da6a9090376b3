"""The supervision tree: who runs, and in which order they stop.

Shutdown order is indentation. What is nested deeper stops earlier:

    records       heartbeat             stops last: leases are kept until nothing is left to write
      writing     completer             stops once all is written, or its time is up
        work      the executors         stop once they are drained, or made to
          intake  claimer, scheduler    stop first; so do those that nobody waits for: residents, stacks, waking,
                                        sweeper, backlog watch

Around these: the guard, which is there before the first child, and after the last.
Around all of it: the endpoint, which answers from the start to the end, and the bus, which tells of the end too.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from functools import partial

import anyio
from anyio import to_thread
from anyio.abc import TaskStatus

from durablestack.errors import DurableStackError, JobDefinitionError, StoreError, TargetError
from durablestack.events import tracing
from durablestack.jobs.services import shown
from durablestack.options import DurableStackOptions
from durablestack.stack import DurableStack

from .application import ChildSettings
from .backlog import BacklogWatch
from .bus import Bus
from .claimer import Claimer
from .completer import Completer
from .door import ask_store
from .drain import Drain
from .endpoint import Endpoint
from .guarding import Guard
from .heartbeat import Heartbeat, attempt_timeout_seconds
from .incarnation import this_worker
from .leases import LeaseTable
from .monitoring import answers
from .pool import Pool
from .reports import Reports
from .residents import Residents
from .restarts import Restarts
from .retries import Retries
from .scheduler import Scheduler
from .slots import Limits
from .stacks import Stacks
from .starter import Starter
from .sweeper import Sweeper
from .tally import RunTally
from .telemetry import TelemetrySink
from .terms import terms_of
from .waking import Waking
from .windows import Windows

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 2
"""For two claims under way, or a claim and the completer. The heartbeat has one of its own; scheduler, residents,
stacks, sweeper and backlog watch share one; waking listens on one of its own, on PostgreSQL; children have none."""

_LAST_WRITES_WITHIN_SECONDS = 5.0
_LAST_EVENTS_WITHIN_SECONDS = 3.0
_FLUSH_WITHIN_SECONDS = 1.0


class OutcomesUnrecorded(DurableStackError):
    """The supervisor had to stop before the database took all outcomes; those runs will be executed again."""


class Supervisor:
    """Owns polling, claiming and heartbeats, and hands each run to a child process.

    Args:
        stack: the application. The supervisor opens connections of its own to its database.
    """

    def __init__(self, stack: DurableStack) -> None:
        options = stack.options
        self.stack = stack
        self.started_at = time.time()
        self.worker = this_worker(options.worker_name)
        self._lease_duration = timedelta(seconds=options.lease_duration_seconds)
        self._store = stack.open_store(connections_max=CONNECTIONS_MAX)
        self._heartbeat_store = stack.open_store(
            connections_max=1, timeout_seconds=attempt_timeout_seconds(self._lease_duration)
        )
        self._upkeep_store = stack.open_store(connections_max=1)
        self.stop_asked = anyio.Event()
        self.started = anyio.Event()
        self.stopped = anyio.Event()
        self._monitored = options.monitoring.port is not None
        self.tally = RunTally(stack.jobs.names)
        self.bus = Bus(options, [*stack.event_sinks, self.tally] if self._monitored else stack.event_sinks)
        self.leases = LeaseTable()
        self.completer = Completer(
            self._store,
            self.leases,
            room_for=max(10 * options.max_concurrent_runs, 6 * options.batch_size),
            emit=self.bus.emit,
            secrets=options.secrets(),
        )
        self._starter = self._new_starter()
        self.guard = self._starter.guard = Guard(options.guard)
        self._windows = Windows(options.max_concurrent_runs, _limits(options).runs_at_once_max)
        self.reports = self._new_reports()
        self.pool = self._new_pool()
        self.drain = Drain(self.pool, options)
        self.claimer = self._new_claimer()
        self.pool.on_room = self.claimer.wake
        self.completer.is_fetched = self.claimer.comes_by
        listener = self._upkeep_store.listen()
        self.waking = Waking(listener, self.claimer.pace, wake=self.claimer.enqueued) if listener else None
        self.scheduler = self._new_scheduler()
        self.completer.on_recorded = self.scheduler.run_ended
        self.completer.on_retry = self.claimer.wake_after
        self.residents = Residents(
            self._upkeep_store,
            self.worker,
            look_every_seconds=options.poll_interval_seconds,
            on_freed=self.claimer.look_for_expired,
        )
        self.sweeper = self._new_sweeper()
        self.heartbeat = Heartbeat(
            self._heartbeat_store,
            self.leases,
            self.pool.end_runs,
            lease_duration=self._lease_duration,
            emit=self.bus.emit,
        )
        self.stacks = Stacks(self._upkeep_store, self.pool)
        self.heartbeat.on_stack_requested = self.stacks.asked
        self.backlog = BacklogWatch(
            self._upkeep_store, stack.jobs.names, interval_seconds=options.monitoring.backlog_interval_seconds
        )
        self.endpoint = (
            Endpoint(options.monitoring.host, options.monitoring.port, answers(self))
            if options.monitoring.port is not None
            else None
        )

    def _new_starter(self) -> Starter:
        stack, options = self.stack, self.stack.options
        return Starter(
            options.start_method,
            stack.child_targets,
            ChildSettings(options.job_activation, options.trace_relation, options.worker_name),
            preload=("durablestack.jobs.container",) if stack.services else (),
        )

    def _new_reports(self) -> Reports:
        options = self.stack.options
        return Reports(
            self.leases,
            self._windows,
            Restarts(options.restart_limit, options.restart_period_seconds),
            crashed_run_policy=options.crashed_run_policy,
            retry_after=Retries(options, self.stack.jobs).after,
            record=self.completer.record,
            emit=self.bus.emit,
        )

    def _new_pool(self) -> Pool:
        options = self.stack.options
        return Pool(
            options.max_concurrent_runs,
            self._starter,
            _limits(options),
            self.stack.jobs,
            self.leases,
            self._windows,
            self.reports,
            terms_of=partial(terms_of, options=options),
        )

    def _new_claimer(self) -> Claimer:
        options = self.stack.options
        return Claimer(
            self._store,
            self.pool,
            self.leases,
            self.completer,
            worker=self.worker,
            job_names=self.stack.jobs.names,
            batch_size=options.batch_size,
            claims_max=self._store.exchanges_max,
            lease_duration=self._lease_duration,
            poll_interval_seconds=options.poll_interval_seconds,
            poll_jitter_ratio=options.poll_jitter_ratio if options.poll_jitter_enabled else 0.0,
            guarded=self.guard.up,
            is_guarded=lambda: self.guard.is_up,
            emit=self.bus.emit,
        )

    def _new_scheduler(self) -> Scheduler:
        options = self.stack.options
        return Scheduler(
            self._upkeep_store,
            self.stack.jobs,
            options.recurring,
            application=self.stack.application_name,
            poll_interval_seconds=options.poll_interval_seconds,
            on_enqueued=self.claimer.enqueued,
        )

    def _new_sweeper(self) -> Sweeper:
        options = self.stack.options
        return Sweeper(
            self._upkeep_store,
            run_retention=timedelta(seconds=options.run_retention_seconds),
            sweep_interval_seconds=options.retention.sweep_interval_seconds,
            delete_batch_size=options.retention.delete_batch_size,
        )

    @property
    def stopping(self) -> bool:
        return self.stop_asked.is_set()

    # --- asked from outside, on the event loop

    def stop(self) -> None:
        """Stop gracefully: claim no more, let runs finish for a while, then end and release them."""
        self.stop_asked.set()

    def stop_now(self) -> None:
        """Stop without waiting for runs: end them at once, and release them."""
        self.stop_asked.set()
        self.drain.hurry()

    # --- the tree

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Run until stopped.

        Raises:
            JobDefinitionError: there is no job to run, or no child can make what the jobs ask for.
            TargetError: a start hook raised, a child that imports the program starts a supervisor again, or this one
                was made before the process was forked.
            OptionsError: the port of the endpoint is taken.
            StoreError: the database cannot be reached at the start, or its tables are not the right ones.
            OutcomesUnrecorded: at the end some outcomes could not be written.
        """
        if self.worker.pid != os.getpid():  # a name, a marker and connections of somebody else
            made_and_run = f"was made in process {self.worker.pid}, and is run in {os.getpid()}"
            raise TargetError(f"this supervisor {made_and_run}: make it after the fork")
        try:
            async with self.endpoint.listening() if self.endpoint is not None else nullcontext():
                await self._check_start()
                self._tell_start()
                await self._call_start_hooks()
                self._measure_if_traced()
                self.bus.start()
                with self._woken_by_enqueue():
                    self.started.set()
                    task_status.started()
                    async with anyio.create_task_group() as guarded:
                        await guarded.start(self.guard.run, name="guard")
                        await self._run_tree()
                        guarded.cancel_scope.cancel()
        finally:
            self._close()
            await self._tell_last_events()
            self.stopped.set()
        if self.completer.unrecorded:
            raise OutcomesUnrecorded(
                f"{self.completer.unrecorded} outcomes could not be written; their leases expire, and the runs are "
                "executed again"
            )

    async def _check_start(self) -> None:
        if not len(self.stack.jobs):
            where = ", ".join(self.stack.targets) or "no module was named"
            raise JobDefinitionError(f"there is no job to run: none is declared in {where}; decorate one: @durable_job")
        if self.stack.options.auto_migrate:
            await ask_store(self._store.migrate)
        await ask_store(self._store.verify_schema)
        with suppress(StoreError):  # its time is short, and it tries again
            await ask_store(self._heartbeat_store.now)  # it has its connection before it has leases to lose

    async def _call_start_hooks(self) -> None:
        for hook in self.stack.supervisor_start_hooks:
            try:
                result = hook()
                if inspect.isawaitable(result):
                    await result
            except Exception as error:
                raise TargetError(
                    f"supervisor start hook {shown(hook)} raised {type(error).__name__}: {error}"
                ) from error

    def _measure_if_traced(self) -> None:
        """A start hook may have been what loaded OpenTelemetry."""
        if tracing.loaded():
            self.bus.add(TelemetrySink(self))
            self._monitored = True

    def _tell_start(self) -> None:
        options, target = self.stack.options, self.stack.options.connection_target()
        log.info(
            "worker %s: %d jobs, %d runs at once, on %s",
            options.worker_name,
            len(self.stack.jobs),
            options.max_concurrent_runs,
            target.describe() if target is not None else "the memory of this process",
        )

    async def _run_tree(self) -> None:
        async with anyio.create_task_group() as records:
            records.start_soon(self.heartbeat.run, name="heartbeat")
            async with anyio.create_task_group() as writing:
                writing.start_soon(self.completer.run, name="completer")
                async with anyio.create_task_group() as work:
                    work.start_soon(self.pool.run, name="pool")
                    async with anyio.create_task_group() as intake:
                        intake.start_soon(self.claimer.run, name="claimer")
                        intake.start_soon(self.scheduler.run, name="scheduler")
                        intake.start_soon(self.stacks.run, name="stacks")
                        if self.waking is not None:
                            intake.start_soon(self.waking.run, name="waking")
                        if self._store.durable:
                            intake.start_soon(self.residents.run, name="residents")
                        if self.stack.options.retention.enabled:
                            intake.start_soon(self.sweeper.run, name="sweeper")
                        if self._monitored:
                            intake.start_soon(self.backlog.run, name="backlog")
                        await self.stop_asked.wait()
                        intake.cancel_scope.cancel()
                    await self.drain.end_runs()
                    if self.stack.ends_in_children or tracing.loaded():  # the others are gone at once
                        await self.drain.let_children_leave()
                    work.cancel_scope.cancel()
                self.completer.no_more_comes()  # it then ends by itself, or is ended
                writing.cancel_scope.deadline = anyio.current_time() + _LAST_WRITES_WITHIN_SECONDS
            if self._store.durable and not self.leases and not self.claimer.unanswered:
                # else somebody may have to free what we leave behind
                await self.residents.leave()
            records.cancel_scope.cancel()

    @contextmanager
    def _woken_by_enqueue(self) -> Iterator[None]:
        """Whoever enqueues in this process, in whatever thread, need not wait for the next poll."""
        loop = asyncio.get_running_loop()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop has closed meanwhile
                loop.call_soon_threadsafe(self.claimer.enqueued)

        self.stack.add_waker(wake)
        try:
            yield
        finally:
            self.stack.remove_waker(wake)

    async def _tell_last_events(self) -> None:
        with anyio.CancelScope(shield=True):  # bounded, and in a thread that nobody else can keep from us
            await to_thread.run_sync(self.bus.close, _LAST_EVENTS_WITHIN_SECONDS, limiter=anyio.CapacityLimiter(1))
            # an exporter may think little of the time it has, and must not keep the process either
            flushing = threading.Thread(target=tracing.flush, args=(_FLUSH_WITHIN_SECONDS,), daemon=True)
            flushing.start()
            await to_thread.run_sync(flushing.join, 2 * _FLUSH_WITHIN_SECONDS, limiter=anyio.CapacityLimiter(1))

    def _close(self) -> None:
        self._starter.unstick()
        for store in (self._store, self._heartbeat_store, self._upkeep_store):
            if store.durable:
                store.close()


def _limits(options: DurableStackOptions) -> Limits:
    return Limits(
        startup_timeout_seconds=options.startup_timeout_seconds,
        cancel_grace_seconds=options.cancel_grace_seconds,
        terminate_grace_seconds=options.terminate_grace_seconds,
        output_bytes_max=options.captured_output_bytes_max,
        window_max=options.window_max,
        runs_per_child_max=options.runs_per_child_max,
        child_memory_max=options.child_memory_max,
    )
