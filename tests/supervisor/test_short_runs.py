"""Many short runs are on their way to a child at once, and each is executed as if it were alone.

Real supervisors, real children. Each test sees to it that runs did wait behind others: it would prove nothing else.
"""

import os
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

from durablestack import Attempt, Event, RunStatus
from durablestack.events import EventType
from durablestack.text import clean
from short_bench import ShortBench, Watched, short_bench
from short_jobs import MEBIBYTE, NOISE, WAYS_TO_WRITE, hash_of, what_is_written

pytestmark = pytest.mark.anyio

OUTPUT_BYTES_MAX = 16_384


@pytest.fixture(params=["sqlite", "postgres", "mysql"])
def database(request: pytest.FixtureRequest, tmp_path: Path, table_prefix: str) -> dict[str, Any]:
    if request.param == "sqlite":
        return {"database_url": f"sqlite:///{tmp_path}/runs.db"}
    return {"database_url": request.getfixturevalue(f"{request.param}_dsn"), "database_table_prefix": table_prefix}


@pytest.fixture
def any_bench(tmp_path: Path, database: dict[str, Any]) -> Iterator[ShortBench]:
    with short_bench(tmp_path, **database) as made:
        yield made


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[ShortBench]:
    with short_bench(tmp_path, database_url=f"sqlite:///{tmp_path}/runs.db") as made:
        yield made


async def test_short_runs_of_spawned_children_are_executed_once_each(bench: ShortBench) -> None:
    run_ids = bench.enqueue("short", 600)
    watched = await do_all(bench, max_concurrent_runs=2, start_method="spawn")
    bench.all_succeeded_at_once(run_ids)
    assert watched.behind_max > 0


async def test_short_async_runs_are_executed_once_each(bench: ShortBench) -> None:
    run_ids = bench.enqueue_all("short-async", [{"seconds": 0.001 * (number % 3)} for number in range(600)])
    watched = await do_all(bench)
    bench.all_succeeded_at_once(run_ids)
    assert all(run.stdout_tail == f"1 of {run.id}\n" for run in bench.runs(run_ids))
    assert watched.behind_max > 0


async def test_a_run_that_fails_among_others_has_its_own_error_and_is_tried_again(any_bench: ShortBench) -> None:
    whats = ["fails" if number % 7 == 3 else "" for number in range(700)]
    run_ids = any_bench.enqueue_all("short-and-fails", [{"what": what} for what in whats])
    watched = await do_all(any_bench)
    for run, what in zip(any_bench.runs(run_ids), whats, strict=True):
        assert (run.status, run.attempt) == (RunStatus.SUCCEEDED, 2 if what else 1)
        assert run.stdout_tail == f"{run.attempt} of {run.id}\n"
        errors = [attempt.error_message for attempt in any_bench.stack.queries.get_attempts(run.id)]
        assert [error for error in errors if error] == [f"{run.id} is wrong"] * (run.attempt - 1)
    assert watched.behind_max > 0


async def test_of_runs_that_fail_among_others_each_has_the_cpu_time_that_it_used(bench: ShortBench) -> None:
    works: list[dict[str, Any]] = [{}] * 400
    burns, fails = {"what": "fails", "seconds": 0.2}, {"what": "fails"}
    works[50:350:50] = [fails, burns, fails] * 2
    run_ids = bench.enqueue_all("short-and-fails", works)
    watched = await do_all(bench, max_concurrent_runs=1)
    for run_id, work in zip(run_ids, works, strict=True):
        used = [cpu_seconds(attempt) for attempt in bench.stack.queries.get_attempts(run_id) if attempt.error_type]
        assert len(used) == ("what" in work)
        assert all(work.get("seconds", 0.0) <= seconds < work.get("seconds", 0.0) + 0.1 for seconds in used), work
    assert watched.behind_max > 0


def cpu_seconds(attempt: Attempt) -> float:
    assert attempt.user_cpu_seconds is not None
    assert attempt.system_cpu_seconds is not None
    return attempt.user_cpu_seconds + attempt.system_cpu_seconds


