"""What a real supervisor tells: in the right order, to everyone, and without being held up by anyone."""

from __future__ import annotations

import os
import socket
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import anyio
import pytest
from anyio import to_thread

from collector import Collector, collector
from durablestack import DurableStack, Event, EventSink, EventType, Run, RunStatus
from durablestack.ids import new_run_id
from durablestack.runs import NewRun
from durablestack.stores.contract import Claim
from durablestack.supervisor.embedded import supervise
from listeners import Hanging, Listener, Raising
from workers import PATIENCE_SECONDS, Bench, eventually

pytestmark = pytest.mark.anyio

MakeStack = Callable[..., DurableStack]


@pytest.fixture
def make_stack(tmp_path: Path) -> Iterator[MakeStack]:
    made: list[DurableStack] = []

    def make(*sinks: EventSink, **options: Any) -> DurableStack:
        values: dict[str, Any] = {
            "database_url": f"sqlite:///{tmp_path}/runs.db",
            "max_concurrent_runs": 3,
            "worker_name": "worker-1",
            "poll_interval_seconds": 0.2,
            "cancel_grace_seconds": 0.3,
            "terminate_grace_seconds": 0.3,
            "shutdown_drain_timeout_seconds": 0.3,
            **options,
        }
        made.append(DurableStack("chaos_jobs", event_sinks=sinks, **values))
        return made[-1]

    yield make
    for stack in made:
        stack.close()
    forkserver.ensure_running()  # buries the one before, which a supervisor ends if it stops while a child is started


@pytest.fixture
def hosted() -> Iterator[Collector]:
    with collector() as made:
        yield made


async def ended(stack: DurableStack, run_id: UUID) -> Run:
    return await until(stack, run_id, lambda run: run.status.terminal)


async def until(stack: DurableStack, run_id: UUID, wanted: Callable[[Run], bool]) -> Run:
    with anyio.fail_after(PATIENCE_SECONDS):
        while (run := stack.queries.get_run(run_id)) is None or not wanted(run):
            await anyio.sleep(0.01)
    return run


async def leased(stack: DurableStack, run_id: UUID) -> Run:
    return await until(stack, run_id, lambda run: run.status is RunStatus.LEASED)


async def heard(sink: Listener, run_id: UUID, event_type: EventType) -> Event:
    """Wait until the sink has heard it of the run."""

    def it_was(events: list[Event]) -> list[Event]:
        return [event for event in events if event.run_id == run_id and event.event_type is event_type]

    return it_was(await to_thread.run_sync(sink.until, lambda events: bool(it_was(events))))[0]


# --- the order of events


FAILED_FOR_GOOD = ["job_claimed", "job_started", "job_failed"]


