"""Each option reaches whoever heeds it. What they then make of it, their own tests tell."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import anyio
import pytest

from durablestack import DurableStack, Run, RunStatus, StoreUnavailable
from durablestack.ids import new_run_id
from durablestack.runs import NewRun, Outcome
from durablestack.stores.contract import Claim
from durablestack.stores.sql import SqlStore
from durablestack.supervisor.embedded import supervise
from durablestack.supervisor.health import why_not_ready
from durablestack.supervisor.retries import Retries
from durablestack.supervisor.tree import Supervisor
from workers import PATIENCE_SECONDS, Bench

pytestmark = pytest.mark.anyio

SEVEN_DAYS_SECONDS = 7 * 24 * 60 * 60


def new_stack(**options: Any) -> DurableStack:
    return DurableStack("chaos_jobs", storage_provider="in_memory", **options)


async def until(stack: DurableStack, run_id: UUID, status: RunStatus) -> Run:
    with anyio.fail_after(PATIENCE_SECONDS):
        while (run := stack.queries.get_run(run_id)) is None or run.status is not status:
            await anyio.sleep(0.01)
    return run


async def until_ready(supervisor: Supervisor) -> None:
    """A supervisor that stops while its children start ends them in ways that they complain about."""
    with anyio.fail_after(PATIENCE_SECONDS):
        while why_not_ready(supervisor):
            await anyio.sleep(0.01)


# --- retries


def claimed(stack: DurableStack, job_name: str, attempt: int = 1) -> Run:
    """A run of at most three attempts, at one of them."""
    stack.store.enqueue([NewRun(id=new_run_id(), job_name=job_name, max_attempts=3)])
    for _ in range(attempt):
        (run,) = stack.store.claim_due_runs(
            Claim(
                worker_name="w",
                lease_token=uuid4(),
                job_names=[job_name],
                batch_size=1,
                lease_duration=timedelta(0),
            )
        ).runs
    return run


def delays_seconds(job_name: str, *, draws: int = 1, attempt: int = 1, **options: Any) -> set[float | None]:
    stack = new_stack(**options)
    retries, run = Retries(stack.options, stack.jobs), claimed(stack, job_name, attempt)
    delays = [retries.after(run, None) for _ in range(draws)]
    return {None if delay is None else delay.total_seconds() for delay in delays}


async def test_a_retry_waits_the_delay_of_the_job_and_that_of_the_options_if_it_has_none() -> None:
    assert delays_seconds("innocent") == {5.0}
    assert delays_seconds("innocent", retry_delay="00:00:07") == {7.0}
    assert delays_seconds("raises", retry_delay="00:00:07") == {0.2}, "which the job names itself"


async def test_a_retry_waits_no_longer_than_the_options_allow() -> None:
    assert delays_seconds("asks-for-retry") == {3600.0}
    assert delays_seconds("asks-for-retry", retry_max_delay="00:10:00") == {600.0}
    stack = new_stack(retry_max_delay="00:10:00")
    asked = Retries(stack.options, stack.jobs).after(claimed(stack, "innocent"), 86_400.0)
    assert asked == timedelta(minutes=10), "whatever the job asks for"


async def test_a_retry_has_jitter_if_the_options_say_so_and_as_much() -> None:
    assert delays_seconds("innocent", draws=50) == {5.0}
    some = delays_seconds("innocent", draws=200, retry_jitter_enabled=True)
    more = delays_seconds("innocent", draws=200, retry_jitter_enabled=True, retry_jitter_ratio=1.0)
    assert all(4.0 <= (delay or 0) <= 6.0 for delay in some)
    assert len(some) > 100
    assert min(delay or 0 for delay in more) < 4.0
    assert max(delay or 0 for delay in more) > 6.0


async def test_there_is_a_retry_while_attempts_remain() -> None:
    assert [delays_seconds("innocent", attempt=attempt) for attempt in (1, 2, 3)] == [{5.0}, {5.0}, {None}]


# --- claiming


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """For how long the claimer would have rested."""
    asked: list[float] = []
    move_on_after = anyio.move_on_after

    def at_once(seconds: float) -> AbstractContextManager[object]:
        asked.append(seconds)
        return move_on_after(0)

    monkeypatch.setattr("durablestack.supervisor.claimer.anyio.move_on_after", at_once)
    return asked


@pytest.mark.parametrize(
    ("options", "shortest", "longest"),
    [
        ({}, 4.0, 6.0),
        ({"poll_interval_seconds": 10}, 8.0, 12.0),
        ({"poll_jitter_ratio": 0.5}, 2.5, 7.5),
        ({"poll_jitter_enabled": False}, 5.0, 5.0),
        ({"poll_jitter_enabled": False, "poll_interval_seconds": 2}, 2.0, 2.0),
    ],
)
async def test_polls_are_an_interval_apart_more_or_less_by_the_jitter_ratio(
    rests: list[float], options: dict[str, Any], shortest: float, longest: float
) -> None:
    supervisor = Supervisor(new_stack(**options))
    for _ in range(400):
        await supervisor.claimer._rest()
    assert len(rests) == 400
    assert shortest <= min(rests) <= shortest + 0.1 * (longest - shortest)
    assert longest - 0.1 * (longest - shortest) <= max(rests) <= longest


async def test_a_claim_is_made_in_the_workers_name_for_a_lease_and_for_no_more_than_a_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stack = new_stack(worker_name="orders-api-1", batch_size=2, max_concurrent_runs=3, lease_duration_seconds=45)
    claims: list[Claim] = []
    exchange = stack.store.exchange

    def noted(outcomes: Sequence[Outcome], claim: Claim) -> Any:
        claims.append(claim)
        return exchange(outcomes, claim)

    monkeypatch.setattr(stack.store, "exchange", noted)
    run_ids = stack.client.enqueue_many("innocent", [None] * 6)
    async with supervise(stack) as supervisor:
        for run_id in run_ids:
            await until(stack, run_id, RunStatus.SUCCEEDED)
        assert len(supervisor.pool.executors) == 3
    assert max(claim.batch_size for claim in claims) <= 2
    assert {(claim.worker_name, claim.lease_duration) for claim in claims} == {("orders-api-1", timedelta(seconds=45))}


# --- retention


@pytest.mark.parametrize(
    ("options", "older_than", "batch_size"),
    [
        ({}, timedelta(hours=1), 1000),
        ({"run_retention_seconds": SEVEN_DAYS_SECONDS, "delete_batch_size": 17}, timedelta(days=7), 17),
    ],
)
async def test_runs_are_deleted_as_the_retention_says_again_and_again(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], older_than: timedelta, batch_size: int
) -> None:
    stack = new_stack(max_concurrent_runs=1, retention={"sweep_interval_seconds": 0.01, **options})
    asked: list[tuple[timedelta, int]] = []
    monkeypatch.setattr(stack.store, "prune_runs", lambda *what: asked.append(what) or 0)
    async with supervise(stack) as supervisor:
        await until_ready(supervisor)
        with anyio.fail_after(PATIENCE_SECONDS):
            while len(asked) < 3:
                await anyio.sleep(0.01)
    assert set(asked) == {(older_than, batch_size)}


@pytest.mark.parametrize("enabled", [True, False])
async def test_nobody_sweeps_if_retention_is_off(enabled: bool) -> None:
    async with supervise(new_stack(max_concurrent_runs=1, retention={"enabled": enabled})) as supervisor:
        await until_ready(supervisor)
        names = {task.get_name() for task in asyncio.all_tasks()}
    assert "claimer" in names
    assert ("sweeper" in names) is enabled


# --- children


def test_a_crash_is_left_to_the_lease_if_the_options_say_so(sqlite_bench: Bench) -> None:
    settings = {"DURABLESTACK__CRASHED_RUN_POLICY": "expire", "DURABLESTACK__LEASE_DURATION_SECONDS": "1"}
    sqlite_bench.worker(settings=settings)
    run_id = sqlite_bench.client.enqueue("dies", "sigkill")
    assert sqlite_bench.until(run_id, RunStatus.FAILED).error_type == "LeaseExpired"


def test_output_is_kept_up_to_as_many_bytes_as_the_options_say(sqlite_bench: Bench) -> None:
    sqlite_bench.worker(settings={"DURABLESTACK__CAPTURED_OUTPUT_BYTES_MAX": "9"})
    run_id = sqlite_bench.client.enqueue("prints", 1000)
    kept = sqlite_bench.until(run_id, RunStatus.SUCCEEDED).stdout_tail or ""
    assert kept.endswith(" end\n")
    assert len(kept) < 100, "with a line that says how much was not kept"


async def test_children_may_die_as_often_as_the_options_say() -> None:
    restarts = Supervisor(new_stack(restart_limit=3, restart_period_seconds=7)).reports._restarts
    assert (restarts._limit, restarts._period_seconds) == (3, 7)


LEAVES_SLOWLY = """
import os, signal, threading, time
from chaos_jobs import note
from durablestack import JobContext, durable_job