class Kept:
    """An event sink."""

    def __init__(self, events: list[Event]) -> None:
        self._events = events

    def emit(self, events: Sequence[Event]) -> None:
        self._events += events


async def do_all(bench: ShortBench, **options: Any) -> Watched:
    """Execute what there is, until nothing is left."""
    async with bench.supervised(**options) as watched:
        await bench.until_ended()
    assert watched.supervisor.reports.children_lost == 0
    return watched


async def test_thousands_of_short_runs_are_executed_once_each(any_bench: ShortBench) -> None:
    run_ids = any_bench.enqueue("short", 2_000)
    watched = await do_all(any_bench)
    any_bench.all_succeeded_at_once(run_ids)
    assert watched.behind_max > 0
    assert len({note.pid for note in any_bench.notes()}) == 3, "no child was replaced"
    counts = watched.supervisor.completer.counts
    assert (counts.succeeded, counts.refused) == (2_000, 0)


@pytest.mark.parametrize("guard", ["process", "child"])
async def test_children_that_are_never_without_runs_outlive_their_leases(bench: ShortBench, guard: str) -> None:
    """Their leases are renewed, and given up, while others wait behind them all the time."""
    run_ids = bench.enqueue("short", 2_500, seconds=0.003)
    watched = await do_all(bench, max_concurrent_runs=2, lease_duration_seconds=2, guard=guard)
    bench.all_succeeded_at_once(run_ids)
    assert watched.behind_max > 0
    assert len({note.pid for note in bench.notes()}) == 2
    assert max(note.at for note in bench.notes()) - min(note.at for note in bench.notes()) > 2


async def test_runs_of_many_lengths_are_executed_once_each(bench: ShortBench) -> None:
    seconds = [*[0.0] * 40, 0.001, 0.004, 0.02, 0.0, 0.07]
    run_ids = bench.enqueue_all("short", [{"seconds": each} for each in seconds * 12])
    watched = await do_all(bench)
    bench.all_succeeded_at_once(run_ids)
    assert watched.behind_max > 0


async def test_how_long_a_run_took_is_told_of_each_though_several_are_heard_of_at_once(bench: ShortBench) -> None:
    events: list[Event] = []
    bench.sinks.append(Kept(events))
    bench.enqueue("short", 400, seconds=0.003)
    watched = await do_all(bench)
    told = [event.duration_ms for event in events if event.event_type is EventType.JOB_SUCCEEDED]
    assert len(told) == 400
    assert min(each for each in told if each is not None) >= 3
    assert watched.behind_max > 0


# --- output


async def test_what_a_short_run_writes_is_its_own_and_only_its_own(any_bench: ShortBench) -> None:
    seldom = {100: "echo", 200: "more-than-a-pipe", 300: "echo", 400: "more-than-a-pipe"}
    often = [way for way in WAYS_TO_WRITE if way not in seldom.values()]
    ways = [seldom.get(number % 500, often[number % len(often)]) for number in range(1_000)]
    run_ids = any_bench.enqueue_all("writes", [{"what": way} for way in ways])
    watched = await do_all(any_bench)
    for way, run in zip(ways, any_bench.runs(run_ids), strict=True):
        assert (run.status, run.attempt) == (RunStatus.SUCCEEDED, 1)
        stdout, stderr = what_is_written(way, run.id)
        assert (run.stdout_tail, run.stderr_tail) == (tail(stdout), tail(stderr)), way
    assert set(ways) == set(WAYS_TO_WRITE)
    assert watched.behind_max > 0


def tail(written: bytes) -> str | None:
    excess = len(written) - OUTPUT_BYTES_MAX
    text = written[max(0, excess) :].decode("utf-8", "replace")
    if excess > 0:
        text = f"[{excess} bytes before this were not kept]\n{text}"
    return clean(text, len(text)) or None


