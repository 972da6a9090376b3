"""Jobs that recur under real supervisors, one of which is killed again and again: each slot has one run."""

import itertools
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from durablestack import Run, RunStatus
from durablestack.schedules import Schedule
from workers import Bench, Worker, bench, eventually

JOBS = "recurring_jobs"
EVERY_SECOND = ("every-second", "every-second-overlapping")
SECOND = timedelta(seconds=1)
ACTIVE = (RunStatus.PENDING, RunStatus.LEASED)


def recurring_worker(bench: Bench, **settings: str) -> Worker:
    return bench.worker(target=JOBS, settings=settings)


def runs_of(bench: Bench, job_name: str) -> list[Run]:
    """With their slots in order."""
    runs = bench.stack.store.list_runs(take=1_000_000, job_name=job_name)
    return sorted((run for run in runs if run.slot is not None), key=lambda run: run.slot or run.created_at)


def slots_of(bench: Bench, job_name: str) -> list[datetime]:
    return [run.slot for run in runs_of(bench, job_name) if run.slot is not None]


def until_succeeded(bench: Bench, job_name: str, count: int) -> list[Run]:
    """So many runs, and no others before them."""

    def succeeded() -> list[Run]:
        return [run for run in runs_of(bench, job_name) if run.status is RunStatus.SUCCEEDED]

    eventually(lambda: len(succeeded()) >= count, what=f"{count} runs of {job_name}: {bench.logs()}")
    return succeeded()


def seconds_go_by(bench: Bench, seconds: float) -> None:
    """On the clock of the database."""
    until = bench.stack.store.now() + timedelta(seconds=seconds)
    eventually(lambda: bench.stack.store.now() >= until)


