"""The grants that the docs name: enough for a supervisor and for an application, and none of them too many.

They are read from docs/stores.md, as by an operator, and given to users of a fresh database.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import psycopg
import pymysql
import pytest

from durablestack.errors import SchemaError, StoreError
from durablestack.ids import new_run_id
from durablestack.options import DurableStackOptions
from durablestack.runs import Failed, Failure, Lease, NewRun, Output, Run, RunStatus, Succeeded
from durablestack.schedules import Schedule, Slot
from durablestack.stores.contract import Claim, Store
from durablestack.stores.providers import open_store
from durablestack.workers import Worker
from workers import Bench, eventually

CHAPTERS = (Path(__file__).parents[2] / "docs" / "stores.md").read_text(encoding="utf-8").split("\n## ")
GRANT = re.compile(r"grant ([a-z, ]+?) on ([a-z_., ]+?) to (shop_worker|shop_app)", re.IGNORECASE)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def grants(chapter: str, user: str) -> list[tuple[str, str]]:
    """Each right on each table that the chapter of a database gives to a user."""
    (text,) = [each for each in CHAPTERS if each.startswith(chapter)]
    found = [(rights, tables) for rights, tables, grantee in GRANT.findall(text) if grantee == user]
    return [
        (right.strip(), table.strip().removeprefix("shop."))
        for rights, tables in found
        for right in rights.split(",")
        for table in tables.split(",")
        if not table.strip().startswith("schema ")
    ]


class PostgresOperator:
    """The owner of a fresh database, on a server that has others."""

    chapter = "PostgreSQL"

    def __init__(self, dsn: str, name: str) -> None:
        self._dsn = urlsplit(dsn)
        self._name = name
        self._users: list[str] = []
        self._run_in(dsn, f"create database {name}")
        self.owner_url = self._dsn._replace(path=f"/{name}").geturl()
        self.run("revoke create on schema public from public")

    def url(self, user: str) -> str:
        netloc = f"{self._named(user)}@{self._dsn.hostname}:{self._dsn.port}"
        return self._dsn._replace(path=f"/{self._name}", netloc=netloc).geturl()

    def create(self, user: str) -> None:
        self._users.append(self._named(user))
        self.run(f"create role {self._named(user)} login")
        self.run(f"grant usage on schema public to {self._named(user)}")

    def grant(self, right: str, of: str, user: str) -> None:
        self.run(f"grant {right} on {of} to {self._named(user)}")

    def revoke(self, right: str, of: str, user: str) -> None:
        self.run(f"revoke {right} on {of} from {self._named(user)}")

    def run(self, statement: str) -> None:
        self._run_in(self.owner_url, statement)

    def drop(self) -> None:
        self._run_in(self._dsn.geturl(), f"drop database {self._name} with (force)")
        for user in self._users:
            self._run_in(self._dsn.geturl(), f"drop role {user}")

    def _run_in(self, url: str, statement: str) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(statement)

    def _named(self, user: str) -> str:
        return f"{user}_{self._name}"


class MariaDbOperator:
    chapter = "MySQL and MariaDB"

    def __init__(self, dsn: str, name: str) -> None:
        self._dsn = urlsplit(dsn)
        self._name = name
        self._users: list[str] = []
        self.run(f"create database {name}")
        self.owner_url = self._dsn._replace(path=f"/{name}").geturl()

    def url(self, user: str) -> str:
        address = f"{self._dsn.hostname}:{self._dsn.port}"
        return self._dsn._replace(path=f"/{self._name}", netloc=f"{self._named(user)}@{address}").geturl()

    def create(self, user: str) -> None:
        self._users.append(self._named(user))
        self.run(f"create user {self._named(user)}@'%'")

    def grant(self, right: str, of: str, user: str) -> None:
        self.run(f"grant {right} on {self._name}.{of} to {self._named(user)}@'%'")

    def revoke(self, right: str, of: str, user: str) -> None:
        self.run(f"revoke {right} on {self._name}.{of} from {self._named(user)}@'%'")

    def run(self, statement: str) -> None:
        url = self._dsn
        address = {"host": url.hostname, "port": url.port, "user": url.username, "password": url.password or ""}
        with pymysql.connect(**address, autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute(statement)

    def drop(self) -> None:
        self.run(f"drop database {self._name}")
        for user in self._users:
            self.run(f"drop user {user}@'%'")

    def _named(self, user: str) -> str:
        return f"{user}_{self._name}"


Operator = PostgresOperator | MariaDbOperator


@pytest.fixture
def postgres(postgres_dsn: str, table_prefix: str) -> Iterator[PostgresOperator]:
    made = PostgresOperator(postgres_dsn, table_prefix.strip("_"))
    yield made
    made.drop()


@pytest.fixture(params=["postgres", "mysql"])
def operator(request: pytest.FixtureRequest, table_prefix: str) -> Iterator[Operator]:
    """A migrated database, and its owner."""
    if request.param == "postgres":
        made: Operator = request.getfixturevalue("postgres")
    else:
        made = MariaDbOperator(request.getfixturevalue("mysql_dsn"), table_prefix.strip("_"))
    with closing(opened(made.owner_url)) as owner:
        owner.migrate()
    yield made
    if isinstance(made, MariaDbOperator):
        made.drop()


def opened(url: str) -> Store:
    return open_store(DurableStackOptions(database_url=url), connections_max=1, timeout_seconds=5)


def work_as_a_supervisor(store: Store) -> None:
    """Every kind of statement that a supervisor has."""
    store.migrate()
    store.verify_schema()
    worker = Worker(
        id=uuid4(), name="w", boot_id="b", pid_namespace="n", user_id=0, pid=1, process_started=1, marker="m"
    )
    store.register_worker(worker)
    store.find_workers("b")
    store.enqueue([_new_run(), _new_run()])
    succeeds, fails = _claim(store, worker.id), _claim(store, worker.id)
    store.extend_leases([succeeds], timedelta(seconds=30))
    store.find_requests([succeeds])
    store.request_stack(succeeds.run_id)
    store.write_stack(succeeds, "stack")
    failure = Failure(error_type="T", error_message="m")
    recorded = store.record([Succeeded(succeeds, Output("o", "e")), Failed(fails, failure, None)])
    assert set(recorded.values()) == {RunStatus.SUCCEEDED, RunStatus.FAILED}
    store.expire_leases(worker.id)
    name = f"j-{uuid4()}"
    for _ in range(2):  # it is made, and changed
        store.change_schedule(name, lambda _, now: _schedule(name, now))
    store.keep_schedules_seen([name], timedelta(0))
    assert store.materialize_recurring_run(name, lambda schedule, now: Slot(now, now + timedelta(days=1)))
    store.measure_backlog(["j"], 10)
    assert store.prune_runs(timedelta(0), 100) >= 2
    store.forget_worker(worker.id)
    store.prune_workers(timedelta(0))


def work_as_an_application(store: Store) -> None:
    store.verify_schema()
    run = _new_run()
    store.enqueue([run])
    store.cancel_run(run.id)
    assert store.requeue_run(run.id) is not None
    assert isinstance(store.get_run(run.id), Run)
    store.get_attempts(run.id)
    store.list_runs(take=10)
    (schedule, *_) = store.list_schedules()
    store.change_schedule(schedule.job_name, lambda stored, now: stored and _schedule(stored.job_name, now))
    assert store.run_schedule_now(schedule.job_name) is not None


def _new_run() -> NewRun:
    return NewRun(id=new_run_id(), job_name="j", payload="1")


def _claim(store: Store, worker_id: UUID) -> Lease:
    claim = Claim(
        worker_name="w",
        lease_token=uuid4(),
        job_names=["j"],
        batch_size=1,
        lease_duration=timedelta(seconds=30),
        worker_id=worker_id,
    )
    (run,) = store.claim_due_runs(claim).runs
    return run.lease


def _schedule(job_name: str, now: datetime) -> Schedule:
    made = {"seen_at": now, "created_at": now, "updated_at": now, "next_run_at": NOW}
    return Schedule(job_name=job_name, every=timedelta(days=1), allow_concurrent_runs=True, **made)


WORKS = {"shop_worker": work_as_a_supervisor, "shop_app": work_as_an_application}


def test_the_grants_of_the_docs_are_enough_and_each_is_needed(operator: Operator) -> None:
    for user, work in WORKS.items():
        given = grants(operator.chapter, user)
        assert len(given) > 5
        operator.create(user)
        for right, table in given:
            operator.grant(right, table, user)
        with closing(opened(operator.url(user))) as store:
            work(store)
            for right, table in given:
                operator.revoke(right, table, user)
                with pytest.raises(StoreError):
                    work(store)
                operator.grant(right, table, user)
            work(store)


def test_a_supervisor_works_without_the_right_to_create_anything(
    operator: Operator, make_bench: Callable[..., Bench]
) -> None:
    operator.create("shop_worker")
    for right, table in grants(operator.chapter, "shop_worker"):
        operator.grant(right, table, "shop_worker")
    made = make_bench(DURABLESTACK__DATABASE_URL=operator.owner_url)
    worker = made.worker(settings={"DURABLESTACK__DATABASE_URL": operator.url("shop_worker")}, target="recurring_jobs")
    (run, *_) = eventually(lambda: made.stack.store.list_runs(take=5), what=worker.log())
    assert made.until_terminal(run.id).status is RunStatus.SUCCEEDED, worker.log()
    worker.terminate()
    assert worker.exit_code() == 0
    with closing(opened(operator.url("shop_worker"))) as as_worker, pytest.raises(StoreError):
        _create_a_table(as_worker)


def _create_a_table(store: Store) -> None:
    with store._connections.transaction() as tx:  # type: ignore[attr-defined]
        tx.run("create table durable_stack_mine (id integer)", {})


# --- PostgreSQL: who stands before us on the search_path


@pytest.fixture
def with_mallory(postgres: PostgresOperator) -> PostgresOperator:
    """A schema of the worker's own, and somebody who may log in."""
    for user in ("shop_worker", "mallory"):
        postgres.create(user)
    postgres.run("create schema jobs")
    postgres.grant("usage, create", "schema jobs", "shop_worker")
    return postgres