async def test_a_thread_that_goes_on_writing_does_not_mix_up_the_runs_of_its_child(bench: ShortBench) -> None:
    bench.stack.client.enqueue_many("leaves-a-thread-that-writes", [None] * 6)
    ways = ["print", "descriptor", "nothing", "both"] * 200
    run_ids = bench.enqueue_all("writes", [{"what": way} for way in ways])
    watched = await do_all(bench)
    heard_noise = 0
    for way, run in zip(ways, bench.runs(run_ids), strict=True):
        stdout, stderr = (told.decode() for told in what_is_written(way, run.id))
        assert (run.stdout_tail or "").replace(NOISE, "").strip() == stdout.strip()
        assert (run.stderr_tail or "") == stderr
        heard_noise += (run.stdout_tail or "").count(NOISE)
    assert heard_noise, "this proves nothing otherwise"
    assert watched.behind_max > 0


async def test_what_is_written_between_two_short_runs_belongs_to_neither(bench: ShortBench) -> None:
    async with bench.supervised(max_concurrent_runs=1):
        bench.enqueue("writes", 50, what="nothing")
        bench.stack.client.enqueue("leaves-a-thread-that-writes")
        await bench.until_ended()
        await anyio.sleep(0.5)  # a line every 0.2 ms, until the pipe is full
        (run_id,) = bench.enqueue("writes", what="nothing")
        await bench.until_ended()
    assert (bench.run(run_id).stdout_tail or "").count(NOISE) < 300


# --- one that is not short this time


@pytest.mark.parametrize("what", ["sleeps", "is-busy", "holds-the-gil"])
async def test_what_waits_behind_a_run_that_takes_its_time_is_done_by_others_at_once(
    bench: ShortBench, what: str
) -> None:
    short = [{}] * 250
    run_ids = bench.enqueue_all("short-as-a-rule", [*short, {"what": what, "seconds": 60.0}, *short])
    long = run_ids.pop(250)
    async with bench.supervised(cancel_grace_seconds=0.2, terminate_grace_seconds=0.2) as watched:
        await bench.until_ended(but=1)
        assert (await to_thread.run_sync(bench.run, long)).status is RunStatus.LEASED, "it goes on"
        assert watched.behind_max > 0
        await to_thread.run_sync(bench.stack.client.cancel_run, long)
        await bench.until_status(long, RunStatus.CANCELLED)
        later = bench.enqueue("short-as-a-rule", 50)
        await bench.until_ended()
    bench.all_succeeded_at_once([*run_ids, *later])
    assert bench.executions()[long] == 1


async def test_a_child_that_is_frozen_keeps_nobody_waiting(bench: ShortBench) -> None:
    run_ids = bench.enqueue("short", 1_500, seconds=0.001)
    async with bench.supervised() as watched:
        await watched.until_some_wait()
        frozen = next(executor for executor in watched.supervisor.pool.executors if executor.behind)
        assert frozen.pid is not None
        os.kill(frozen.pid, signal.SIGSTOP)
        try:
            with anyio.fail_after(60):
                while await bench.unended() > 1:
                    await anyio.sleep(0.02)
        finally:
            os.kill(frozen.pid, signal.SIGCONT)
        await bench.until_ended()
    bench.all_succeeded_at_once(run_ids)


# --- those that do not wait


async def test_a_run_at_its_last_attempt_never_waits_behind_another(any_bench: ShortBench) -> None:
    run_ids = any_bench.enqueue("short-last-attempt", 600)
    watched = await do_all(any_bench)
    any_bench.all_succeeded_at_once(run_ids)
    assert watched.behind_max == 0
    assert watched.supervisor.completer.counts.released < 30, "what cannot begin is not claimed"