@durable_job(name="waits-until-told")
def when_asked(context: JobContext) -> None:
    note(context, "start")
    context.wait_cancelled(60)
    time.sleep(0.7)
    note(context, "left")

@durable_job(name="innocent")
def when_terminated(context: JobContext) -> None:
    def leave(*_: object) -> None:
        time.sleep(0.7)
        note(context, "left")
        os._exit(0)

    signal.signal(signal.SIGTERM, leave)
    note(context, "start")
    threading.Event().wait()
"""


@pytest.mark.parametrize(
    ("job_name", "cancel_seconds", "terminate_seconds", "leaves"),
    [
        ("waits-until-told", 30, 0, True),
        ("waits-until-told", 0, 0, False),
        ("innocent", 0, 30, True),
        ("innocent", 0, 0, False),
    ],
)
def test_a_run_that_is_to_end_has_as_long_to_leave_as_the_options_say(
    sqlite_bench: Bench, job_name: str, cancel_seconds: int, terminate_seconds: int, leaves: bool
) -> None:
    (sqlite_bench.folder / "leaves_slowly.py").write_text(LEAVES_SLOWLY)
    settings = {
        "DURABLESTACK__CANCEL_GRACE_SECONDS": str(cancel_seconds),
        "DURABLESTACK__TERMINATE_GRACE_SECONDS": str(terminate_seconds),
    }
    sqlite_bench.worker(settings=settings, target="leaves_slowly")
    run_id = sqlite_bench.client.enqueue(job_name)
    sqlite_bench.until_noted(run_id, "start")
    sqlite_bench.client.cancel_run(run_id)
    sqlite_bench.until(run_id, RunStatus.CANCELLED)
    assert bool(sqlite_bench.notes(run_id, "left")) is leaves


@pytest.mark.parametrize(("drain_seconds", "status"), [(30, RunStatus.SUCCEEDED), (0, RunStatus.PENDING)])
async def test_a_stop_waits_for_runs_as_long_as_the_options_say(drain_seconds: float, status: RunStatus) -> None:
    stack = new_stack(
        max_concurrent_runs=1,
        shutdown_drain_timeout_seconds=drain_seconds,
        cancel_grace_seconds=0,
        terminate_grace_seconds=0,
    )
    async with supervise(stack):
        run_id = stack.client.enqueue("sleeps", {"seconds": 1.0})
        await until(stack, run_id, RunStatus.LEASED)
    assert (await until(stack, run_id, status)).attempt == (1 if status is RunStatus.SUCCEEDED else 0)


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
async def test_children_are_started_as_the_options_say(start_method: str) -> None:
    supervisor = Supervisor(new_stack(start_method=start_method))
    assert supervisor._starter.context.get_start_method() == start_method


async def test_the_endpoint_is_where_the_options_say() -> None:
    async with supervise(new_stack(max_concurrent_runs=1, monitoring={"port": 0, "host": "localhost"})) as supervisor:
        await until_ready(supervisor)
        assert supervisor.endpoint is not None
        assert supervisor.endpoint.host == "localhost"
    assert Supervisor(new_stack()).endpoint is None


# --- the database


@pytest.mark.parametrize(("synchronous", "pragma"), [("full", "2"), ("normal", "1")])
def test_sqlite_is_as_synchronous_as_the_options_say(tmp_path: Path, synchronous: str, pragma: str) -> None:
    options = {"database_url": f"sqlite:///{tmp_path}/runs.db", "sqlite": {"synchronous": synchronous}}
    with DurableStack(**options) as stack:
        stack.migrate()
        assert stack.store.server_facts()["synchronous"] == pragma


def test_sqlite_is_opened_where_the_connection_string_says(tmp_path: Path) -> None:
    connection_string = f"Data Source={tmp_path / 'durable_stack.db'}"
    with DurableStack(storage_provider="Sqlite", sqlite={"ConnectionString": connection_string}) as stack:
        stack.migrate()
        assert stack.store.durable
    assert (tmp_path / "durable_stack.db").is_file()


def test_a_database_that_does_not_answer_is_given_up_when_the_options_say(tmp_path: Path) -> None:
    options = {"database_url": f"sqlite:///{tmp_path}/runs.db", "operation_timeout_seconds": 0.05}
    with DurableStack(**options) as stack:
        stack.migrate()
        assert isinstance(stack.store, SqlStore)
        transaction = stack.store._connections.transaction()
        with transaction, pytest.raises(StoreUnavailable, match=r"was busy for 0\.05 s"):
            stack.store.count_runs()
