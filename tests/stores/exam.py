"""The words in which the exam of the stores is written: places, enqueue, claim, and age that need not be waited for.

place (memory | sqlite | postgres | mysql | sqlserver) --open_store--> store --claim--> leases --> outcomes
                                                     │
                                                     └─ broken_invariants: what RELIABILITY S1 forbids
"""

import sqlite3
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import UUID, uuid4

import psycopg
import pymysql
import pytest
from msgspec.structs import replace

from durablestack.ids import new_run_id
from durablestack.options import DurableStackOptions
from durablestack.runs import (
    Attempt,
    Failed,
    Failure,
    Lease,
    NewRun,
    Outcome,
    Output,
    Run,
    RunStatus,
)
from durablestack.stores.contract import Claim, Claimed, Exchanged, Store
from durablestack.stores.memory import InMemoryStore
from durablestack.stores.providers import open_store
from durablestack.stores.sql import SqlStore
from durablestack.stores.steps import Result, Steps, Wait

JOB = "send_email"
WORKER = "worker-1"
LEASE_DURATION = timedelta(seconds=30)
LONG_AGO = timedelta(days=1)
DEFAULT_PORTS = {"postgres": 5432, "mysql": 3306}
PROXIED_TIMEOUT_SECONDS = 1.0
"""For one operation by way of the proxy."""

BOOM = Failure(error_type="ValueError", error_message="boom", error_detail="Traceback", signal="SIGSEGV")

