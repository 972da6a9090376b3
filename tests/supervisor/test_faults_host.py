"""Faults of the machine and of whoever starts us: signals, names, limits, forks. See docs/faults.md, part A."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

import chaos_jobs
from durablestack import DurableStack, Run, RunStatus
from durablestack.runs import AttemptOutcome
from durablestack.supervisor.embedded import supervise
from processes import children_of, still_running
from workers import TESTS, Bench, eventually

LONG = {"seconds": 60.0}
SOME_USER = 54_321
"""A user of whom nobody else is: limits count the processes of one user, and root has none."""

IGNORING = "import os, signal, sys; signal.signal(signal.{}, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"


def ignoring(signal_name: str) -> list[str]:
    return [sys.executable, "-c", IGNORING.format(signal_name)]


# --- signals


@pytest.mark.parametrize("arguments", [[], ["--start-method", "spawn"]], ids=["forkserver", "spawn"])
def test_how_a_child_ended_is_known_though_whoever_started_us_ignores_exit_signals(
    sqlite_bench: Bench, arguments: list[str]
) -> None:
    worker = sqlite_bench.worker(*arguments, under=ignoring("SIGCHLD"))
    worker.until_ready(children=2)
    for _ in range(200):
        os.kill(worker.pid, signal.SIGCHLD)
        os.kill(worker.pid, signal.SIGPIPE)
    for how, signal_name in (("exit-3", None), ("sigkill", "SIGKILL")):
        run_id = sqlite_bench.client.enqueue("dies-once", how)
        assert sqlite_bench.until(run_id, RunStatus.SUCCEEDED).attempt == 2
        first = sqlite_bench.stack.queries.get_attempts(run_id)[0]
        assert first.signal == signal_name
        assert ("SIGKILL" if signal_name else "3") in (first.error_message or "")
    worker.terminate()
    assert worker.exit_code() == 0


def test_a_hang_up_is_a_graceful_stop_and_none_under_nohup(sqlite_bench: Bench) -> None:
    stays, leaves = sqlite_bench.worker(under=ignoring("SIGHUP")), sqlite_bench.worker()
    for worker in (stays, leaves):
        worker.until_ready(children=2)
        os.killpg(worker.pid, signal.SIGHUP)
    assert leaves.exit_code() == 0
    assert sqlite_bench.until(sqlite_bench.client.enqueue("innocent"), RunStatus.SUCCEEDED).attempt == 1
    assert stays.process.poll() is None
    assert "stopping" not in stays.log()


def test_what_a_stopping_supervisor_gives_back_another_takes_up_with_no_attempt_lost(sqlite_bench: Bench) -> None:
    leaves = sqlite_bench.worker("--lease-duration-seconds", "300")
    run_id = sqlite_bench.client.enqueue("waits-until-told")
    sqlite_bench.until_noted(run_id, "start")
    stays = sqlite_bench.worker("--lease-duration-seconds", "300")
    stays.until_ready(children=2)
    leaves.terminate()
    assert leaves.exit_code() == 0
    sqlite_bench.until_noted(run_id, "start", count=2)
    assert (sqlite_bench.run(run_id).attempt, sqlite_bench.run(run_id).lease_owner) == (1, "worker-1")


# --- names


def test_of_two_supervisors_of_one_name_neither_ends_nor_completes_what_the_other_has(postgres_bench: Bench) -> None:
    workers = [postgres_bench.worker("--worker-name", "twin", "--max-concurrent-runs", "1") for _ in range(2)]
    run_ids = [postgres_bench.client.enqueue("sleeps", {"seconds": 4.0}) for _ in range(2)]  # longer than a lease
    for run_id in run_ids:
        assert postgres_bench.until(run_id, RunStatus.SUCCEEDED).attempt == 1
    assert {note.attempt for note in postgres_bench.notes(what="start")} == {1}
    assert "lease lost" not in "".join(worker.log() for worker in workers)


def test_who_is_started_under_the_name_of_one_that_is_frozen_waits_for_its_leases_and_keeps_its_own(
    mysql_bench: Bench,
) -> None:
    frozen = mysql_bench.worker("--worker-name", "twin")
    run_id = mysql_bench.client.enqueue("slow-at-first")
    mysql_bench.until_noted(run_id, "start")
    frozen.freeze()
    mysql_bench.worker("--worker-name", "twin")
    outcome = mysql_bench.until(run_id, RunStatus.SUCCEEDED)
    frozen.thaw()
    frozen.until_logged("lease lost")
    frozen.terminate()
    assert frozen.exit_code() == 0
    assert mysql_bench.run(run_id) == outcome
    first, second = mysql_bench.stack.queries.get_attempts(run_id)
    assert (first.outcome, second.outcome) == (AttemptOutcome.EXPIRED, AttemptOutcome.SUCCEEDED)
    assert first.started_at is not None
    assert second.started_at is not None
    assert (second.started_at - first.started_at).total_seconds() >= 3.0  # by the clock of the database: one lease


# --- limits


def test_a_supervisor_that_may_open_no_more_files_keeps_its_leases_and_comes_back(postgres_bench: Bench) -> None:
    worker = postgres_bench.worker("--max-concurrent-runs", "3")
    run_id = postgres_bench.client.enqueue("sleeps", {"seconds": 4.0})  # longer than a lease
    busy = postgres_bench.until_noted(run_id, "start").pid
    eventually(lambda: was_renewed(postgres_bench.run(run_id)), what="a heartbeat, which opens its connection")
    with limited("nofile", len(os.listdir(f"/proc/{worker.pid}/fd")), [worker.pid]):
        for pid in set(worker.until_ready(children=3)) - {busy}:
            os.kill(pid, signal.SIGKILL)
        worker.until_logged("Too many open files")
        assert postgres_bench.until(run_id, RunStatus.SUCCEEDED).attempt == 1
    later = postgres_bench.client.enqueue_many("sleeps", [{"seconds": 1.0}] * 3)
    for run_id in later:
        assert postgres_bench.until(run_id, RunStatus.SUCCEEDED).attempt == 1
    worker.until_ready(children=3)
    assert postgres_bench.executions()[run_id] == 1


def test_a_supervisor_that_may_start_no_process_goes_on_with_those_it_has(postgres_bench: Bench) -> None:
    worker = postgres_bench.worker("--max-concurrent-runs", "2", under=as_some_user(postgres_bench.folder))
    run_id = postgres_bench.client.enqueue("sleeps", {"seconds": 4.0})
    busy = postgres_bench.until_noted(run_id, "start").pid
    eventually(lambda: was_renewed(postgres_bench.run(run_id)), what="a heartbeat, which opens its connection")
    children = worker.until_ready(children=2)
    fork_servers = children_of(worker.pid) - set(children)
    with limited("nproc", 1, [worker.pid, *fork_servers]):
        for pid in set(children) - {busy}:
            os.kill(pid, signal.SIGKILL)
        worker.until_logged("no child can be started")
        assert postgres_bench.until(run_id, RunStatus.SUCCEEDED).attempt == 1
        assert worker.children() == [busy]
        other = postgres_bench.client.enqueue("innocent")  # by the child that is left
        assert postgres_bench.until(other, RunStatus.SUCCEEDED).attempt == 1
    worker.until_ready(children=2)


def was_renewed(run: Run) -> bool:
    if run.lease_until is None or run.started_at is None:
        return False
    return run.lease_until - run.started_at > timedelta(seconds=3.2)


@contextmanager
def limited(limit: str, most: int, pids: list[int]) -> Iterator[None]:
    """The soft limit of these processes, lowered for the block."""
    before = [set_limit(pid, limit, str(most)) for pid in pids]
    yield
    for pid, soft in zip(pids, before, strict=True):
        if still_running(pid):
            set_limit(pid, limit, soft)


def set_limit(pid: int, limit: str, soft: str) -> str:
    """Set the soft limit of a process, as the user whose it is; return what it was."""
    owner = os.stat(f"/proc/{pid}").st_uid if os.geteuid() == 0 else None

    def prlimit(*arguments: str) -> str:
        command = ["prlimit", "--pid", str(pid), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, user=owner, group=owner).stdout

    before = prlimit(f"--{limit}", "--noheadings", "--raw", "--output", "SOFT").strip()
    prlimit(f"--{limit}={soft}:")
    return before


def as_some_user(folder: Path) -> list[str]:
    """A command that gives up being root, but for reading what is there. Whoever is not root has limits anyway."""
    if os.geteuid() != 0:
        return []
    if (setpriv := shutil.which("setpriv")) is None:
        pytest.skip("root has no limit of processes, and there is no setpriv to be somebody else")
    for path in (folder, *folder.iterdir()):
        os.chown(path, SOME_USER, SOME_USER)
    capabilities = "+dac_override,+dac_read_search"
    return [
        setpriv,
        f"--reuid={SOME_USER}",
        f"--regid={SOME_USER}",
        "--clear-groups",
        f"--inh-caps={capabilities}",
        f"--ambient-caps={capabilities}",
    ]


# --- growth


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_supervisor_that_has_done_much_is_no_larger_than_one_that_has_done_some(postgres_bench: Bench) -> None:
    worker = postgres_bench.worker("--max-concurrent-runs", "4", "--poll-interval-seconds", "0.05")
    measured = []
    for _ in range(6):
        postgres_bench.client.enqueue_many("once", [None] * 8_000)
        eventually(lambda: not active_runs(postgres_bench), within_seconds=200, what="8,000 runs")
        measured.append((resident_kibibytes(worker.pid), len(os.listdir(f"/proc/{worker.pid}/fd"))))
    (early, descriptors), (late, descriptors_late) = measured[1], measured[-1]
    assert late - early < 4_096, measured  # 32,000 runs later
    assert descriptors_late <= descriptors + 2, measured
    assert not [pid for pid in children_of(worker.pid) if not still_running(pid)]


def active_runs(bench: Bench) -> int:
    counted = bench.stack.queries.count_runs()
    return counted[RunStatus.PENDING] + counted[RunStatus.LEASED]


def resident_kibibytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


# --- where we are started


def test_a_supervisor_runs_in_a_thread_of_an_application(tmp_path: Path) -> None:
    stack = DurableStack("chaos_jobs", database_url=f"sqlite:///{tmp_path}/runs.db", max_concurrent_runs=1)
    run_ids: list[Any] = []

    async def serve() -> None:
        async with supervise(stack):
            run_ids.append(await stack.async_client.enqueue(chaos_jobs.innocent))
            with anyio.fail_after(30):
                while stack.queries.count_runs()[RunStatus.SUCCEEDED] < 1:
                    await anyio.sleep(0.01)

    with stack:
        thread = threading.Thread(target=anyio.run, args=(serve,))
        thread.start()
        thread.join(60)
        assert not thread.is_alive()
        assert stack.queries.get_recent_runs(1)[0].id == run_ids[0]


FORKS = """
import os, time
import anyio
from durablestack import DurableStack, RunStatus
from durablestack.supervisor.embedded import supervise