def on_path(url: str, path: str) -> str:
    return f"{url}&options=-csearch_path%3D{path}"


def test_a_search_path_of_the_connection_string_pins_the_schema(with_mallory: PostgresOperator) -> None:
    """What others put into `public`, tables and functions alike, is not met."""
    with_mallory.grant("create", "schema public", "mallory")
    with psycopg.connect(with_mallory.url("mallory"), autocommit=True) as mallory:
        mallory.execute("create table durable_stack_job_runs (id uuid, trap text)")
        for name in ("clock_timestamp()", "make_interval(secs double precision)", "pg_advisory_xact_lock(integer)"):
            body = "begin raise exception 'sprung'; end"
            mallory.execute(f"create function public.{name} returns void language plpgsql as $$ {body} $$")
        mallory.execute(
            "create function public.same(varchar, varchar) returns boolean language plpgsql as"
            " $$ begin raise exception 'sprung'; end $$"
        )
        mallory.execute("create operator public.= (leftarg = varchar, rightarg = varchar, function = public.same)")
    with closing(opened(on_path(with_mallory.url("shop_worker"), "jobs"))) as store:
        work_as_a_supervisor(store)
    with psycopg.connect(with_mallory.owner_url) as owner:
        assert owner.execute("select count(*) from jobs.durable_stack_schema_migrations").fetchone() != (0,)
        assert owner.execute("select count(*) from public.durable_stack_job_runs").fetchone() == (0,)