on_databases = pytest.mark.parametrize("place", ["sqlite", "postgres", "mysql", "sqlserver"], indirect=True)
on_servers = pytest.mark.parametrize("place", ["postgres", "mysql", "sqlserver"], indirect=True)
# what looks at a server through its own driver, or through the proxy
on_examined_servers = pytest.mark.parametrize("place", ["postgres", "mysql"], indirect=True)
on_mysql = pytest.mark.parametrize("place", ["mysql"], indirect=True)
on_postgres = pytest.mark.parametrize("place", ["postgres"], indirect=True)
on_sqlite = pytest.mark.parametrize("place", ["sqlite"], indirect=True)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the runs of one test are kept. Any number of stores can be opened on it, but for one in memory."""

    provider: str
    database_url: str | None
    table_prefix: str

    def open(self, *, timeout_seconds: float = 10.0, connections_max: int = 4) -> Store:
        options = DurableStackOptions(database_url=self.database_url, database_table_prefix=self.table_prefix or None)
        return open_store(options, connections_max=connections_max, timeout_seconds=timeout_seconds)

    def through(self, port: int) -> "Place":
        """The same place by way of a proxy."""
        url = urlsplit(self.database_url or "")
        user = url.netloc.rpartition("@")[0]
        return Place(self.provider, url._replace(netloc=f"{user}@127.0.0.1:{port}").geturl(), self.table_prefix)

    @property
    def sqlite_path(self) -> str:
        assert self.database_url is not None
        return self.database_url.removeprefix("sqlite:///")

    @property
    def runs(self) -> str:
        """The name of the table, which need not be quoted."""
        return f"{self.table_prefix}durable_stack_job_runs"

    def connect(self, autocommit: bool = False) -> Any:
        """A connection of the driver, as a caller or an operator has it."""
        match self.provider:
            case "sqlite":
                return sqlite3.connect(self.sqlite_path)
            case "postgres":
                return psycopg.connect(self.database_url or "", autocommit=autocommit)
            case "mysql":
                url = urlsplit(self.database_url or "")
                return pymysql.connect(
                    host=url.hostname,
                    port=url.port or 3306,
                    user=unquote(url.username or ""),
                    password=unquote(url.password or ""),
                    database=url.path.removeprefix("/"),
                    autocommit=autocommit,
                )
        raise AssertionError(f"nobody here knows how to connect to {self.provider}")

    def drop_tables(self) -> None:
        if self.database_url is None or self.provider == "sqlite":
            return
        store = self.open()
        assert isinstance(store, SqlStore)
        with store._connections.transaction() as tx:
            prefix = self.table_prefix.lower().replace("_", "\\_" if self.provider == "mysql" else "_")
            column = "concat(table_schema, '.', table_name)" if self.provider == "mysql" else "table_name"
            rows = tx.fetch(
                f"select {column} from information_schema.tables where lower(table_name) like '{prefix}%%'", {}
            )
            for (name,) in rows:
                tx.run(f"drop table {'.'.join(map(store.dialect.quoted, name.split('.')))}", {})
        store.close()


# --- enqueue, claim


def new_run(**fields: Any) -> NewRun:
    return NewRun(**{"id": new_run_id(), "job_name": JOB, **fields})


def enqueue(store: Store, **fields: Any) -> UUID:
    run = new_run(**fields)
    store.enqueue([run])
    return run.id


def enqueue_many(store: Store, count: int, **fields: Any) -> list[UUID]:
    runs = [new_run(**fields) for _ in range(count)]
    store.enqueue(runs)
    return [run.id for run in runs]


def request(
    *,
    batch_size: int = 50,
    job_names: Collection[str] = (JOB,),
    worker_name: str = WORKER,
    token: UUID | None = None,
    lease_duration: timedelta = LEASE_DURATION,
    begin_max: int | None = None,
    may_wait: Collection[str] = (),
    end_expired: bool = True,
    looks_for_expired: bool = False,
) -> Claim:
    return Claim(
        worker_name=worker_name,
        lease_token=token or uuid4(),
        job_names=job_names,
        batch_size=batch_size,
        lease_duration=lease_duration,
        begin_max=begin_max,
        may_wait=may_wait,
        end_expired=end_expired,
        looks_for_expired=looks_for_expired,
    )


def exchange_in_steps(store: Store, outcomes: Sequence[Outcome], claim: Claim) -> Exchanged:
    """As `Store.exchange`, by the way of those who have other things to do."""
    return in_steps(store.exchange_in_steps(outcomes, claim))


def in_steps(steps: Steps[Result]) -> Result:
    """What comes of them for whoever has nothing else to do."""
    answer: Any = None
    while True:
        try:
            step = steps.send(answer)
        except StopIteration as end:
            result: Result = end.value
            return result
        answer = step.here() if isinstance(step, Wait) else step()


def claimed(store: Store, **options: Any) -> Claimed:
    return store.claim_due_runs(request(**options))


def claim(store: Store, **options: Any) -> list[Run]:
    return claimed(store, **options).runs


def claim_one(store: Store, **options: Any) -> Lease:
    """The lease on the one run that is due."""
    (run,) = claim(store, **options)
    return run.lease


def enqueue_and_claim(store: Store, **fields: Any) -> Lease:
    run_id = enqueue(store, **fields)
    lease = claim_one(store)
    assert lease.run_id == run_id
    return lease


def failed(lease: Lease, retry_after_seconds: float | None = None, output: Output = Output()) -> Failed:  # noqa: B008
    retry_after = None if retry_after_seconds is None else timedelta(seconds=retry_after_seconds)
    return Failed(lease, BOOM, retry_after, output)


def reclaimed_after_expiry(store: Store, stale: Lease, **options: Any) -> Lease:
    """Somebody else's lease on the same run, the holder of `stale` having been silent for too long."""
    age_lease(store, stale.run_id)
    lease = claim_one(store, **options)
    assert lease.run_id == stale.run_id
    return lease


# --- look


def the_run(store: Store, run_id: UUID) -> Run:
    run = store.get_run(run_id)
    assert run is not None
    return run


def status(store: Store, run_id: UUID) -> RunStatus:
    return the_run(store, run_id).status


def outcomes(store: Store, run_id: UUID) -> list[tuple[int, str]]:
    return [(attempt.attempt, attempt.outcome.value) for attempt in store.get_attempts(run_id)]


def all_runs(store: Store) -> dict[UUID, Run]:
    return {run.id: run for run in store.list_runs(take=1_000_000)}


# --- age


def age_lease(store: Store, *run_ids: UUID) -> None:
    """Let the lease have run out a day ago."""
    _age(store, "lease_until", run_ids)


