"""Enqueues by other processes are heard of: the poll interval of these workers is longer than any patience."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import anyio
import psycopg
import pytest

from durablestack import DurableStack, RunStatus
from durablestack.stores.contract import Claimed
from durablestack.supervisor.embedded import supervise
from durablestack.supervisor.pool import Room
from pooler import TransactionPooler
from servers import PostgresServer
from workers import Bench, Worker, bench, eventually

NEVER = ("--poll-interval-seconds", "3600")
HEARS_NOT = "notifications do not arrive"


@pytest.fixture(params=["sqlite", "postgres"])
def hearing_bench(request: pytest.FixtureRequest) -> Bench:
    made: Bench = request.getfixturevalue(f"{request.param}_bench")
    return made


def hearing_worker(made: Bench) -> Worker:
    worker = made.worker(*NEVER)
    worker.until_ready(children=2)
    if is_postgres(made):
        until_listening(made)
    return worker


def is_postgres(made: Bench) -> bool:
    return made.settings["DURABLESTACK__DATABASE_URL"].startswith("postgres")


def until_listening(made: Bench, *, besides: int = 0) -> int:
    """Wait until a session other than `besides` listens; return which."""
    channel = f"{made.settings['DURABLESTACK__DATABASE_TABLE_PREFIX']}durable_stack"
    query = "select pid from pg_stat_activity where query = %s and pid <> %s"

    def listening() -> int:
        try:
            with psycopg.connect(made.settings["DURABLESTACK__DATABASE_URL"], autocommit=True) as admin:
                row = admin.execute(query, [f'listen "{channel}"', besides]).fetchone()
        except psycopg.OperationalError:  # on its way back
            return 0
        return int(row[0]) if row else 0

    return eventually(listening, what=f"a listener: {made.logs()}")


def test_an_enqueue_by_another_process_does_not_wait_for_the_poll(hearing_bench: Bench) -> None:
    hearing_worker(hearing_bench)
    for _ in range(3):
        hearing_bench.until(hearing_bench.client.enqueue("innocent"), RunStatus.SUCCEEDED)


def test_runs_whose_hints_are_withheld_are_found_as_well(hearing_bench: Bench) -> None:
    hearing_worker(hearing_bench)
    run_ids = [hearing_bench.client.enqueue("innocent") for _ in range(60)]
    for run_id in run_ids:
        hearing_bench.until(run_id, RunStatus.SUCCEEDED)


def test_a_run_of_a_callers_transaction_starts_after_its_commit_and_not_before(hearing_bench: Bench) -> None:
    hearing_worker(hearing_bench)
    with callers_connection(hearing_bench) as connection:
        mine = hearing_bench.client.enqueue("innocent", connection=connection)
        if is_postgres(hearing_bench):  # on SQLite nobody else writes meanwhile
            others = hearing_bench.client.enqueue("innocent")
            hearing_bench.until(others, RunStatus.SUCCEEDED)
        assert hearing_bench.notes(mine) == []
        connection.commit()
    hearing_bench.until(mine, RunStatus.SUCCEEDED)


@contextmanager
def callers_connection(made: Bench) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    target = made.stack.options.connection_target()
    assert target is not None
    if is_postgres(made):
        connection = psycopg.connect(made.settings["DURABLESTACK__DATABASE_URL"])
    else:
        connection = sqlite3.connect(target.database or "")  # type: ignore[assignment]
    with closing(connection):
        yield connection


def test_without_hints_the_poll_finds_all(hearing_bench: Bench) -> None:
    worker = hearing_bench.worker(settings={"DURABLESTACK__WAKE_ON_ENQUEUE": "false"})
    worker.until_ready(children=2)
    for _ in range(3):
        hearing_bench.until(hearing_bench.client.enqueue("innocent"), RunStatus.SUCCEEDED)


def test_behind_a_pooler_of_transactions_the_poll_finds_all_and_the_log_says_why_once(
    tmp_path: Path, own_postgres: Callable[[], PostgresServer], postgres_settings: dict[str, str]
) -> None:
    server = own_postgres()
    with TransactionPooler(server.port) as pooler:
        dsn = server.dsn.replace(f":{server.port}/", f":{pooler.port}/")
        with bench(tmp_path, {**postgres_settings, "DURABLESTACK__DATABASE_URL": dsn}) as made:
            worker = made.worker()
            worker.until_logged(HEARS_NOT)
            for _ in range(5):
                made.until(made.client.enqueue("innocent"), RunStatus.SUCCEEDED)
            assert worker.log().count(HEARS_NOT) == 1


def test_a_flood_of_strange_notifications_delays_nothing_for_long(postgres_bench: Bench) -> None:
    hearing_worker(postgres_bench)
    channel = f"{postgres_bench.settings['DURABLESTACK__DATABASE_TABLE_PREFIX']}durable_stack"
    flood = "select pg_notify(%s, repeat(chr(97 + number %% 26), 7000) || number) from generate_series(1, 1000) number"
    with psycopg.connect(postgres_bench.settings["DURABLESTACK__DATABASE_URL"], autocommit=True) as somebody:
        for _ in range(10):
            somebody.execute(flood, [channel])
            postgres_bench.until(postgres_bench.client.enqueue("innocent"), RunStatus.SUCCEEDED)


def test_a_listener_whose_session_is_ended_listens_again(postgres_bench: Bench, postgres_dsn: str) -> None:
    hearing_worker(postgres_bench)
    with psycopg.connect(postgres_dsn, autocommit=True) as admin:
        for _ in range(2):
            listener = until_listening(postgres_bench)
            admin.execute("select pg_terminate_backend(%s)", [listener])
            until_listening(postgres_bench, besides=listener)
            postgres_bench.until(postgres_bench.client.enqueue("innocent"), RunStatus.SUCCEEDED)


def test_a_server_that_restarts_is_listened_to_again(
    tmp_path: Path, own_postgres: Callable[[], PostgresServer], postgres_settings: dict[str, str]
) -> None:
    server = own_postgres()
    with bench(tmp_path, {**postgres_settings, "DURABLESTACK__DATABASE_URL": server.dsn}) as made:
        worker = hearing_worker(made)
        server.stop()
        server.start()
        until_listening(made)
        made.until(made.client.enqueue("innocent"), RunStatus.SUCCEEDED)
        worker.terminate()
        assert worker.exit_code() == 0
        assert "notif" not in worker.log()


@pytest.mark.anyio
async def test_an_idle_supervisor_on_sqlite_does_not_keep_itself_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with DurableStack("chaos_jobs", database_url=f"sqlite:///{tmp_path}/runs.db", poll_interval_seconds=3600) as stack:
        async with supervise(stack) as supervisor:
            looks: list[object] = []
            claim, heard = supervisor.claimer._claim, anyio.Event()

            async def counted(room: Room, begun: Callable[[], None]) -> Claimed:
                looks.append(room)
                return await claim(room, begun)

            monkeypatch.setattr(supervisor.claimer, "_claim", counted)
            run_id = await stack.async_client.enqueue("innocent")
            with anyio.fail_after(30):
                while (run := stack.queries.get_run(run_id)) is None or not run.status.terminal:
                    await anyio.sleep(0.01)
            with anyio.move_on_after(2.0):  # in which it could look two hundred times
                await heard.wait()
            assert 2 <= len(looks) <= 25