async def test_each_attempt_tells_its_story_in_order(make_stack: MakeStack) -> None:
    sink = Listener()
    stack = make_stack(sink)
    async with supervise(stack):
        client = stack.async_client
        succeeds = await client.enqueue("prints", 1)
        retries = await client.enqueue("raises", "no")
        asks = await client.enqueue("asks-for-retry")
        crashes = await client.enqueue("dies", "sigkill")
        exits = await client.enqueue("dies-once", "exit-3")
        times_out = await client.enqueue("hangs-limited")
        cancelled = await client.enqueue("waits-until-told")
        await leased(stack, cancelled)
        await heard(sink, cancelled, EventType.JOB_STARTED)
        await client.cancel_run(cancelled)
        for run_id in (succeeds, retries, asks, crashes, exits, times_out, cancelled):
            await ended(stack, run_id)
    stories = {
        succeeds: {1: ["job_claimed", "job_started", "job_succeeded"]},
        retries: {
            1: [*FAILED_FOR_GOOD, "retry_scheduled"],
            2: ["job_claimed", "job_started", "job_retried", "job_failed"],
        },
        asks: {
            1: [*FAILED_FOR_GOOD, "retry_scheduled"],
            2: ["job_claimed", "job_started", "job_retried", "job_succeeded"],
        },
        crashes: {1: ["job_claimed", "job_started", "child_crashed", "job_failed"]},
        exits: {
            1: ["job_claimed", "job_started", "child_crashed", "job_failed", "retry_scheduled"],
            2: ["job_claimed", "job_started", "job_retried", "job_succeeded"],
        },
        times_out: {1: FAILED_FOR_GOOD},
        cancelled: {1: ["job_claimed", "job_started", "job_cancelled"]},
    }
    told: dict[UUID, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for event in sink.events:
        if event.run_id is not None and event.attempt is not None:
            told[event.run_id][event.attempt].append(event.event_type)
    assert told == stories


async def test_events_say_whose_they_are_how_long_it_took_and_what_went_wrong(make_stack: MakeStack) -> None:
    sink = Listener()
    stack = make_stack(sink)
    async with supervise(stack):
        run_id = await stack.async_client.enqueue("raises", "no way")
        slow = await stack.async_client.enqueue("sleeps", {"seconds": 0.2})
        crashed = await stack.async_client.enqueue("dies", "sigkill")
        run, *_ = [await ended(stack, each) for each in (run_id, slow, crashed)]
    of_run = [event for event in sink.events if event.run_id == run_id]
    assert {(event.job_name, event.max_attempts, event.worker_name) for event in of_run} == {("raises", 2, "worker-1")}
    failed = await heard(sink, run_id, EventType.JOB_FAILED)
    scheduled = await heard(sink, run_id, EventType.RETRY_SCHEDULED)
    assert (failed.error_type, failed.error_message, failed.error_detail) == ("ValueError", "no way", None)
    assert run.error_detail, "which the run has"
    assert failed.duration_ms is not None
    assert scheduled.retry_at is not None
    assert timedelta() < scheduled.retry_at - scheduled.occurred_at <= timedelta(seconds=0.2)
    succeeded = await heard(sink, slow, EventType.JOB_SUCCEEDED)
    assert 200 <= (succeeded.duration_ms or 0) < PATIENCE_SECONDS * 1000
    crash = await heard(sink, crashed, EventType.CHILD_CRASHED)
    assert "SIGKILL" in (crash.message or "")
    assert any(word.isdigit() for word in (crash.message or "").split()), "the process that it was"


async def test_a_run_that_a_stopping_worker_gives_back_is_told_as_released(make_stack: MakeStack) -> None:
    sink = Listener()
    stack = make_stack(sink)
    async with supervise(stack):
        run_id = await stack.async_client.enqueue("sleeps", {"seconds": 60})
        await heard(sink, run_id, EventType.JOB_STARTED)
    assert sink.types_of(run_id) == ["job_claimed", "job_started", "job_released"]
    assert sink.closed.is_set()


async def test_a_lost_lease_is_told_and_no_end_of_its_attempt(make_stack: MakeStack) -> None:
    sink = Listener()
    stack = make_stack(sink, lease_duration_seconds=1, max_concurrent_runs=1)
    async with supervise(stack):
        run_id = await stack.async_client.enqueue("slow-at-first")
        await heard(sink, run_id, EventType.JOB_STARTED)
        token = (await leased(stack, run_id)).lease_token
        assert token is not None
        stack.store.release_claim(token)  # as if somebody else had taken it: the lease is not ours any more
        lost = await heard(sink, run_id, EventType.LEASE_LOST)
        await to_thread.run_sync(sink.until, lambda _: sink.types_of(run_id).count("job_started") == 2)
    assert lost.job_name == "slow-at-first"
    again = sink.types_of(run_id).index("lease_lost") + 1
    assert sink.types_of(run_id)[:again] == ["job_claimed", "job_started", "lease_lost"]
    assert "child_crashed" not in sink.types_of(run_id), "it was us who ended it"


async def test_a_run_whose_last_lease_expired_is_told_as_quarantined(make_stack: MakeStack) -> None:
    sink = Listener()
    stack = make_stack(sink)
    stack.migrate()
    run_id = new_run_id()
    stack.store.enqueue([NewRun(id=run_id, job_name="innocent", max_attempts=1)])
    stack.store.claim_due_runs(
        Claim(
            worker_name="worker-gone",
            lease_token=uuid4(),
            job_names=("innocent",),
            batch_size=1,
            lease_duration=timedelta(milliseconds=1),
        )
    )
    async with supervise(stack):
        quarantined = await heard(sink, run_id, EventType.RUN_QUARANTINED)
    assert sink.types_of(run_id) == ["run_quarantined"]
    assert (quarantined.error_type, quarantined.attempt) == ("LeaseExpired", 1)
    assert "worker-gone" in (quarantined.error_message or "")


async def test_an_idle_worker_tells_that_it_lives(make_stack: MakeStack) -> None:
    sink = Listener()
    async with supervise(make_stack(sink, lease_duration_seconds=1)):
        beat = await to_thread.run_sync(sink.until_type, EventType.WORKER_HEARTBEAT)
    assert (beat.worker_name, beat.run_id, beat.job_name) == ("worker-1", None, None)


async def test_an_idle_child_that_dies_is_told_without_a_run(make_stack: MakeStack) -> None:
    sink = Listener()
    async with supervise(make_stack(sink, max_concurrent_runs=1)) as supervisor:
        (executor,) = supervisor.pool.executors
        with anyio.fail_after(PATIENCE_SECONDS):
            while executor.pid is None:
                await anyio.sleep(0.01)
        pid = executor.pid
        os.kill(pid, 9)
        crash = await to_thread.run_sync(sink.until_type, EventType.CHILD_CRASHED)
    assert crash.run_id is None
    assert str(pid) in (crash.message or "")
    assert "SIGKILL" in (crash.message or "")


# --- sinks that misbehave


async def test_sinks_that_hang_and_raise_touch_neither_runs_nor_leases_nor_each_other(make_stack: MakeStack) -> None:
    hanging, raising, good = Hanging(), Raising(), Listener()
    stack = make_stack(hanging, raising, good, lease_duration_seconds=1)
    with anyio.fail_after(2 * PATIENCE_SECONDS):
        async with supervise(stack):
            client = stack.async_client
            long = await client.enqueue("sleeps", {"seconds": 2.5})  # its lease has to be extended
            short = [await client.enqueue("prints", 1) for _ in range(20)]
            fails = await client.enqueue("gives-up")
            runs = [await ended(stack, run_id) for run_id in (long, *short, fails)]
            assert hanging.called.is_set()
    assert [run.status for run in runs] == [RunStatus.SUCCEEDED] * 21 + [RunStatus.FAILED]
    assert {run.attempt for run in runs} == {1}
    for run_id in (long, *short):
        assert good.types_of(run_id) == ["job_claimed", "job_started", "job_succeeded"]
    assert good.types_of(fails) == FAILED_FOR_GOOD
    assert good.closed.is_set()
    assert raising.calls
    assert hanging.calls == 1
    hanging.let_go.set()


@pytest.mark.parametrize("trouble", ["nobody listens", "no answer", "401", "500"])
async def test_a_hosted_service_in_trouble_touches_no_run(
    make_stack: MakeStack, hosted: Collector, trouble: str
) -> None:
    url = hosted.url
    match trouble:
        case "nobody listens":
            with socket.create_server(("127.0.0.1", 0)) as bound:
                url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        case "no answer":
            hosted.hold.clear()
        case status:
            hosted.answers = [int(status)]
    stack = make_stack(lease_duration_seconds=1, eventing=eventing(url))
    with anyio.fail_after(PATIENCE_SECONDS):
        async with supervise(stack):
            run_ids = [await stack.async_client.enqueue("sleeps", {"seconds": 1.5})]
            run_ids += [await stack.async_client.enqueue("prints", 1) for _ in range(10)]
            runs = [await ended(stack, run_id) for run_id in run_ids]
    assert {(run.status, run.attempt) for run in runs} == {(RunStatus.SUCCEEDED, 1)}


def eventing(url: str) -> dict[str, Any]:
    return {
        "tenant_id": "tenant_1",
        "client_secret": "shh-shh",
        "ingestion_api_base_url": url,
        "ingestion_flush_interval_seconds": 0.1,
    }


async def test_the_hosted_service_hears_of_every_run_by_itself_once_there_are_credentials(
    make_stack: MakeStack, hosted: Collector
) -> None:
    stack = make_stack(eventing=eventing(hosted.url), lease_duration_seconds=1)
    async with supervise(stack):
        run_ids = [await stack.async_client.enqueue("prints", 1) for _ in range(5)]
        for run_id in run_ids:
            await ended(stack, run_id)
    for run_id in run_ids:
        assert [event["eventType"] for event in hosted.events if event["runId"] == str(run_id)] == [
            "job_claimed",
            "job_started",
            "job_succeeded",
        ]


# --- from the command line


SHOP = """
import os
from pathlib import Path
from durablestack import DurableStack, durable_job

class Diary:
    def emit(self, events):
        with Path("heard").open("a") as file:
            file.writelines(f"{os.getpid()} {event.event_type}\\n" for event in events)

stack = DurableStack(__name__, event_sinks=[Diary()])
stack.use_logging_event_sink()

@durable_job(name="innocent")
def job() -> None: ...
"""


def test_the_sinks_of_an_application_are_called_in_its_supervisor_and_not_in_children(sqlite_bench: Bench) -> None:
    (sqlite_bench.folder / "shop_that_listens.py").write_text(SHOP)
    worker = sqlite_bench.worker(target="shop_that_listens")
    run_id = sqlite_bench.client.enqueue("innocent")
    sqlite_bench.until(run_id, RunStatus.SUCCEEDED)
    worker.until_logged(f"job_succeeded: run_id={run_id} job_name=innocent attempt=1 worker_name=worker-0")
    heard = sqlite_bench.folder / "heard"
    eventually(lambda: heard.exists() and "job_succeeded" in heard.read_text())
    worker.terminate()
    assert worker.exit_code() == 0
    lines = [line.split() for line in heard.read_text().splitlines()]
    assert {int(pid) for pid, _ in lines} == {worker.pid}
    assert [kind for _, kind in lines if kind != "worker_heartbeat"] == ["job_claimed", "job_started", "job_succeeded"]
