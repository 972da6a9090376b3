"""How children come to be: a child that cannot start costs no run anything."""

import os
import signal
import textwrap
from pathlib import Path

from durablestack import RunStatus
from workers import Bench, eventually

BREAKS_IN_CHILDREN = """
    import multiprocessing, os, pathlib
    from durablestack import JobContext, durable_job

    if multiprocessing.parent_process() is not None and not pathlib.Path({flag!r}).exists():
        {trouble}

    @durable_job(name="innocent")
    def innocent(context: JobContext) -> None:
        pass
"""


def write_module(bench: Bench, trouble: str) -> Path:
    flag = bench.folder / "healed"
    module = bench.folder / "troubled.py"
    module.write_text(textwrap.dedent(BREAKS_IN_CHILDREN.format(flag=str(flag), trouble=trouble)))
    return flag


def test_no_run_is_claimed_while_no_child_can_start_and_all_is_well_once_one_can(any_bench: Bench) -> None:
    flag = write_module(any_bench, "raise RuntimeError('the deploy is broken')")
    worker = any_bench.worker("--start-method", "spawn", target="troubled")
    run_id = any_bench.client.enqueue("innocent")
    eventually(lambda: worker.log().count("the deploy is broken") >= 3, what=worker.log())
    assert (any_bench.run(run_id).status, any_bench.run(run_id).attempt) == (RunStatus.PENDING, 0)
    assert worker.process.poll() is None
    flag.touch()
    assert any_bench.until(run_id, RunStatus.SUCCEEDED).attempt == 1


def test_a_child_that_dies_while_it_starts_is_told_by_its_signal(sqlite_bench: Bench) -> None:
    write_module(sqlite_bench, "os.kill(os.getpid(), 9)")
    worker = sqlite_bench.worker("--start-method", "spawn", target="troubled")
    run_id = sqlite_bench.client.enqueue("innocent")
    eventually(lambda: worker.log().count("ended with SIGKILL before it was ready") >= 2, what=worker.log())
    assert sqlite_bench.run(run_id).attempt == 0


def test_a_child_that_does_not_get_ready_is_given_up_and_the_supervisor_can_be_stopped(sqlite_bench: Bench) -> None:
    write_module(sqlite_bench, "__import__('threading').Event().wait()")
    settings = {"DURABLESTACK__STARTUP_TIMEOUT_SECONDS": "1"}
    worker = sqlite_bench.worker("--start-method", "spawn", settings=settings, target="troubled")
    eventually(lambda: "not ready within 1 s" in worker.log(), what=worker.log())
    worker.terminate()
    assert worker.exit_code() == 0


def test_a_child_that_knows_other_jobs_than_the_supervisor_is_not_used(sqlite_bench: Bench) -> None:
    flag = sqlite_bench.folder / "troubled.py"
    flag.write_text(
        textwrap.dedent(
            """
            import multiprocessing
            from durablestack import durable_job

            def innocent() -> None:
                pass

            if multiprocessing.parent_process() is None:
                durable_job(name="innocent")(innocent)
            """
        )
    )
    worker = sqlite_bench.worker("--start-method", "spawn", target="troubled")
    run_id = sqlite_bench.client.enqueue("innocent")
    worker.until_logged("it does not know the jobs innocent")
    assert sqlite_bench.run(run_id).attempt == 0


def test_spawned_children_execute_runs(any_bench: Bench) -> None:
    any_bench.worker("--start-method", "spawn")
    assert any_bench.until(any_bench.client.enqueue("innocent"), RunStatus.SUCCEEDED).attempt == 1


def test_an_idle_child_that_dies_is_replaced_and_costs_nobody_anything(sqlite_bench: Bench) -> None:
    worker = sqlite_bench.worker()
    before = worker.until_ready(children=2)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: len(set(worker.children()) - set(before)) == 2, what="two new children")
    assert sqlite_bench.until(sqlite_bench.client.enqueue("innocent"), RunStatus.SUCCEEDED).attempt == 1


def test_a_fork_server_that_dies_is_replaced_and_the_runs_it_takes_along_are_tried_again(sqlite_bench: Bench) -> None:
    worker = sqlite_bench.worker("--lease-duration-seconds", "300")
    run_id = sqlite_bench.client.enqueue("slow-at-first")
    child = sqlite_bench.until_noted(run_id, "start").pid
    fork_server = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(fork_server, signal.SIGKILL)
    assert sqlite_bench.until(run_id, RunStatus.SUCCEEDED).attempt == 2
    worker.until_ready(children=2)


def test_a_worker_leaves_runs_alone_whose_job_it_does_not_know(any_bench: Bench) -> None:
    (any_bench.folder / "other_jobs.py").write_text(
        "from durablestack import durable_job\n@durable_job(name='other')\ndef other() -> None: pass\n"
    )
    any_bench.worker(target="other_jobs")
    unknown_there = any_bench.client.enqueue_many("innocent", [None] * 60)
    knows = any_bench.worker()
    for run_id in unknown_there:
        assert any_bench.until(run_id, RunStatus.SUCCEEDED).attempt == 1
    assert knows.process.poll() is None
