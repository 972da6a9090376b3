"""The tables: created once, by whoever comes first, and recognised."""

import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest
from exam import (
    JOB,
    LEASE_DURATION,
    LONG_AGO,
    Place,
    all_runs,
    change,
    claim,
    claim_one,
    claimed,
    enqueue,
    on_databases,
    query,
)
from test_store_concurrency import PROCESSES, THREADS, at_once

from durablestack.errors import SchemaError
from durablestack.ids import new_run_id
from durablestack.runs import Lease, RunStatus, Succeeded
from durablestack.stores.contract import Requests, Store
from durablestack.stores.migrate import COMPATIBLE_FROM, SCHEMA_VERSION

CLAIMING_PROCESS = Path(__file__).with_name("claiming_process.py")
ALL_VERSIONS = list(range(1, SCHEMA_VERSION + 1))


def pretend_version(store: Store, version: int, compatible_from: int) -> None:
    change(
        store,
        "insert into {migrations} (version, compatible_from, applied_at_utc) values (:version, :from, {now})",
        **{"version": version, "from": compatible_from},
    )


@on_databases
def test_migrating_applies_every_version_and_then_nothing(place: Place) -> None:
    store, other = place.open(), place.open()
    assert store.migrate() == ALL_VERSIONS
    assert store.migrate() == []
    assert other.migrate() == []
    store.verify_schema()
    assert query(store, "select version, compatible_from from {migrations} order by version") == [
        (version, COMPATIBLE_FROM[version]) for version in ALL_VERSIONS
    ]
    store.close()
    other.close()


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_the_store_in_memory_has_nothing_to_migrate(store: Store) -> None:
    assert store.migrate() == []
    store.verify_schema()


@on_databases
def test_migrating_leaves_the_runs_alone(place: Place, store: Store) -> None:
    run_id = enqueue(store)
    assert place.open().migrate() == []
    assert list(all_runs(store)) == [run_id]


@on_databases
def test_threads_that_migrate_at_once_migrate_once(place: Place) -> None:
    stores = [place.open() for _ in range(THREADS)]
    applied = at_once(*[store.migrate for store in stores])
    assert sorted(applied, key=len) == [*[[]] * (THREADS - 1), ALL_VERSIONS]
    for store in stores:
        store.verify_schema()
        store.close()


@on_databases
def test_processes_that_migrate_at_once_get_along(place: Place) -> None:
    command = [sys.executable, str(CLAIMING_PROCESS), place.database_url or "", place.table_prefix]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(PROCESSES)
    ]
    answers = [process.communicate("go\n", timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * PROCESSES, answers
    store = place.open()
    store.verify_schema()
    assert len(query(store, "select version from {migrations}")) == len(ALL_VERSIONS)
    store.close()


@on_databases
def test_missing_tables_are_told_with_what_to_do(place: Place) -> None:
    store = place.open()
    with pytest.raises(SchemaError, match="durablestack migrate"):
        store.verify_schema()
    for operation in (lambda: enqueue(store), lambda: claim(store), store.count_runs):
        with pytest.raises(SchemaError, match="durablestack migrate"):
            operation()
    assert store.migrate() == ALL_VERSIONS
    enqueue(store)
    assert len(claim(store)) == 1
    store.close()


@on_databases
def test_a_newer_version_that_still_works_with_us_is_accepted(store: Store) -> None:
    pretend_version(store, SCHEMA_VERSION + 1, compatible_from=SCHEMA_VERSION)
    store.verify_schema()
    assert store.migrate() == []
    enqueue(store)


@on_databases
def test_a_newer_version_that_does_not_work_with_us_is_refused(store: Store) -> None:
    pretend_version(store, SCHEMA_VERSION + 5, compatible_from=SCHEMA_VERSION + 3)
    with pytest.raises(SchemaError, match=rf"version {SCHEMA_VERSION + 5}.*version {SCHEMA_VERSION + 3}") as caught:
        store.verify_schema()
    assert "update durablestack" in str(caught.value)


@on_databases
@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("runs", "lease_seconds"),
        ("runs", "payload"),
        ("runs", "last_token"),
        ("runs", "worker_id"),
        ("runs", "stack"),
        ("attempts", "signal"),
        ("attempts", "ended_by"),
        ("workers", "marker"),
    ],
)
def test_a_missing_column_is_named(place: Place, table: str, column: str) -> None:
    store = place.open()
    store.migrate()
    change(store, f"alter table {{{table}}} drop column {column}")
    with pytest.raises(SchemaError, match=column):
        store.verify_schema()
    store.close()


@on_databases
@pytest.mark.parametrize("table", ["runs", "attempts", "workers"])
def test_a_missing_table_is_named(place: Place, table: str) -> None:
    store = place.open()
    store.migrate()
    change(store, f"drop table {{{table}}}")
    with pytest.raises(SchemaError, match=f"{place.table_prefix}durable_stack_(job_|workers)"):
        store.verify_schema()
    store.close()


