"""What goes wrong in one place stays there: one job, one child, one log reader does not harm the others."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from uuid import UUID

import anyio
import msgspec
import pytest

from durablestack import DurableStack, RunStatus
from durablestack.supervisor.embedded import supervise
from processes import still_running
from workers import TESTS, Bench, eventually

MESSES = [
    "folder",
    "alarm",
    "signal-handler",
    "recursion-limit",
    "closed-stdout",
    "closed-descriptor-1",
    "stdout-that-cannot-be-flushed",
    "descriptor-limit",
    "thread-that-kills-later",
]


@pytest.mark.parametrize("what", MESSES)
def test_a_job_that_changes_its_process_changes_it_for_nobody_else(sqlite_bench: Bench, what: str) -> None:
    sqlite_bench.worker("--max-concurrent-runs", "1")
    pid, folder = output_words(sqlite_bench)
    mess = sqlite_bench.client.enqueue("messes-up", what)
    assert sqlite_bench.until_terminal(mess).status is RunStatus.SUCCEEDED
    other_pid, same_folder = output_words(sqlite_bench)
    assert other_pid != pid
    assert same_folder == folder


def output_words(bench: Bench) -> list[str]:
    run = bench.until_terminal(bench.client.enqueue("tells-its-process"))
    assert run.status is RunStatus.SUCCEEDED, run
    return (run.stdout_tail or "").split()


def test_one_job_that_crashes_again_and_again_does_not_starve_the_others(sqlite_bench: Bench) -> None:
    sqlite_bench.worker()
    crashing = sqlite_bench.client.enqueue_many("dies", ["sigkill"] * 24)
    innocent = sqlite_bench.client.enqueue_many("once", [None] * 4)
    for run_id in innocent:
        assert sqlite_bench.until(run_id, RunStatus.SUCCEEDED, within_seconds=20).attempt == 1
    for run_id in crashing:
        assert sqlite_bench.until_terminal(run_id).error_type == "ChildCrashed"


def test_a_run_that_its_child_never_began_is_not_blamed_for_the_childs_death(sqlite_bench: Bench) -> None:
    """Children are killed at random moments; a run of which none of them said that it begins must not have failed."""
    events = sqlite_bench.folder / "events"
    settings = {"EVENTS_FILE": str(events)}
    worker = sqlite_bench.worker("--max-concurrent-runs", "4", settings=settings, target="told_jobs")
    worker.until_ready(children=4)
    run_ids = sqlite_bench.client.enqueue_many("once", [None] * 600)
    while any(not run.status.terminal for run in sqlite_bench.stack.queries.get_recent_runs(600)):
        for pid in worker.children()[:1]:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    worker.terminate()
    assert worker.exit_code() == 0
    told = [msgspec.json.decode(line) for line in events.read_bytes().splitlines()]
    began = {UUID(event["run_id"]) for event in told if event["event_type"] == "job_started"}
    executions = sqlite_bench.executions()
    for run_id in run_ids:
        run = sqlite_bench.until_terminal(run_id)
        assert executions[run_id] <= 1
        assert run.status is RunStatus.SUCCEEDED or run_id in began, run


def test_timeouts_of_one_job_do_not_hit_the_runs_that_follow_it(sqlite_bench: Bench) -> None:
    settings = {"DURABLESTACK__CANCEL_GRACE_SECONDS": "0", "DURABLESTACK__TERMINATE_GRACE_SECONDS": "0.05"}
    sqlite_bench.worker(settings=settings)
    innocent = []
    for _ in range(40):
        sqlite_bench.client.enqueue_many("hangs-briefly", [None] * 2)
        innocent += sqlite_bench.client.enqueue_many("once", [None] * 2)
    for run_id in innocent:
        assert sqlite_bench.until_terminal(run_id).status is RunStatus.SUCCEEDED


def test_log_lines_that_nobody_reads_hold_up_nothing(sqlite_bench: Bench) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)
    process = subprocess.Popen(
        [sys.executable, "-m", "durablestack.supervisor", "chaos_jobs", "--plain", "-v"],
        env={**os.environ, **sqlite_bench.settings, "PYTHONPATH": str(TESTS)},
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=writer,
        start_new_session=True,
    )
    try:
        for run_id in sqlite_bench.client.enqueue_many("once", [None] * 20):
            sqlite_bench.until(run_id, RunStatus.SUCCEEDED)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        os.close(reader)
        os.close(writer)
        process.kill()
        process.wait()


def test_a_supervisor_whose_fork_server_is_frozen_can_be_stopped(sqlite_bench: Bench) -> None:
    worker = sqlite_bench.worker()
    child = worker.until_ready(children=2)[0]
    fork_server = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(fork_server, signal.SIGSTOP)
    for pid in worker.children():
        os.kill(pid, signal.SIGKILL)
    worker.terminate()
    assert worker.exit_code() == 0
    eventually(lambda: not still_running(fork_server), what="the end of the fork server")


def test_children_start_where_few_descriptors_are_allowed(sqlite_bench: Bench) -> None:
    script = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60)); "
        "sys.argv = ['x', 'chaos_jobs', '--plain', '--max-concurrent-runs', '1']; "
        "runpy.run_module('durablestack.supervisor', run_name='__main__')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, **sqlite_bench.settings, "PYTHONPATH": str(TESTS)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert sqlite_bench.until(sqlite_bench.client.enqueue("once"), RunStatus.SUCCEEDED).attempt == 1
    finally:
        process.terminate()
        process.wait(30)


def test_a_supervisor_whose_block_is_cancelled_from_outside_stops_gracefully_all_the_same(tmp_path: Path) -> None:
    stack = DurableStack(
        "chaos_jobs",
        database_url=f"sqlite:///{tmp_path}/runs.db",
        shutdown_drain_timeout_seconds=0.2,
        cancel_grace_seconds=0.2,
        terminate_grace_seconds=0.2,
    )

    async def cancelled() -> None:
        with anyio.CancelScope() as scope:
            async with supervise(stack):
                await stack.async_client.enqueue("sleeps", {"seconds": 60.0})
                with anyio.fail_after(30):
                    while not stack.queries.count_runs()[RunStatus.LEASED]:
                        await anyio.sleep(0.01)
                scope.cancel()

    with stack:
        anyio.run(cancelled)
        (run,) = stack.queries.get_recent_runs(1)
        assert (run.status, run.attempt) == (RunStatus.PENDING, 0)


def test_a_program_without_the_main_guard_is_told_so_in_a_sentence(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import anyio\n"
        "from durablestack import DurableStack, durable_job\n"
        "from durablestack.supervisor.embedded import supervise\n"
        "stack = DurableStack(__name__, storage_provider='in_memory')\n"
        "@durable_job\n"
        "def job() -> None: pass\n"
        "async def main():\n"
        "    async with supervise(stack):\n"
        "        await anyio.sleep(60)\n"
        "anyio.run(main)\n"
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 1
    assert "if __name__ == '__main__':" in done.stderr.splitlines()[-1]


def test_a_retry_begins_when_it_is_due_and_not_at_the_next_poll(sqlite_bench: Bench) -> None:
    sqlite_bench.worker(settings={"DURABLESTACK__POLL_INTERVAL_SECONDS": "60"})
    run = sqlite_bench.until(sqlite_bench.client.enqueue("dies-once", "exit-3"), RunStatus.SUCCEEDED)
    assert run.attempt == 2