def test_who_may_create_in_a_schema_of_our_path_may_make_us_run_his_code(with_mallory: PostgresOperator) -> None:
    """The limit that the docs name: an operator for our types, which fits better than the system's own."""
    with_mallory.grant("usage, create", "schema jobs", "mallory")
    with closing(opened(on_path(with_mallory.url("shop_worker"), "jobs"))) as store:
        work_as_a_supervisor(store)
        with psycopg.connect(with_mallory.url("mallory"), autocommit=True) as mallory:
            mallory.execute("set search_path to jobs")
            mallory.execute(
                "create function same(varchar, varchar) returns boolean language plpgsql as"
                " $$ begin raise exception 'sprung'; end $$"
            )
            mallory.execute("create operator = (leftarg = varchar, rightarg = varchar, function = same)")
        with pytest.raises(StoreError, match="sprung"):
            work_as_a_supervisor(store)


def test_nobody_else_may_create_where_our_tables_are_by_default(with_mallory: PostgresOperator) -> None:
    with closing(opened(with_mallory.owner_url)) as owner:
        owner.migrate()
    with psycopg.connect(with_mallory.url("mallory"), autocommit=True) as mallory:
        for statement in ("create table t (id int)", "create function f() returns int language sql as 'select 1'"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                mallory.execute(statement)


def test_a_worker_without_rights_is_told_so_and_not_that_tables_are_missing(with_mallory: PostgresOperator) -> None:
    with closing(opened(with_mallory.owner_url)) as owner:
        owner.migrate()
    with (
        closing(opened(with_mallory.url("shop_worker"))) as store,
        pytest.raises(StoreError, match="permission") as caught,
    ):
        store.verify_schema()
    assert not isinstance(caught.value, SchemaError)
