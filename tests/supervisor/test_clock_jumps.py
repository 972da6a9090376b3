"""The clock that decides is set while a run is in hand. PostgreSQL with a clock of our making in front of its own."""

from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from durablestack import RunStatus
from servers import PostgresServer
from workers import Bench, Worker, bench

LEASE_SECONDS = 10
"""A heartbeat waits for a tenth of it, on a new connection after one that did not answer: on a busy machine that took
more than 0.3 s, until a lease of 3 s was over."""

SET_UP = """
create schema shim;
create table shim.skew (by interval not null);
insert into shim.skew values ('0');
create function shim.clock_timestamp() returns timestamptz language sql volatile
    as 'select pg_catalog.clock_timestamp() + by from shim.skew';
"""


@pytest.fixture
def skewed_bench(
    tmp_path: Path, own_postgres: Callable[[], PostgresServer], postgres_settings: dict[str, str]
) -> Iterator[Bench]:
    dsn = own_postgres().dsn
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(SET_UP)
        name = connection.info.dbname
        connection.execute(f'alter database "{name}" set search_path = shim, pg_catalog, public')
    settings = {
        **postgres_settings,
        "DURABLESTACK__DATABASE_URL": dsn,
        "DURABLESTACK__LEASE_DURATION_SECONDS": str(LEASE_SECONDS),
    }
    with bench(tmp_path, settings) as made:
        yield made


def set_clock(made: Bench, by: str) -> None:
    with psycopg.connect(made.settings["DURABLESTACK__DATABASE_URL"]) as connection:
        connection.execute("update shim.skew set by = %s::interval", [by])


def until_it_has_claimed(made: Bench, worker: Worker) -> None:
    """From then on it knows how the clock went until now."""
    while not {note.pid for note in made.notes(what="start")} & set(worker.children()):
        made.until(made.client.enqueue("innocent"), RunStatus.SUCCEEDED)


@pytest.mark.parametrize("by", ["1 hour", "-1 hour"])
def test_a_clock_that_is_set_takes_no_run_from_a_worker_that_lives(skewed_bench: Bench, by: str) -> None:
    holder = skewed_bench.worker()
    run_id = skewed_bench.client.enqueue("sleeps", {"seconds": 2 * LEASE_SECONDS})
    skewed_bench.until_noted(run_id, "start")
    other = skewed_bench.worker()
    other.until_ready(children=2)
    until_it_has_claimed(skewed_bench, other)
    set_clock(skewed_bench, by)
    other.until_logged("clock has jumped")
    holder.until_logged("clock has jumped")
    run = skewed_bench.until(run_id, RunStatus.SUCCEEDED)
    assert run.attempt == 1
    assert skewed_bench.executions()[run_id] == 1
