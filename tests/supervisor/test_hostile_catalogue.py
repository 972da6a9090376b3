"""Part B of the catalogue, by row: what a hostile job did is told, nobody else notices, and the pool is whole again.

a supervisor for each store --- an innocent run executes all the while
                             \\- the hostile run: told as it was, in every detail
then as many runs at once as there are slots, and no process more than before
"""

from typing import Any, NamedTuple

import pytest

from durablestack import RunStatus
from durablestack.ids import new_run_id
from durablestack.runs import EndedBy, NewRun
from hostile_bench import (
    KILLED,
    SUCCEEDED,
    BenchOn,
    Told,
    bench_on,
    crashed_of,
    left_with,
    no_process_left_behind,
    pids_in,
    raised,
)
from processes import still_running
from workers import eventually

__all__ = ["bench_on", "no_process_left_behind"]

SUPERVISOR_GROWS_MEBIBYTES_MAX = 20
EVERY_STORE = ["sqlite", "postgres", "mysql"]


class Row(NamedTuple):
    number: int
    job: str
    args: Any
    told: Told
    child_is_replaced: bool = False
    words: str = ""
    """Some that the error tells."""

    @property
    def name(self) -> str:
        return f"{self.number}-{self.job}" + (f"-{self.args}" if self.args is not None else "")


def timed_out(signal_name: str | None) -> Told:
    return Told("RunTimeout", signal_name, None, EndedBy.TIMEOUT)


def at_fault(signal_name: str | None, exit_code: int | None = None) -> Told:
    return Told("ProtocolError", signal_name, exit_code, EndedBy.SUPERVISOR, 1)


ROWS = [
    Row(19, "kills-itself-at-first", None, KILLED._replace(attempt=2)),
    Row(20, "dies-running", "segfault", crashed_of("SIGSEGV"), words="in dies_running"),
    Row(21, "dies-running", "abort", crashed_of("SIGABRT"), words="in dies_running"),
    Row(21, "dies-running", "stack-overflow", crashed_of("SIGSEGV"), words="in exhaust_the_c_stack"),
    *[
        Row(21, "is-signalled", name, crashed_of(name), words="in is_signalled")
        for name in ("SIGBUS", "SIGILL", "SIGFPE")
    ],
    Row(22, "dies-running", "exit-0", left_with(0), words="exit code 0 and no result"),
    *[
        Row(23, "raises-what-ends-programs", what, raised(error_type), child_is_replaced=error_type in USES_UP)
        for USES_UP in [{"SystemExit", "KeyboardInterrupt", "GeneratorExit"}]
        for what, error_type in {
            "exit 0": "SystemExit",
            "exit 1": "SystemExit",
            "exit x": "SystemExit",
            "interrupt": "KeyboardInterrupt",
            "generator": "GeneratorExit",
            "cancelled": "asyncio.exceptions.CancelledError",
            "base": "hostile_jobs.OfItsOwnKind",
        }.items()
    ],
    Row(26, "takes-too-much-address-space", None, raised("MemoryError"), child_is_replaced=True),
    Row(27, "takes-too-much-cpu-time", "soft", crashed_of("SIGXCPU")),
    Row(27, "takes-too-much-cpu-time", "hard", KILLED),
    Row(28, "spins", None, timed_out("SIGTERM"), words="in spin"),
    Row(31, "stops-itself", None, timed_out("SIGKILL")),
    Row(34, "forks-and-both-return", None, SUCCEEDED),
    Row(34, "forks-and-the-other-one-raises", None, SUCCEEDED),
    Row(35, "closes-every-descriptor", None, at_fault(None, 71)),
    Row(36, "writes-into-every-descriptor", None, at_fault("SIGKILL")),
    *[Row(37, "prints-without-end", what, SUCCEEDED) for what in ("no newline", "lines", "nul", "not utf-8")],
    *[Row(38, "returns", what, SUCCEEDED) for what in ("huge", "nested", "integer", "surrogate", "nan", "object")],
    Row(38, "returns", "liar", raised("RuntimeError")),
    *[
        Row(38, "asks-for-an-odd-delay", what, raised("durablestack.errors.Retry"))
        for what in ("nan", "inf", "huge", "negative", "text")
    ],
    Row(39, "talks-nonsense", "claims 4 GiB", at_fault("SIGKILL"), words="a frame of 4294967295 bytes"),
    Row(39, "talks-nonsense", "is cut short", KILLED),
    Row(39, "talks-nonsense", "a wrong checksum", at_fault("SIGKILL"), words="checksum"),
    Row(39, "talks-nonsense", "no reply", at_fault("SIGKILL"), words="no reply"),
    Row(39, "talks-nonsense", "nested too deep", at_fault("SIGKILL"), words="no reply"),
    Row(39, "talks-nonsense", "an older reply", raised("LookupError")),
    Row(39, "promises-more-than-it-says", None, timed_out("SIGTERM")),
    Row(42, "leaves-a-thread", "plain", SUCCEEDED, child_is_replaced=True),
    Row(42, "leaves-a-thread", "executor", SUCCEEDED, child_is_replaced=True),
    Row(42, "leaves-a-task", None, SUCCEEDED, child_is_replaced=True),
    Row(42, "leaves-an-exit-handler", None, SUCCEEDED, child_is_replaced=True),
    Row(43, "has-work-of-many-kinds", None, SUCCEEDED),
    Row(44, "cannot-be-told", "ignores SIGTERM", timed_out("SIGKILL")),
    Row(44, "cannot-be-told", "ignores all signals", timed_out("SIGKILL")),
    Row(44, "cannot-be-told", "no faulthandler", timed_out("SIGKILL")),
    Row(44, "cannot-be-told", "alarm", timed_out("SIGTERM")),
    Row(44, "sets-an-alarm", None, crashed_of("SIGALRM")),
    *[
        Row(45, "changes-its-process", what, SUCCEEDED, child_is_replaced=True)
        for what in ("folder", "umask", "environment", "locale", "sys.path", "clock", "sleep")
    ],
]

