"""Nine deaths at eleven points in the life of a child: each is recorded for what it was, and the pool lives on.

The matrix is that of loky's tests for deadlocks. What a job leaves behind may bring death to a child that idles; then
nothing is recorded, and a child that idles is replaced.
"""

from collections.abc import Mapping

import pytest

from hostile_bench import (
    KILLED,
    SUCCEEDED,
    BenchOn,
    Told,
    bench_on,
    crashed_of,
    left_with,
    no_process_left_behind,
    raised,
)

__all__ = ["bench_on", "no_process_left_behind"]

ENDS_THE_PROCESS = {
    "sigkill": KILLED,
    "segfault": crashed_of("SIGSEGV"),
    "abort": crashed_of("SIGABRT"),
    "exit-0": left_with(0),
    "stack-overflow": crashed_of("SIGSEGV"),
}
RAISES = {
    "sys-exit": raised("SystemExit"),
    "exception": raised("LookupError"),
    "memory-error": raised("MemoryError"),
    "recursion": raised("RecursionError"),
}
DEATHS = [*ENDS_THE_PROCESS, *RAISES]


def ends_it_or(told: Told | Mapping[str, Told]) -> dict[str, Told]:
    """What ends the process does so here too; of what is raised, this is told."""
    others = dict.fromkeys(RAISES, told) if isinstance(told, Told) else told
    return {**ENDS_THE_PROCESS, **others}


NOTHING = dict.fromkeys(DEATHS, SUCCEEDED)

POINTS = {
    "dies-when-its-arguments-are-decoded": ends_it_or(
        {**RAISES, "recursion": raised("durablestack.errors.PayloadError")}
    ),
    "dies-running": ends_it_or(RAISES),
    "dies-when-its-error-is-printed": ends_it_or(
        raised("deadly_jobs.dies_when_its_error_is_printed.<locals>.Deadly"),
    ),
    "dies-when-it-is-looked-at-what-is-left": ends_it_or(SUCCEEDED),
    "dies-when-its-garbage-is-collected": ends_it_or(SUCCEEDED),
    "dies-when-it-returns": ends_it_or(SUCCEEDED),
    "dies-in-an-exit-handler": NOTHING,
    "dies-in-a-finalizer": NOTHING,
}
IDLE = ["dies-idle", "dies-idle-when-its-garbage-is-collected"]


@pytest.mark.parametrize("how", DEATHS)
@pytest.mark.parametrize("job", POINTS)
def test_a_death_is_told_whatever_it_is_and_whenever_it_comes(bench_on: BenchOn, job: str, how: str) -> None:
    bench = bench_on("sqlite")
    args = {"how": how} if "decoded" in job else how
    run = bench.finished(job, args)
    assert bench.told(run) == POINTS[job][how], run
    bench.until_whole()


@pytest.mark.parametrize("how", DEATHS)
def test_a_death_in_a_thread_that_a_job_leaves_is_the_runs_or_nobodys(bench_on: BenchOn, how: str) -> None:
    """Whichever is first: the thread, or the reply."""
    bench = bench_on("sqlite")
    told = bench.told(bench.finished("dies-in-a-thread-that-it-leaves", how))
    assert told in (SUCCEEDED, ENDS_THE_PROCESS.get(how, SUCCEEDED))
    bench.until_whole()


@pytest.mark.parametrize("how", DEATHS)
@pytest.mark.parametrize("job", IDLE)
def test_a_child_that_dies_between_two_runs_costs_none_of_them_anything(bench_on: BenchOn, job: str, how: str) -> None:
    bench = bench_on("sqlite")
    run = bench.finished(job, how)
    assert bench.told(run) == SUCCEEDED
    if how in ENDS_THE_PROCESS:
        bench.until_replaced(run)
    bench.until_whole()


@pytest.mark.parametrize("how", DEATHS)
def test_a_child_that_dies_while_it_imports_the_application_is_told_of_and_costs_no_run(
    bench_on: BenchOn, how: str
) -> None:
    bench = bench_on("sqlite")
    told_before = bench.supervisor.log().count("cannot start")
    bench.death_at_import.write_text(how)
    bench.finished("dies-running", "sigkill")
    bench.until_more_is_logged("cannot start", told_before)
    bench.death_at_import.unlink()
    bench.until_whole()
