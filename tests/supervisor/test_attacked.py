"""What an attacker, or bad luck, tried with success once, and must not again."""

import os
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from durablestack import RunStatus
from mariadb import MariaDbServer
from workers import Bench, bench, eventually


def test_our_secrets_are_neither_logged_nor_stored_though_a_job_tells_them(postgres_bench: Bench) -> None:
    password = "t0p-s3cr3t-hush"
    settings = {"DURABLESTACK__EVENTING__TENANT_ID": "t", "DURABLESTACK__EVENTING__CLIENT_SECRET": password}
    settings["DURABLESTACK__EVENTING__INGESTION_API_BASE_URL"] = "http://127.0.0.1:9"
    worker = postgres_bench.worker(settings=settings)
    run_id = postgres_bench.client.enqueue("tells", password)
    run = postgres_bench.until(run_id, RunStatus.FAILED)
    worker.until_logged("run failed")
    told = " ".join(map(str, (run.error_message, run.error_detail, run.stdout_tail, run.stderr_tail)))
    assert "it is" in told
    assert password not in told + worker.log()


def test_a_job_cannot_write_lines_into_our_log(sqlite_bench: Bench) -> None:
    worker = sqlite_bench.worker()
    run_id = sqlite_bench.client.enqueue("tells", "\n2026-01-01 00:00:00,000 INFO run succeeded: forged \x1b[31m")
    sqlite_bench.until(run_id, RunStatus.FAILED)
    worker.until_logged("forged")
    assert not any(line.startswith("2026-01-01 00:00:00,000") for line in worker.log().splitlines())
    assert "\x1b" not in worker.log()


def test_a_second_signal_ends_a_supervisor_whose_database_does_not_answer(
    tmp_path: Path, own_mariadb: Callable[[], MariaDbServer], mysql_settings: dict[str, str]
) -> None:
    server = own_mariadb()
    settings = {
        "DURABLESTACK__DATABASE_URL": server.dsn,
        "DURABLESTACK__OPERATION_TIMEOUT_SECONDS": "3600",  # or it would give up by itself
        "DURABLESTACK__POLL_INTERVAL_SECONDS": "0.01",  # a claim is always under way
    }
    with bench(tmp_path, {**mysql_settings, **settings}) as made:
        worker = made.worker()
        children = worker.until_ready(children=2)
        for pid in server.pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            worker.terminate()
            worker.until_logged("SIGTERM: stopping")
            worker.terminate()
            assert worker.exit_code() == 0
        finally:
            for pid in server.pids:
                os.kill(pid, signal.SIGCONT)
        eventually(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in children))


@pytest.mark.parametrize("column", ["max_attempts", "seen_at_utc", "next_run_at_utc"])
def test_a_schedule_whose_row_was_damaged_stops_no_other(sqlite_bench: Bench, column: str) -> None:
    worker = sqlite_bench.worker(target="recurring_jobs")
    store = sqlite_bench.stack.store
    other = "every-second-overlapping"
    eventually(lambda: store.get_schedule(other) is not None and store.get_schedule("every-second") is not None)
    value = 0 if column == "max_attempts" else "0 o'clock"
    with closing(sqlite3.connect(sqlite_bench.folder / "runs.db", timeout=10)) as connection, connection:
        connection.execute(f"update durable_stack_jobs set {column} = ? where job_name = 'every-second'", [value])
    before = len(store.list_runs(take=1000, job_name=other))
    eventually(lambda: len(store.list_runs(take=1000, job_name=other)) >= before + 3)
    worker.terminate()
    assert worker.exit_code() == 0
    sqlite_bench.worker(target="recurring_jobs")  # which meets it at its start
    before = len(store.list_runs(take=1000, job_name=other))
    eventually(lambda: len(store.list_runs(take=1000, job_name=other)) >= before + 3)