ERRORS = [
    Row(46, "raises-something-odd", "unprintable", raised("hostile_jobs.Unprintable")),
    Row(46, "raises-something-odd", "huge", raised("ValueError")),
    Row(46, "raises-something-odd", "cycle", raised("ValueError")),
    Row(46, "raises-something-odd", "chain", raised("ValueError")),
    Row(46, "raises-something-odd", "group", raised("ExceptionGroup")),
    Row(46, "raises-something-odd", "text", raised("ValueError"), words="nul \N{SYMBOL FOR NULL} surrogate"),
    Row(46, "raises-something-odd", "notes", raised("ValueError")),
    Row(46, "raises-something-odd", "no name", raised("UntellableError")),
    Row(46, "raises-something-odd", "odd cause", raised("UntellableError")),
]


@pytest.mark.parametrize(
    ("store", "row"),
    [
        *[pytest.param("sqlite", row, id=row.name) for row in ROWS],
        *[pytest.param(store, row, id=f"{row.name}-{store}") for store in EVERY_STORE for row in ERRORS],
    ],
)
def test_what_a_hostile_job_did_is_told_and_nobody_else_notices(
    bench_on: BenchOn, store: str, row: Row, record_property: Any
) -> None:
    bench = bench_on(store)
    before = bench.memory_of_the_supervisor()
    with bench.innocent_neighbour():
        run = bench.finished(row.job, row.args)
        assert bench.told(run) == row.told, run
        errors = [(a.error_message or "") + (a.error_detail or "") for a in bench.stack.queries.get_attempts(run.id)]
        assert row.words in "".join(errors)
        assert len(run.error_message or "") <= 2_000
        assert len(run.error_detail or "") <= 16_384
        if row.child_is_replaced:
            bench.until_replaced(run)
    record_property("whole again after seconds", f"{bench.until_whole():.2f}")
    assert bench.memory_of_the_supervisor() - before < SUPERVISOR_GROWS_MEBIBYTES_MAX


@pytest.mark.parametrize(
    ("job", "args"),
    [
        pytest.param("leaves-a-process", "executed", id="32-executed"),
        pytest.param("leaves-a-process", "forked", id="32-forked"),
        pytest.param("sends-off-a-daemon-and-returns", None, id="33-daemon"),
    ],
)
def test_the_outcome_does_not_wait_for_what_a_job_leaves_running_which_is_ended(
    bench_on: BenchOn, job: str, args: str | None
) -> None:
    bench = bench_on("sqlite")
    with bench.innocent_neighbour():
        run = bench.until(bench.client.enqueue(job, args), RunStatus.SUCCEEDED, within_seconds=20)
        (left,) = pids_in(run)
        eventually(lambda: not still_running(left), within_seconds=20, what="the end of what lives for a minute")
        bench.supervisor.until_logged(f"run_id={run.id} job_name={job} attempt=1 leaked_processes=1")
    bench.until_whole()


def test_a_run_that_is_cancelled_takes_its_pools_managers_and_loops_along(bench_on: BenchOn) -> None:
    """Row 43."""
    bench = bench_on("sqlite")
    at_work = bench.folder / new_run_id().hex
    with bench.innocent_neighbour():
        run_id = bench.client.enqueue("hangs-in-work-of-many-kinds", str(at_work))
        eventually(at_work.exists, what=bench.logs()[-3000:])
        pids = [int(pid) for pid in at_work.read_text().split()]
        assert len(pids) >= 3
        bench.client.cancel_run(run_id)
        bench.until(run_id, RunStatus.CANCELLED)
        eventually(lambda: not any(map(still_running, pids)))
    bench.until_whole()


HOSTILE_PAYLOADS = {
    "of another type": '{"how": 5}',
    "no JSON": "not json",
    "not closed": '{"how": "sigkill"',
    "nested too deep": "[" * 5_000_000,
    "huge": '"' + "x" * 50_000_000 + '"',
    "nothing": None,
    "surrogate": '{"how": "\\ud800"}',
}


@pytest.mark.parametrize("what", HOSTILE_PAYLOADS)
def test_arguments_that_are_none_fail_their_run_for_good_and_their_child_lives_on(bench_on: BenchOn, what: str) -> None:
    """Row 50."""
    bench = bench_on("sqlite")
    new = NewRun(
        id=new_run_id(),
        job_name="dies-when-its-arguments-are-decoded",
        payload=HOSTILE_PAYLOADS[what],
        max_attempts=3,
    )
    with bench.innocent_neighbour():
        children = bench.supervisor.children()
        bench.stack.store.enqueue([new])
        run = bench.until(new.id, RunStatus.FAILED)
        assert bench.told(run) == raised("durablestack.errors.PayloadError")
        assert bench.supervisor.children() == children
    bench.until_whole()