def age_completion(store: Store, *run_ids: UUID) -> None:
    """Let the run have ended a day earlier."""
    _age(store, "completed_at", run_ids)


def make_due(store: Store, *run_ids: UUID) -> None:
    """Let the run have been due for a day."""
    _age(store, "scheduled_for", run_ids)


def postpone(store: Store, *run_ids: UUID) -> None:
    """Let the run be due in a day."""
    for run_id in run_ids:
        _set_instant(store, run_id, "scheduled_for", store.now() + LONG_AGO)


def _age(store: Store, instant: str, run_ids: Sequence[UUID]) -> None:
    for run_id in run_ids:
        run = the_run(store, run_id)
        value = getattr(run, instant)
        assert value is not None, f"run {run_id} is {run.status} and has no {instant}"
        _set_instant(store, run_id, instant, min(value, store.now()) - LONG_AGO)


def _set_instant(store: Store, run_id: UUID, instant: str, value: datetime) -> None:
    match store:
        case InMemoryStore():
            with store._locked() as (tables, _):
                tables.put(replace(tables.runs[run_id], **{instant: value}))
        case SqlStore():
            change(store, f"update {{runs}} set {instant}_utc = :value where id = :id", value=value, id=run_id)
            age_marks(store)


def age_marks(store: Store) -> None:
    """Let all marks be over, which a busy machine leaves where walks take long: claims look from the beginning."""
    if isinstance(store, SqlStore):
        store._low_water.cache_clear()


def change(store: Store, template: str, **parameters: Any) -> None:
    """Write past the store, as an operator with a SQL console would."""
    assert isinstance(store, SqlStore)
    statement = store.dialect.render("", template, store.prefix)
    with store._connections.transaction() as tx:
        tx.run(statement, store.dialect.bind(parameters))


def query(store: Store, template: str, **parameters: Any) -> list[tuple[Any, ...]]:
    """Read past the store."""
    assert isinstance(store, SqlStore)
    statement = store.dialect.render("", template, store.prefix)
    with store._connections.read() as tx:
        return tx.fetch(statement, store.dialect.bind(parameters))


# --- invariants


def broken_invariants(store: Store) -> list[str]:
    """What S1 of RELIABILITY 2.7 does not allow, and histories of nobody."""
    runs = all_runs(store)
    broken = [f"{run}" for run in runs.values() if not _type_ok(run)]
    broken += [f"attempt without its run: {attempt}" for attempt in _all_attempts(store) if attempt.run_id not in runs]
    return broken + _reused_tokens(store)


def _type_ok(run: Run) -> bool:
    leased = run.status is RunStatus.LEASED
    lease_fields = (run.lease_owner, run.lease_token, run.lease_until)
    return (
        all((field is not None) == leased for field in lease_fields)
        and run.status.terminal == (run.completed_at is not None)
        and run.max_attempts >= 1
        and (1 if leased else 0) <= run.attempt <= run.max_attempts
    )


def _all_attempts(store: Store) -> list[Attempt]:
    match store:
        case InMemoryStore():
            return [attempt for history in store._tables.attempts.values() for attempt in history]
        case SqlStore():
            ids = {store.dialect.to_uuid(row[0]) for row in query(store, "select distinct run_id from {attempts}")}
            return [attempt for run_id in ids if run_id for attempt in store.get_attempts(run_id)]
    raise AssertionError(f"{type(store)} is no store that we know")


def _reused_tokens(store: Store) -> list[str]:
    """A lease whose token had an outcome recorded before would be no fence."""
    match store:
        case InMemoryStore():
            tables = store._tables
            reused = [id for id, token in tables.last_tokens.items() if tables.runs[id].lease_token == token]
        case _:
            reused = [row[0] for row in query(store, "select id from {runs} where lease_token = last_token")]
    return [f"run {run_id} is leased under a token that was used up" for run_id in reused]


# --- processes


def words_of_processes(command: Sequence[str], count: int) -> list[str]:
    """What `count` processes have to say that begin at the same moment: each is ready, hears "go", and ends well."""
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        words = [word for process in processes for word in process.communicate(timeout=90)[0].split()]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [process.returncode for process in processes] == [0] * count
    return words