@on_databases
def test_columns_that_are_more_than_we_need_are_no_matter(store: Store) -> None:
    change(store, "alter table {runs} add later text")
    store.verify_schema()
    enqueue(store)
    assert len(claim(store)) == 1


# --- from one version to the next


@on_databases
def test_what_older_tables_hold_is_there_after_an_update_and_goes_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = at_version(place, 2, monkeypatch)
    pending, leased, ended = new_run_id(), new_run_id(), new_run_id()
    lease = Lease(leased, uuid4(), 1, "older")
    for run_id in (pending, leased, ended):
        change(store, OLD_RUN_INSERT, id=run_id, job_name=JOB, due=store.now() - LONG_AGO)
    change(store, OLD_LEASE, id=leased, token=lease.token, until=store.now() + LEASE_DURATION)
    change(store, OLD_END, id=ended, now=store.now())
    change(store, OLD_ATTEMPT_INSERT, run_id=ended, ended_at=store.now())

    assert place.open().migrate() == [3]
    store.verify_schema()
    assert [run.crash_count for run in all_runs(store).values()] == [0] * 3
    (attempt,) = store.get_attempts(ended)
    assert (attempt.signal, attempt.exit_code, attempt.ended_by) == ("SIGSEGV", None, None)
    assert store.get_stack(leased) is None
    assert store.find_requests([lease]) == Requests()
    assert store.record([Succeeded(lease)]) == {leased: RunStatus.SUCCEEDED}
    assert claim_one(store).run_id == pending
    store.close()


@on_databases
def test_a_library_of_the_version_before_works_with_the_tables_of_this_one(
    place: Place, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durablestack.stores.migrate.SCHEMA_VERSION", 2)
    older = place.open()
    assert older.migrate() == []
    run_id = new_run_id()
    change(older, OLD_RUN_INSERT, id=run_id, job_name=JOB, due=older.now() - LONG_AGO)
    change(older, OLD_LEASE, id=run_id, token=uuid4(), until=older.now() - LONG_AGO)
    answer = claimed(store)
    assert [expired.lease_owner for expired in answer.expired] == ["older"]
    assert [run.crash_count for run in answer.runs] == [0]
    older.close()


def at_version(place: Place, version: int, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store whose tables are those that an older version of this library made."""
    store = place.open()
    with monkeypatch.context() as older:
        older.setattr("durablestack.stores.migrate.SCHEMA_VERSION", version)
        older.setattr("durablestack.stores.migrate.verify", lambda *_: None)  # it looks for the columns of this one
        assert store.migrate() == list(range(1, version + 1))
    return store


OLD_RUN_INSERT = """
insert into {runs} (id, job_name, status, scheduled_for_utc, attempt, max_attempts, created_at_utc)
values (:id, :job_name, 'pending', :due, 0, 3, :due)
"""
OLD_LEASE = """
update {runs}
set status = 'leased', attempt = 1, lease_owner = 'older', lease_token = :token, lease_until_utc = :until
where id = :id
"""
OLD_END = "update {runs} set status = 'failed', attempt = 3, completed_at_utc = :now where id = :id"
OLD_ATTEMPT_INSERT = """
insert into {attempts} (run_id, attempt, ended_at_utc, outcome, signal)
values (:run_id, 3, :ended_at, 'failed', 'SIGSEGV')
"""


# --- prefixes


@on_databases
def test_prefixes_keep_applications_apart(place: Place, store: Store) -> None:
    neighbour = Place(place.provider, place.database_url, f"{place.table_prefix}b_").open()
    assert neighbour.migrate() == ALL_VERSIONS
    run_id = enqueue(store)
    assert all_runs(neighbour) == {}
    assert claim(neighbour) == []
    assert neighbour.cancel_run(run_id) is False
    assert [run.id for run in claim(store)] == [run_id]
    neighbour.close()


@on_databases
def test_a_prefix_of_the_greatest_length_works(place: Place) -> None:
    longest = f"{place.table_prefix}bcdefghijklmnop"[:16]
    store = Place(place.provider, place.database_url, longest).open()
    assert store.migrate() == ALL_VERSIONS
    store.verify_schema()
    enqueue(store)
    assert len(claim(store)) == 1
    store.close()


@on_databases
def test_a_prefix_in_capitals_works(place: Place) -> None:
    store = Place(place.provider, place.database_url, f"{place.table_prefix}B".upper()).open()
    assert store.migrate() == ALL_VERSIONS
    assert store.migrate() == []
    store.verify_schema()
    enqueue(store)
    assert len(claim(store)) == 1
    store.close()


@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
def test_without_a_prefix_the_tables_have_the_names_of_the_documents(place: Place) -> None:
    store = Place(place.provider, place.database_url, "").open()
    store.migrate()
    tables = {name for (name,) in query(store, "select name from sqlite_master where type = 'table'")}
    assert {name.removeprefix("durable_stack_") for name in tables} == {
        "jobs",
        "job_runs",
        "job_run_attempts",
        "schema_migrations",
        "workers",
    }
    store.close()
