"""Databases that go away, freeze, and cut connections at the worst moment."""

import os
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from durablestack import RunStatus
from processes import open_files
from proxies import proxy_to, through
from proxy import When
from servers import PostgresServer
from workers import Bench, bench, eventually


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_success_whose_commit_is_cut_is_recorded_once_as_success(
    postgres_bench: Bench, postgres_settings: dict[str, str], when: When
) -> None:
    with proxy_to(postgres_settings) as proxy:
        proxy.cut_commit(when, b"set status = 'succeeded'")
        worker = postgres_bench.worker(settings=through(proxy, postgres_settings))
        run_id = postgres_bench.client.enqueue("innocent")
        assert proxy.cut_done.wait(30), worker.log()
        run = postgres_bench.until(run_id, RunStatus.SUCCEEDED)
        worker.until_logged("run succeeded")
        assert (run.attempt, postgres_bench.executions()[run_id]) == (1, 1)
        assert postgres_bench.run(run_id) == run
        assert worker.log().count("run succeeded") == 1
        worker.close()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_claim_whose_commit_is_cut_costs_no_attempt_and_no_lease_time(
    postgres_bench: Bench, postgres_settings: dict[str, str], when: When
) -> None:
    run_id = postgres_bench.client.enqueue("innocent")
    with proxy_to(postgres_settings) as proxy:
        proxy.cut_commit(when, b"set status = 'leased'")
        worker = postgres_bench.worker("--lease-duration-seconds", "300", settings=through(proxy, postgres_settings))
        assert proxy.cut_done.wait(30), worker.log()
        run = postgres_bench.until(run_id, RunStatus.SUCCEEDED)
        assert (run.attempt, postgres_bench.executions()[run_id]) == (1, 1)
        worker.close()


def test_a_database_that_restarts_costs_no_run_and_no_attempt(
    tmp_path: Path, own_postgres: Callable[[], PostgresServer], postgres_settings: dict[str, str]
) -> None:
    server = own_postgres()
    with bench(tmp_path, {**postgres_settings, "DURABLESTACK__DATABASE_URL": server.dsn}) as made:
        worker = made.worker("--lease-duration-seconds", "20", "--max-concurrent-runs", "4")
        run_ids = [made.client.enqueue("sleeps", {"seconds": 1.0}) for _ in range(4)]
        for run_id in run_ids:
            made.until_noted(run_id, "start")
        server.stop("immediate")
        for run_id in run_ids:
            made.until_noted(run_id, "end")
        worker.until_logged("could not record")
        server.start()
        for run_id in run_ids:
            eventually(lambda id=run_id: _answered(made, id))
            assert made.run(run_id).attempt == 1
            assert made.executions()[run_id] == 1
        later = made.client.enqueue("innocent")
        assert made.until(later, RunStatus.SUCCEEDED).attempt == 1


def _answered(made: Bench, run_id: object) -> bool:
    try:
        return made.run(run_id).status is RunStatus.SUCCEEDED  # type: ignore[arg-type]
    except Exception:  # the database is on its way back
        return False


def test_a_frozen_database_costs_the_run_its_child_at_the_end_of_trust_and_is_recovered_from(
    postgres_bench: Bench, postgres_settings: dict[str, str]
) -> None:
    with proxy_to(postgres_settings) as proxy:
        settings = {**through(proxy, postgres_settings), "DURABLESTACK__OPERATION_TIMEOUT_SECONDS": "2"}
        worker = postgres_bench.worker(settings=settings)
        run_id = postgres_bench.client.enqueue("slow-at-first")
        postgres_bench.until_noted(run_id, "start")
        proxy.freeze()
        worker.until_logged("lease lost, not renewed in time")
        proxy.thaw()
        run = postgres_bench.until(run_id, RunStatus.SUCCEEDED)
        assert run.attempt == 2
        worker.close()


def test_a_supervisor_with_ten_children_uses_at_most_five_connections_and_its_children_none(
    postgres_bench: Bench, postgres_settings: dict[str, str], postgres_dsn: str
) -> None:
    name = f"counted{os.getpid()}"
    url = postgres_settings["DURABLESTACK__DATABASE_URL"]
    settings = {"DURABLESTACK__DATABASE_URL": f"{url}&application_name={name}"}
    worker = postgres_bench.worker("--max-concurrent-runs", "10", settings=settings)
    worker.until_ready(children=10)
    busy = postgres_bench.client.enqueue_many("burns", [{"seconds": 0.3}] * 40)
    looks: list[int] = []
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        query = "select count(*) from pg_stat_activity where application_name = %s"
        while any(not postgres_bench.run(run_id).status.terminal for run_id in busy):
            row = connection.execute(query, [name]).fetchone()
            looks.append(row[0] if row else 0)
    assert 1 <= max(looks) <= 5
    run = postgres_bench.until(postgres_bench.client.enqueue("tells-its-descriptors"), RunStatus.SUCCEEDED)
    assert "tcp 0" in (run.stdout_tail or "")


def test_children_have_the_sqlite_file_not_open(sqlite_bench: Bench) -> None:
    worker = sqlite_bench.worker("--max-concurrent-runs", "3")
    for pid in worker.until_ready(children=3):
        assert not [path for path in open_files(pid) if "runs.db" in path]
    run = sqlite_bench.until(sqlite_bench.client.enqueue("tells-its-descriptors"), RunStatus.SUCCEEDED)
    assert "runs.db" not in (run.stdout_tail or "")


def test_a_supervisor_that_loses_its_database_stops_when_asked_and_says_what_it_could_not_write(
    tmp_path: Path, own_postgres: Callable[[], PostgresServer], postgres_settings: dict[str, str]
) -> None:
    server = own_postgres()
    with bench(tmp_path, {**postgres_settings, "DURABLESTACK__DATABASE_URL": server.dsn}) as made:
        worker = made.worker("--lease-duration-seconds", "60")
        run_id = made.client.enqueue("sleeps", {"seconds": 1.0})
        made.until_noted(run_id, "start")
        server.stop("immediate")
        made.until_noted(run_id, "end")
        worker.terminate()
        assert worker.exit_code(within_seconds=40) == 4
        assert "1 outcomes could not be written" in worker.log()
