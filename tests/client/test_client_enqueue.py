"""Enqueue, schedule and cancel, through the client and its asynchronous twin."""

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import anyio
import psycopg
import pytest
import queue_jobs
from queue_jobs import Bill, Email, send_email, tidy
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from durablestack import (
    DurableStack,
    DurableStackOptions,
    PayloadError,
    Run,
    RunStatus,
    StoreError,
    UnknownJob,
)
from durablestack.ids import new_run_id

ADA = Email("ada@example.com")
NOON = datetime(2030, 1, 2, 12, tzinfo=UTC)


def the_run(stack: DurableStack, run_id: UUID) -> Run:
    run = stack.queries.get_run(run_id)
    assert run is not None
    return run


def stored(stack: DurableStack) -> set[UUID]:
    return {run.id for run in stack.queries.get_recent_runs(1_000)}


class Called:
    """Both clients in one tongue: `await called.enqueue(...)`."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any, **keywords: Any) -> Any:
            result = getattr(self._client, name)(*args, **keywords)
            return await result if isinstance(result, Awaitable) else result

        return call


@pytest.fixture(params=["client", "async_client"])
def client(request: pytest.FixtureRequest, stack: DurableStack) -> Called:
    return Called(getattr(stack, request.param))


pytestmark = pytest.mark.anyio


# --- what is enqueued


@pytest.mark.parametrize(
    ("job", "args", "name", "payload"),
    [
        (send_email, ADA, "send-email", '{"to":"ada@example.com"}'),
        ("send-email", ADA, "send-email", '{"to":"ada@example.com"}'),
        ("send-email", {"to": "ada@example.com"}, "send-email", '{"to":"ada@example.com"}'),
        (Bill, 5, "Bill", "5"),
        ("Bill", 5, "Bill", "5"),
        (tidy, None, "tidy", None),
    ],
)
async def test_a_job_is_named_by_its_class_its_function_or_its_name(
    stack: DurableStack, client: Called, job: Any, args: Any, name: str, payload: str | None
) -> None:
    run = the_run(stack, await client.enqueue(job, args))
    assert (run.job_name, run.payload, run.status) == (name, payload, RunStatus.PENDING)
    assert (run.attempt, run.max_attempts) == (0, 5 if name == "send-email" else 3)
    assert abs(run.scheduled_for - run.created_at) < timedelta(seconds=1)


async def test_the_id_is_drawn_by_the_client_and_increases(stack: DurableStack, client: Called) -> None:
    ids = [await client.enqueue(tidy) for _ in range(10)]
    assert {run_id.version for run_id in ids} == {7}
    assert sorted(ids) == ids


async def test_an_id_that_was_given_is_used_and_stored_once(stack: DurableStack, client: Called) -> None:
    run_id = new_run_id()
    assert await client.enqueue(Bill, 1, run_id=run_id) == run_id
    assert await client.enqueue(Bill, 2, run_id=run_id) == run_id
    assert stored(stack) == {run_id}
    assert the_run(stack, run_id).payload == "1"


@pytest.mark.parametrize("job", ["nobody", queue_jobs.undeclared, Email])
async def test_an_unknown_job_is_refused_and_nothing_is_stored(stack: DurableStack, client: Called, job: Any) -> None:
    with pytest.raises(UnknownJob, match="registered are: Bill, send-email, tidy"):
        await client.enqueue(job)
    assert stored(stack) == set()


async def test_arguments_that_do_not_fit_are_refused_and_nothing_is_stored(stack: DurableStack, client: Called) -> None:
    for job, args in (
        (send_email, {"to": 5}),
        (send_email, None),
        (tidy, 5),
        (Bill, "1"),
        (send_email, Email("a" * 1_000)),
    ):
        with pytest.raises(PayloadError):
            await client.enqueue(job, args)
    assert stored(stack) == set()


# --- schedule


@pytest.mark.parametrize(
    "run_at", [NOON, NOON.astimezone(timezone(timedelta(hours=-9, minutes=-30))), NOON.replace(microsecond=123456)]
)
async def test_a_scheduled_run_is_due_at_that_instant(stack: DurableStack, client: Called, run_at: datetime) -> None:
    run = the_run(stack, await client.schedule(Bill, 1, run_at=run_at))
    assert run.scheduled_for == run_at
    assert run.scheduled_for.utcoffset() == timedelta(0)


async def test_a_schedule_without_a_time_zone_is_refused(stack: DurableStack, client: Called) -> None:
    with pytest.raises(PayloadError, match="run_at 2030-01-02T12:00:00 has no time zone; pass an aware datetime"):
        await client.schedule(Bill, 1, run_at=NOON.replace(tzinfo=None))
    assert stored(stack) == set()


async def test_a_schedule_in_the_past_is_due_at_once(stack: DurableStack, client: Called) -> None:
    run_id = await client.schedule(tidy, run_at=datetime(2000, 1, 1, tzinfo=UTC), run_id=new_run_id())
    assert stack.queries.count_due(["tidy"]) == 1
    assert the_run(stack, run_id).status is RunStatus.PENDING


# --- many


async def test_many_are_enqueued_in_the_order_given(stack: DurableStack, client: Called) -> None:
    ids = await client.enqueue_many(Bill, (number for number in range(50)))
    assert [the_run(stack, run_id).payload for run_id in ids] == [str(number) for number in range(50)]
    assert sorted(ids) == ids


async def test_of_many_none_is_stored_when_one_is_bad(stack: DurableStack, client: Called) -> None:
    with pytest.raises(PayloadError):
        await client.enqueue_many(Bill, [1, 2, "three"])
    assert stored(stack) == set()


async def test_none_at_all_are_enqueued_as_well(stack: DurableStack, client: Called) -> None:
    assert await client.enqueue_many(Bill, []) == []
    assert stored(stack) == set()


# --- cancel


async def test_a_pending_run_is_cancelled_once(stack: DurableStack, client: Called) -> None:
    run_id = await client.enqueue(tidy)
    assert await client.cancel_run(run_id)
    assert not await client.cancel_run(run_id)
    assert not await client.cancel_run(uuid4())
    run = the_run(stack, run_id)
    assert (run.status, run.error_message) == (RunStatus.CANCELLED, "Run was cancelled.")


# --- as part of the caller's own transaction


@pytest.fixture
def sqlite(sqlite_stack: DurableStack, database: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("create table orders (number integer)")
        yield connection


@pytest.fixture(params=["client", "async_client"])
def sqlite_client(request: pytest.FixtureRequest, sqlite_stack: DurableStack) -> Called:
    return Called(getattr(sqlite_stack, request.param))


async def test_runs_exist_once_the_caller_commits(
    sqlite_stack: DurableStack, sqlite_client: Called, sqlite: sqlite3.Connection
) -> None:
    sqlite.execute("insert into orders values (1)")
    ids = {await sqlite_client.enqueue(Bill, 1, connection=sqlite)}
    ids |= set(await sqlite_client.enqueue_many(Bill, [2, 3], connection=sqlite))
    ids.add(await sqlite_client.schedule(Bill, 4, run_at=NOON, connection=sqlite))
    assert stored(sqlite_stack) == set()
    sqlite.commit()
    assert stored(sqlite_stack) == ids
    assert len(ids) == 4


async def test_runs_never_were_when_the_caller_rolls_back(
    sqlite_stack: DurableStack, sqlite_client: Called, sqlite: sqlite3.Connection
) -> None:
    sqlite.execute("insert into orders values (1)")
    await sqlite_client.enqueue(Bill, 1, connection=sqlite)
    sqlite.rollback()
    assert stored(sqlite_stack) == set()
    assert sqlite.execute("select count(*) from orders").fetchone() == (0,)


@pytest.mark.parametrize("as_what", ["session", "connection"])
@pytest.mark.parametrize("commits", [True, False])
async def test_a_sqlalchemy_transaction_takes_runs_in(
    sqlite_stack: DurableStack, database: Path, as_what: str, commits: bool
) -> None:
    engine = create_engine(f"sqlite:///{database}")
    with Session(engine) as session:
        connection = session if as_what == "session" else session.connection()
        run_id = sqlite_stack.client.enqueue(Bill, 1, connection=connection)
        assert stored(sqlite_stack) == set()
        session.commit() if commits else session.rollback()
    engine.dispose()
    assert stored(sqlite_stack) == ({run_id} if commits else set())


@pytest.mark.parametrize("stranger", [object(), "sqlite", Path()])
async def test_what_is_no_connection_of_this_store_is_refused(sqlite_stack: DurableStack, stranger: object) -> None:
    for client in (Called(sqlite_stack.client), Called(sqlite_stack.async_client)):
        with pytest.raises(StoreError, match="this store takes connections of sqlite3"):
            await client.enqueue(Bill, 1, connection=stranger)


async def test_the_store_in_memory_takes_part_in_no_transaction(memory_stack: DurableStack) -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        for client in (Called(memory_stack.client), Called(memory_stack.async_client)):
            with pytest.raises(StoreError, match="no transactions to take part in"):
                await client.enqueue(Bill, 1, connection=connection)


# --- the same on PostgreSQL, whose drivers are asynchronous too


@pytest.fixture
def postgres_stack(postgres_dsn: str, table_prefix: str) -> Iterator[DurableStack]:
    options = DurableStackOptions(database_url=postgres_dsn, database_table_prefix=table_prefix)
    with DurableStack("queue_jobs", options=options) as stack:
        stack.migrate()
        yield stack


@pytest.fixture
async def async_connection(postgres_dsn: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    async with await psycopg.AsyncConnection.connect(postgres_dsn) as connection:
        yield connection


@pytest.mark.parametrize("commits", [True, False])
async def test_an_asynchronous_connection_takes_runs_in(
    postgres_stack: DurableStack, async_connection: psycopg.AsyncConnection[Any], commits: bool
) -> None:
    client = postgres_stack.async_client
    ids = {await client.enqueue(Bill, 1, connection=async_connection)}
    ids |= set(await client.enqueue_many(Bill, [2, 3], connection=async_connection))
    assert stored(postgres_stack) == set()
    await (async_connection.commit() if commits else async_connection.rollback())
    assert stored(postgres_stack) == (ids if commits else set())


async def test_an_asynchronous_connection_is_refused_by_the_synchronous_client(
    postgres_stack: DurableStack, async_connection: psycopg.AsyncConnection[Any]
) -> None:
    with pytest.raises(StoreError, match="which is asynchronous; hand it to the asynchronous client"):
        postgres_stack.client.enqueue(Bill, 1, connection=async_connection)


def test_a_connection_of_another_database_is_refused(postgres_stack: DurableStack) -> None:
    with (
        closing(sqlite3.connect(":memory:")) as connection,
        pytest.raises(StoreError, match="this store takes connections of psycopg"),
    ):
        postgres_stack.client.enqueue(Bill, 1, connection=connection)


# --- who is woken


async def test_an_enqueue_wakes_the_supervisor_in_this_process(stack: DurableStack, client: Called) -> None:
    wakes: list[str] = []
    stack.add_waker(lambda: wakes.append("woken"))
    await client.enqueue(tidy)
    await client.enqueue_many(Bill, [1, 2])
    await client.schedule(tidy, run_at=NOON)
    assert wakes == ["woken"] * 3


async def test_an_enqueue_that_failed_wakes_nobody(stack: DurableStack, client: Called) -> None:
    wakes: list[str] = []
    stack.add_waker(lambda: wakes.append("woken"))
    with pytest.raises(PayloadError):
        await client.enqueue(Bill, "1")
    assert wakes == []


async def test_an_enqueue_in_the_callers_transaction_wakes_nobody_for_it_may_never_be_committed(
    sqlite_stack: DurableStack, sqlite_client: Called, sqlite: sqlite3.Connection
) -> None:
    wakes: list[str] = []
    sqlite_stack.add_waker(lambda: wakes.append("woken"))
    await sqlite_client.enqueue(tidy, connection=sqlite)
    await sqlite_client.enqueue_many(Bill, [1], connection=sqlite)
    sqlite.commit()
    assert wakes == []


async def test_a_waker_that_was_removed_is_left_alone(stack: DurableStack) -> None:
    wakes: list[str] = []

    def wake() -> None:
        wakes.append("woken")

    stack.add_waker(wake)
    stack.remove_waker(wake)
    stack.client.enqueue(tidy)
    assert wakes == []


async def test_the_asynchronous_client_does_not_block_the_event_loop(
    sqlite_stack: DurableStack, sqlite: sqlite3.Connection
) -> None:
    """Another writer holds the file; the loop goes on, and the enqueue when the writer is done."""
    sqlite.execute("begin immediate")
    steps: list[str] = []

    async def enqueue() -> None:
        await sqlite_stack.async_client.enqueue(tidy)
        steps.append("enqueued")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(enqueue)
        for _ in range(5):
            await anyio.sleep(0.001)
        steps.append("the loop went on")
        sqlite.rollback()
    assert steps == ["the loop went on", "enqueued"]