stack, parents = DurableStack("chaos_jobs", max_concurrent_runs=1), DurableStack("chaos_jobs")
stack.queries.count_runs()  # it is connected, and the fork takes that along

def serve(seconds):  # as a web worker that was forked off
    until, run_id = time.monotonic() + seconds, stack.client.enqueue("innocent")
    while time.monotonic() < until or not stack.queries.get_run(run_id).status.terminal:
        time.sleep(0.001)
    print("child", stack.queries.get_run(run_id).status, flush=True)

async def main():
    async with supervise(stack):
        run_id = await parents.async_client.enqueue("sleeps", {"seconds": 3.5})
        while not parents.queries.count_runs()[RunStatus.LEASED]:
            await anyio.sleep(0.01)
        pid = os.fork()
        if pid == 0:
            try:
                serve(4.0)
            finally:
                os._exit(0)
        while not parents.queries.get_run(run_id).status.terminal or os.waitpid(pid, os.WNOHANG) == (0, 0):
            await anyio.sleep(0.001)
        print("parent", parents.queries.get_run(run_id).attempt, flush=True)

if __name__ == "__main__":
    parents.migrate()
    anyio.run(main)
"""


def test_a_process_that_was_forked_off_serves_and_enqueues_and_leaves_the_leases_to_its_parent(
    postgres_bench: Bench,
) -> None:
    program = postgres_bench.folder / "program.py"
    program.write_text(FORKS)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(program)],
        env={**os.environ, **postgres_bench.settings, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["child succeeded", "parent 1"], done.stderr