async def test_runs_that_may_wait_and_runs_that_may_not_do_not_hold_each_other_up(any_bench: ShortBench) -> None:
    kinds = ["short", "short-last-attempt", "short"]
    run_ids = [run_id for _ in range(15) for kind in kinds for run_id in any_bench.enqueue(kind, 20)]
    watched = await do_all(any_bench)
    any_bench.all_succeeded_at_once(run_ids)
    assert watched.behind_max > 0
    assert not [run for run in watched.waited.values() if run.max_attempts == 1]
    assert watched.supervisor.completer.counts.released < len(run_ids) / 5


# --- limits of a child


async def test_a_child_is_replaced_after_exactly_so_many_short_runs(bench: ShortBench) -> None:
    run_ids = bench.enqueue("short", 120)
    watched = await do_all(bench, runs_per_child_max=7)
    bench.all_succeeded_at_once(run_ids)
    by_pid = Counter(note.pid for note in bench.notes())
    assert max(by_pid.values()) == 7
    assert sum(count < 7 for count in by_pid.values()) <= 3, "those that are there in the end"
    assert watched.behind_max == 0
    assert watched.supervisor.completer.counts.released < 30, "what cannot begin is not claimed"


async def test_no_run_is_ever_in_a_process_that_is_to_be_fresh(bench: ShortBench) -> None:
    kinds = ["short", "short", "short-fresh"]
    run_ids = {kind: bench.enqueue(kind, 20 if kind == "short-fresh" else 200) for kind in kinds}
    more = bench.enqueue("short-fresh", 15)
    later = bench.enqueue("short", 200)
    watched = await do_all(bench)
    bench.all_succeeded_at_once([*run_ids["short"], *run_ids["short-fresh"], *more, *later])
    fresh = {*run_ids["short-fresh"], *more}
    by_pid = Counter(note.pid for note in bench.notes())
    assert all(by_pid[note.pid] == 1 for note in bench.notes() if note.run_id in fresh)
    assert watched.behind_max > 0


async def test_a_child_that_keeps_too_much_memory_is_replaced_with_others_waiting(bench: ShortBench) -> None:
    run_ids = bench.enqueue("short-and-keeps-memory", 400)
    watched = await do_all(bench, child_memory_max="128 MiB", window_max=8)
    bench.all_succeeded_at_once(run_ids)
    by_pid = Counter(note.pid for note in bench.notes())
    assert len(by_pid) > 3
    assert max(by_pid.values()) * MEBIBYTE <= 128 * MEBIBYTE + 8 * MEBIBYTE
    assert watched.behind_max > 0


async def test_no_run_waits_where_a_child_is_to_have_one_at_once(bench: ShortBench) -> None:
    run_ids = bench.enqueue("short", 300)
    watched = await do_all(bench, window_max=1)
    bench.all_succeeded_at_once(run_ids)
    assert watched.behind_max == 0
    assert watched.supervisor.completer.counts.released == 0


# --- payloads


async def test_large_payloads_arrive_whole_among_small_ones(bench: ShortBench) -> None:
    sizes = [(900_000 + number) if number % 12 == 0 else number for number in range(360)]
    texts = [chr(97 + number % 26) * size for number, size in enumerate(sizes)]
    run_ids = bench.enqueue_all("measures", [{"what": text} for text in texts])
    watched = await do_all(bench)
    expected = {run_id: f"{len(text)}-{hash_of(text)}" for run_id, text in zip(run_ids, texts, strict=True)}
    assert {note.run_id: note.what for note in bench.notes()} == expected
    bench.all_succeeded_at_once(run_ids)
    assert watched.behind_max > 0


async def test_large_payloads_that_waited_behind_a_run_that_takes_its_time_arrive_whole_elsewhere(
    bench: ShortBench,
) -> None:
    works = [{"diary": str(bench.diary), "seconds": 0.06 if number % 40 == 20 else 0.0} for number in range(400)]
    run_ids = bench.stack.client.enqueue_many(
        "short", [{**work, "what": "x" * (100_000 if number % 3 else 0)} for number, work in enumerate(works)]
    )
    watched = await do_all(bench)
    bench.all_succeeded_at_once(run_ids)
    assert watched.behind_max > 0
