"""Short runs that wait behind others when something ends: a child, a run, a lease, or a supervisor that is stopped.

What had not begun is done by others, as if nothing had been; what had begun is an affair of its own.
"""

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import anyio
import pytest
from anyio import to_thread

from durablestack import RunStatus
from durablestack.stores.sql import SqlStore
from durablestack.supervisor.verdict import Ending
from processes import stat_fields, still_running
from short_bench import PATIENCE_SECONDS, ShortBench, short_bench

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path, table_prefix: str) -> dict[str, Any]:
    if request.param == "sqlite":
        return {"database_url": f"sqlite:///{tmp_path}/runs.db"}
    return {"database_url": request.getfixturevalue("postgres_dsn"), "database_table_prefix": table_prefix}


@pytest.fixture
def any_bench(tmp_path: Path, database: dict[str, Any]) -> Iterator[ShortBench]:
    with short_bench(tmp_path, **database) as made:
        yield made


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[ShortBench]:
    with short_bench(tmp_path, database_url=f"sqlite:///{tmp_path}/runs.db") as made:
        yield made


# --- a child ends


async def test_a_run_that_ends_its_process_costs_those_behind_it_nothing(any_bench: ShortBench) -> None:
    deaths = {"sigkill": "ChildCrashed", "segfault": "ChildCrashed", "exit": "ChildExited"}
    hows = [[*deaths][number // 50 % 3] if number % 50 == 25 else "" for number in range(1_000)]
    run_ids = any_bench.enqueue_all("short-and-may-die", [{"what": how} for how in hows])
    async with any_bench.supervised(restart_limit=1_000) as watched:
        await any_bench.until_ended()
    innocent = [run_id for run_id, how in zip(run_ids, hows, strict=True) if not how]
    any_bench.all_succeeded_at_once(innocent)
    assert not any(map(any_bench.failed_attempts, innocent))
    executions = any_bench.executions()
    for run_id, how in zip(run_ids, hows, strict=True):
        if how:
            run = any_bench.run(run_id)
            assert (run.status, run.attempt, run.crash_count) == (RunStatus.SUCCEEDED, 2, 1)
            assert any_bench.failed_attempts(run_id) == [deaths[how]]
            assert executions[run_id] == 2
    assert watched.supervisor.reports.children_lost == 20
    assert watched.kept_waiting & set(run_ids)


async def test_a_run_that_ends_its_process_again_and_again_is_given_up_and_no_other_pays_for_it(
    bench: ShortBench,
) -> None:
    hows = ["segfault again" if number in (100, 200, 300) else "" for number in range(400)]
    run_ids = bench.enqueue_all("short-and-may-die", [{"what": how} for how in hows])
    async with bench.supervised(restart_limit=1_000) as watched:
        await bench.until_ended()
    deadly = [run_ids[number] for number in (100, 200, 300)]
    bench.all_succeeded_at_once([run_id for run_id in run_ids if run_id not in deadly])
    for run in bench.runs(deadly):
        assert (run.status, run.attempt, run.crash_count) == (RunStatus.FAILED, 3, 3)
        assert bench.executions()[run.id] == 3
    for run in bench.runs(run_ids):
        assert run.stdout_tail == f"{run.attempt} of {run.id}\n", "its own, of its last attempt"
    assert watched.behind_max > 0


async def test_a_child_that_is_killed_from_outside_costs_the_run_in_hand_alone(any_bench: ShortBench) -> None:
    run_ids = any_bench.enqueue("short", 1_500, seconds=0.001)
    async with any_bench.supervised(restart_limit=1_000) as watched:
        for _ in range(10):
            await watched.until_some_wait(at_least=2)
            victim = next(each for each in watched.supervisor.pool.executors if each.behind >= 2)
            assert victim.pid is not None
            with suppress(ProcessLookupError):  # the one before, of which nobody here has heard yet
                os.kill(victim.pid, signal.SIGKILL)
            await anyio.sleep(0.03)
        await any_bench.until_ended()
    runs = any_bench.runs(run_ids)
    assert {run.status for run in runs} == {RunStatus.SUCCEEDED}
    hit = [run for run in runs if run.attempt > 1]
    assert len(hit) <= 10
    executions = any_bench.executions()
    assert all(executions[run.id] == 1 for run in runs if run.attempt == 1)
    assert all(any_bench.failed_attempts(run.id) == ["ChildCrashed"] for run in hit)


# --- what a run leaves behind


async def test_what_a_short_run_leaves_behind_is_met_by_none_of_those_that_waited(bench: ShortBench) -> None:
    mess = ["folder", "environment", "thread", "process", "exit", "memory"]
    whats = [mess[number // 40 % 6] if number % 40 == 20 else "" for number in range(720)]
    run_ids = bench.enqueue_all("short-and-leaves", [{"what": what} for what in whats])
    async with bench.supervised() as watched:
        await bench.until_ended()
    executions = bench.executions()
    for run, what in zip(bench.runs(run_ids), whats, strict=True):
        if what in ("exit", "memory"):
            expected = (RunStatus.FAILED, 3, {"exit": "SystemExit", "memory": "MemoryError"}[what])
            assert executions[run.id] == 3
        else:
            expected = (RunStatus.SUCCEEDED, 1, None)
            assert executions[run.id] == 1
        assert (run.status, run.attempt, run.error_type) == expected, run.error_message
    assert watched.supervisor.reports.children_lost == 0, "they are replaced, and nobody died"
    assert watched.behind_max > 0


async def test_what_a_short_run_has_sent_off_is_over_when_the_run_is(
    bench: ShortBench, caplog: pytest.LogCaptureFixture
) -> None:
    """Also if its supervisor is so busy that it hears of several runs at once."""
    whats = ["daemon" if number % 40 == 20 else "" for number in range(400)]
    run_ids = bench.enqueue_all("short-and-sends-off-a-daemon", [{"what": what} for what in whats])
    async with bench.supervised() as watched:
        with anyio.fail_after(PATIENCE_SECONDS):
            while await bench.unended():
                await anyio.sleep(0.005)
                time.sleep(0.04)
        daemons = [int(note.what.removeprefix("daemon-")) for note in bench.notes() if note.what.startswith("daemon")]
        assert len(daemons) == 10
        left = [pid for pid in daemons if still_running(pid)]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    assert not left
    told = [message for message in caplog.messages if "leaked_processes=1" in message]
    assert len(told) == len(daemons), "each was ended with its run, and not by chance some time after it"
    assert {(run.status, run.attempt) for run in bench.runs(run_ids)} == {(RunStatus.SUCCEEDED, 1)}
    assert watched.behind_max > 0


# --- a run is ended


async def test_a_run_that_exceeds_its_timeout_is_the_only_one_that_does(bench: ShortBench) -> None:
    seconds = [60.0 if number in (150, 300) else 0.003 for number in range(450)]
    run_ids = bench.enqueue_all("short-limited", [{"seconds": each} for each in seconds])
    async with bench.supervised(cancel_grace_seconds=0.2, terminate_grace_seconds=0.2) as watched:
        await bench.until_ended()
    slow = [run_ids[150], run_ids[300]]
    bench.all_succeeded_at_once([run_id for run_id in run_ids if run_id not in slow])
    for run in bench.runs(slow):
        assert (run.status, run.attempt) == (RunStatus.SUCCEEDED, 2)
        assert bench.failed_attempts(run.id) == ["RunTimeout"]
    assert watched.behind_max > 0


async def test_runs_that_wait_can_be_cancelled_and_so_can_those_in_front(any_bench: ShortBench) -> None:
    run_ids = any_bench.enqueue("short", 1_500, seconds=0.002)
    targets: set[UUID] = set()
    async with any_bench.supervised(cancel_grace_seconds=5) as watched:
        pool = watched.supervisor.pool
        for turn in range(60):
            await watched.until_some_wait()
            executor = next(each for each in pool.executors if each.behind)
            held = executor.line.behind[-1] if turn % 3 else executor.line.in_hand
            assert held is not None
            any_bench.stack.client.cancel_run(held.run.id)
            pool.end_runs([held.run.id], Ending.CANCELLED)  # as the heartbeat does, a moment later
            targets.add(held.run.id)
            await anyio.sleep(0.004)
        await any_bench.until_ended()
    executions = any_bench.executions()
    ended = any_bench.runs(targets)
    assert {run.status for run in ended} <= {RunStatus.CANCELLED, RunStatus.SUCCEEDED}
    assert any(run.status is RunStatus.CANCELLED and not executions[run.id] for run in ended)
    assert max(executions[run_id] for run_id in targets) == 1
    any_bench.all_succeeded_at_once([run_id for run_id in run_ids if run_id not in targets])


async def test_many_runs_are_cancelled_at_once_wherever_they_are(any_bench: ShortBench) -> None:
    run_ids = any_bench.enqueue("short", 1_500, seconds=0.002)
    targets = run_ids[:200:-3]  # from the end, to meet those that are executed
    async with any_bench.supervised() as watched:
        await any_bench.until_noted(100)
        for target in targets:
            await to_thread.run_sync(any_bench.stack.client.cancel_run, target)
        await any_bench.until_ended()
    executions = any_bench.executions()
    statuses = Counter(run.status for run in any_bench.runs(targets))
    assert set(statuses) <= {RunStatus.CANCELLED, RunStatus.SUCCEEDED}
    assert statuses[RunStatus.CANCELLED] > 0
    assert all(executions[run_id] <= 1 for run_id in targets)
    any_bench.all_succeeded_at_once([run_id for run_id in run_ids if run_id not in set(targets)])
    assert watched.behind_max > 0


# --- a supervisor ends


async def test_a_stop_gives_back_what_had_not_begun_and_another_does_the_rest(any_bench: ShortBench) -> None:
    run_ids = any_bench.enqueue("short", 2_500, seconds=0.001)
    released = 0
    for turn in range(1, 7):
        async with any_bench.supervised() as stopped:
            await any_bench.until_noted(turn * 250)
            await stopped.until_some_wait()
        executions = any_bench.executions()
        states = Counter((run.status, run.attempt, executions[run.id]) for run in any_bench.runs(run_ids))
        assert set(states) == {(RunStatus.SUCCEEDED, 1, 1), (RunStatus.PENDING, 0, 0)}, states
        released += stopped.supervisor.completer.counts.released
    assert released > 0
    async with any_bench.supervised():
        await any_bench.until_ended()
    any_bench.all_succeeded_at_once(run_ids)


async def test_a_stop_at_once_releases_what_is_in_hand_and_what_waits(bench: ShortBench) -> None:
    run_ids = bench.enqueue("short", 1_500, seconds=0.001)
    async with bench.supervised() as first:
        await bench.until_noted(300)
        await first.until_some_wait()
        first.supervisor.stop_now()
    assert {(run.status, run.attempt) for run in bench.runs(run_ids)} <= {
        (RunStatus.SUCCEEDED, 1),
        (RunStatus.PENDING, 0),
    }
    async with bench.supervised():
        await bench.until_ended()
    assert {(run.status, run.attempt) for run in bench.runs(run_ids)} == {(RunStatus.SUCCEEDED, 1)}
    twice = [run_id for run_id, count in bench.executions().items() if count > 1]
    assert len(twice) <= 3, "those in hand"


# --- a lease is lost


async def test_a_run_that_waits_and_that_another_worker_has_taken_is_not_executed_here(bench: ShortBench) -> None:
    run_ids = bench.enqueue("short", 600, seconds=0.001)
    async with bench.supervised(restart_limit=1_000) as watched:
        stolen = None
        while stolen is None:
            await watched.until_some_wait()
            for pid in watched.pids:
                os.kill(pid, signal.SIGSTOP)
                while stat_fields(pid)[:1] not in (["T"], ["Z"], []):  # until it has stopped
                    continue
            begun = {note.run_id for note in bench.notes()}
            last = [each.line.behind[-1].run.id for each in watched.supervisor.pool.executors if each.behind]
            stolen = next((run_id for run_id in last if run_id not in begun), None)
            if stolen is not None:
                set_lease_token(bench, stolen, uuid4())
                await to_thread.run_sync(watched.supervisor.heartbeat._beat)
            for pid in watched.pids:
                with suppress(ProcessLookupError):  # it had the lease that was lost
                    os.kill(pid, signal.SIGCONT)
        await bench.until_ended(but=1)
    run = bench.run(stolen)
    assert (run.status, run.attempt) == (RunStatus.LEASED, 1), "it is the other's"
    executions = bench.executions()
    assert executions[stolen] == 0
    others = [run_id for run_id in run_ids if run_id != stolen]
    assert {(run.status, run.attempt) for run in bench.runs(others)} == {(RunStatus.SUCCEEDED, 1)}
    assert sum(executions[run_id] > 1 for run_id in others) <= 1, "the one that the child had in hand"


def set_lease_token(bench: ShortBench, run_id: UUID, token: UUID) -> None:
    store = bench.stack.store
    assert isinstance(store, SqlStore)
    statement = store.dialect.render("", "update {runs} set lease_token = :token where id = :id", store.prefix)
    with store._connections.transaction() as tx:
        tx.run(statement, store.dialect.bind({"token": token, "id": run_id}))