def schedules(bench: Bench, *arguments: str) -> str:
    """What the console says."""
    command = [sys.executable, "-m", "durablestack", "schedules", *arguments]
    ended = subprocess.run(
        command, env={**os.environ, **bench.settings}, cwd=bench.folder, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def until_quiet(bench: Bench) -> None:
    """Nothing recurs any more, and all that did has ended."""
    for schedule in bench.stack.schedules.list_scheduled_jobs():
        bench.stack.schedules.set_scheduled_job_enabled(schedule.job_name, False)
    eventually(lambda: not any(bench.stack.store.count_runs()[status] for status in ACTIVE), what=bench.logs())


# --- one supervisor


def test_a_job_recurs_and_is_told_its_slot(any_bench: Bench) -> None:
    recurring_worker(any_bench)
    for run in until_succeeded(any_bench, "every-second", 3):
        assert run.slot is not None
        assert (run.slot.microsecond, run.scheduled_for, run.attempt) == (0, run.slot, 1)
        assert run.slot <= run.created_at
        (note,) = any_bench.notes(run.id)
        assert datetime.fromisoformat(note.what) == run.slot


def test_an_interval_keeps_its_step_and_its_arguments(any_bench: Bench) -> None:
    recurring_worker(any_bench)
    runs = until_succeeded(any_bench, "every-1500-ms", 3)
    slots = slots_of(any_bench, "every-1500-ms")
    assert {(slot - slots[0]) % timedelta(milliseconds=1500) for slot in slots} == {timedelta(0)}
    assert [note.what for note in any_bench.notes(runs[0].id)] == ["tick"]


def test_schedules_follow_the_console_while_the_supervisor_runs(any_bench: Bench) -> None:
    recurring_worker(any_bench)
    until_succeeded(any_bench, "every-second", 1)
    assert "yearly" in schedules(any_bench, "list")

    schedules(any_bench, "disable", "every-second")
    before = slots_of(any_bench, "every-second")
    seconds_go_by(any_bench, 2.5)
    assert slots_of(any_bench, "every-second") == before, "a run was made for a schedule that is disabled"

    schedules(any_bench, "enable", "every-second")
    until_succeeded(any_bench, "every-second", len(before) + 1)
    missed = slots_of(any_bench, "every-second")[len(before)] - before[-1]
    assert missed > SECOND, "what went by while it was disabled is not made up for"

    schedules(any_bench, "update", "yearly", "* * * * * *", "--tz", "Asia/Tokyo")
    until_succeeded(any_bench, "yearly", 2)
    schedules(any_bench, "update", "every-second", "0 0 1 1 *")
    before = slots_of(any_bench, "every-second")
    seconds_go_by(any_bench, 2.5)
    assert slots_of(any_bench, "every-second") == before


def test_a_run_now_is_executed_beside_the_slots(any_bench: Bench) -> None:
    recurring_worker(any_bench)
    eventually(any_bench.stack.store.list_schedules)
    eventually(lambda: any_bench.stack.store.get_schedule("yearly") is not None)
    run_id = any_bench.stack.schedules.run_scheduled_job_now("yearly")
    any_bench.until(run_id, RunStatus.SUCCEEDED)
    assert [note.what for note in any_bench.notes(run_id)] == ["yearly2"]
    assert slots_of(any_bench, "yearly") == []
    printed = schedules(any_bench, "run", "yearly").strip()
    eventually(lambda: len(any_bench.notes(what="yearly2")) == 2)
    assert printed in {str(note.run_id) for note in any_bench.notes(what="yearly2")}


def test_what_was_missed_while_nobody_was_there_is_made_up_for_as_the_policy_says(any_bench: Bench) -> None:
    worker = recurring_worker(any_bench)
    until_succeeded(any_bench, "every-second-overlapping", 1)
    worker.kill()
    seconds_go_by(any_bench, 4)
    recurring_worker(any_bench, DURABLESTACK__RECURRING__CATCH_UP_POLICY="catch_up")
    until_succeeded(any_bench, "every-second-overlapping", 6)
    slots = slots_of(any_bench, "every-second-overlapping")
    assert slots == [slots[0] + number * SECOND for number in range(len(slots))]


def test_a_schedule_that_cannot_be_read_stops_neither_the_others_nor_the_supervisor(any_bench: Bench) -> None:
    worker = recurring_worker(any_bench)
    until_succeeded(any_bench, "every-second", 1)

    def spoil(stored: Schedule | None, now: datetime) -> Schedule:
        assert stored is not None
        return replace(stored, cron_expression="garbage")

    any_bench.stack.store.change_schedule("every-second-overlapping", spoil)
    worker.until_logged("schedule cannot be read")
    until_succeeded(any_bench, "every-second", len(slots_of(any_bench, "every-second")) + 2)
    assert worker.log().count("schedule cannot be read") == 1
    assert "garbage" in schedules(any_bench, "list")
    worker.terminate()
    assert worker.exit_code() == 0


# --- two, one of which is killed again and again


def go_on_and_kill(bench: Bench, seconds: float, **settings: str) -> int:
    """Two supervisors for so long; now the one, now the other is killed and replaced. Returns how often."""
    workers = [recurring_worker(bench, **settings) for _ in range(2)]
    until_succeeded(bench, "every-second", 1)
    until = time.monotonic() + seconds
    kills = 0
    while time.monotonic() < until:
        time.sleep(random.uniform(1.0, 3.0))
        victim = kills % 2
        workers[victim].kill()
        workers[victim] = recurring_worker(bench, **settings)
        kills += 1
    return kills


def check_slots(bench: Bench, *, all_of_them: bool) -> dict[str, str]:
    """None twice, none before its time, each executed; without holes where missed ones are made up for.

    Runs that may not overlap did not.
    """
    figures = {}
    for job_name in EVERY_SECOND:
        runs, slots = runs_of(bench, job_name), slots_of(bench, job_name)
        twice = [slot for slot, count in Counter(slots).items() if count > 1]
        missing = (slots[-1] - slots[0]) // SECOND + 1 - len(set(slots))
        figures[job_name] = f"{len(slots)} slots, {missing} missing, {len(twice)} twice"
        assert twice == []
        assert {run.status for run in runs} == {RunStatus.SUCCEEDED}
        noted = {note.run_id: note.what for note in bench.notes()}
        assert [datetime.fromisoformat(noted[run.id]) for run in runs] == slots
        delays = [run.created_at - run.slot for run in runs if run.slot is not None]
        assert min(delays) >= timedelta(0)
        if all_of_them:
            assert missing == 0, f"{figures[job_name]}: {bench.logs()}"
        else:
            # a slot is missing because a later one was due already when somebody could look
            assert max(delays) < 3 * SECOND, f"{figures[job_name]}: {max(delays)}"
    runs = runs_of(bench, "every-second")
    for earlier, later in itertools.pairwise(runs):
        assert earlier.completed_at is not None
        assert later.created_at >= earlier.completed_at
    figures["begun again"] = f"{sum(run.attempt > 1 for run in runs)} of {len(runs)}"
    return figures


both_policies = pytest.mark.parametrize("policy", ["skip_missed", "catch_up"])


@both_policies
def test_each_slot_has_one_run_although_supervisors_are_killed(any_bench: Bench, policy: str) -> None:
    kills = go_on_and_kill(any_bench, 10, DURABLESTACK__RECURRING__CATCH_UP_POLICY=policy)
    assert kills >= 3
    until_quiet(any_bench)
    check_slots(any_bench, all_of_them=policy == "catch_up")


@pytest.fixture(params=["sqlite", "postgres", "mysql"])
def soak_bench(
    request: pytest.FixtureRequest, tmp_path: Path, sqlite_settings: dict[str, str], table_prefix: str
) -> Iterator[Bench]:
    settings = sqlite_settings
    if request.param != "sqlite":
        settings = {
            **settings,
            "DURABLESTACK__DATABASE_URL": request.getfixturevalue(f"{request.param}_dsn"),
            "DURABLESTACK__DATABASE_TABLE_PREFIX": table_prefix,
        }
    with bench(tmp_path, settings) as made:
        yield made


@pytest.mark.soak
@pytest.mark.timeout(400)
@both_policies
def test_each_slot_has_one_run_through_a_minute_of_kills(
    soak_bench: Bench, policy: str, record_property: Callable[[str, object], None]
) -> None:
    kills = go_on_and_kill(soak_bench, 60, DURABLESTACK__RECURRING__CATCH_UP_POLICY=policy)
    until_quiet(soak_bench)
    figures = check_slots(soak_bench, all_of_them=policy == "catch_up")
    print(f"\n{soak_bench.settings['DURABLESTACK__DATABASE_URL'].split(':')[0]} {policy}: {kills} kills; {figures}")
    record_property("figures", figures)
