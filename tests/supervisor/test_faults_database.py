"""Databases that are silent, slow, full, locked, read-only, or that lose what they had. See docs/faults.md, part D."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pymysql
import pytest

from durablestack import Run, RunStatus
from durablestack.errors import StoreUnavailable
from durablestack.runs import Outcome, Succeeded
from durablestack.stores.contract import Claim, Store
from durablestack.stores.sql import SqlStore
from mariadb import USER, MariaDbServer
from pooler import TransactionPooler
from proxies import proxy_to, through
from proxy import TcpProxy
from servers import PostgresServer
from workers import PATIENCE_SECONDS, TESTS, Bench, bench, eventually

LONG_LEASE = ("--lease-duration-seconds", "60")
SHORT_LEASE = ("--lease-duration-seconds", "2")


def until_elapsed(seconds: float, since: float) -> None:
    eventually(lambda: time.monotonic() - since > seconds, what=f"{seconds:g} s")


# --- silent, slow


def test_a_server_that_is_silent_for_three_leases_costs_each_run_one_attempt(
    mysql_bench: Bench, mysql_settings: dict[str, str]
) -> None:
    with proxy_to(mysql_settings) as proxy:
        worker = mysql_bench.worker(*SHORT_LEASE, settings=through(proxy, mysql_settings))
        run_id = mysql_bench.client.enqueue("slow-at-first")
        mysql_bench.until_noted(run_id, "start")
        proxy.freeze()
        frozen_at = time.monotonic()
        worker.until_logged("lease lost, not renewed in time")
        later = mysql_bench.client.enqueue("innocent")
        until_elapsed(6.0, since=frozen_at)
        proxy.thaw()
        assert mysql_bench.until(later, RunStatus.SUCCEEDED, within_seconds=10).attempt == 1
        assert mysql_bench.until(run_id, RunStatus.SUCCEEDED, within_seconds=10).attempt == 2
        worker.terminate()
        assert worker.exit_code() == 0  # no thread is stuck


@pytest.mark.parametrize(
    ("lease_seconds", "delay_seconds"), [(6.0, 0.05), pytest.param(30.0, 0.25, marks=pytest.mark.soak)]
)
def test_a_slow_and_narrow_way_to_the_server_costs_no_lease(
    postgres_bench: Bench, postgres_settings: dict[str, str], lease_seconds: float, delay_seconds: float
) -> None:
    with proxy_to(postgres_settings) as proxy:
        settings = {**through(proxy, postgres_settings), "DURABLESTACK__LEASE_DURATION_SECONDS": str(lease_seconds)}
        worker = postgres_bench.worker(settings=settings)
        run_id = postgres_bench.client.enqueue("sleeps", {"seconds": 0.75 * lease_seconds})
        postgres_bench.until_noted(run_id, "start")
        proxy.slow_down(seconds=delay_seconds, bytes_per_second=10_000)
        first = postgres_bench.run(run_id)
        eventually(lambda: postgres_bench.run(run_id).lease_until != first.lease_until, what="a renewal")
        innocent = postgres_bench.client.enqueue_many("innocent", [None] * 4)
        for each in (run_id, *innocent):
            assert postgres_bench.until(each, RunStatus.SUCCEEDED).attempt == 1
        assert "lease lost" not in worker.log()
        worker.close()


# --- another server


@pytest.fixture
def primary_and_standby(own_postgres: Callable[[], PostgresServer]) -> tuple[PostgresServer, PostgresServer]:
    primary, standby = own_postgres(), own_postgres()
    if (copy := shutil.which("pg_basebackup", path=str(primary._bin))) is None:
        pytest.skip("a standby needs pg_basebackup, and there is none beside the server's binaries")
    standby.stop()
    shutil.rmtree(standby.folder / "data")
    account = standby._account
    subprocess.run(
        [copy, "-h", "127.0.0.1", "-p", str(primary.port), "-U", "postgres", "-R", "-c", "fast", "-D", "data"],
        cwd=standby.folder,
        check=True,
        capture_output=True,
        user=account.uid if account else None,
        group=account.gid if account else None,
    )
    standby.start()
    return primary, standby


def execute(server: PostgresServer, *statements: str) -> object:
    """Of the last one, the first value."""
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        for statement in statements:
            found = admin.execute(statement.encode())
        row = found.fetchone() if found.description else None
    return row[0] if row else None


def until_replayed(primary: PostgresServer, standby: PostgresServer) -> None:
    now = execute(primary, "select pg_current_wal_lsn()")
    eventually(lambda: execute(standby, f"select pg_last_wal_replay_lsn() >= '{now}'"), what="the standby")


def promote(standby: PostgresServer) -> None:
    assert execute(standby, "select pg_promote()") is True


def settings_of(server: PostgresServer, settings: dict[str, str]) -> dict[str, str]:
    return {**settings, "DURABLESTACK__DATABASE_URL": server.dsn}


def test_when_another_server_takes_over_nobody_stays_with_the_one_that_is_read_only_now(
    tmp_path: Path, primary_and_standby: tuple[PostgresServer, PostgresServer], postgres_settings: dict[str, str]
) -> None:
    primary, standby = primary_and_standby
    before = settings_of(primary, postgres_settings)
    with TcpProxy("127.0.0.1", primary.port) as proxy, bench(tmp_path, before) as made:
        worker = made.worker(*LONG_LEASE, settings=through(proxy, before))
        run_id = made.client.enqueue("sleeps", {"seconds": 1.0})
        made.until_noted(run_id, "start")
        execute(primary, "alter system set default_transaction_read_only = on", "select pg_reload_conf()")
        worker.until_logged("read-only transaction")
        until_replayed(primary, standby)
        promote(standby)
        proxy.target = ("127.0.0.1", standby.port)  # as a name or an address that moves; connections stay
        with bench(tmp_path, settings_of(standby, postgres_settings)) as after:
            assert after.until(run_id, RunStatus.SUCCEEDED).attempt == 1
            assert after.until(after.client.enqueue("innocent"), RunStatus.SUCCEEDED).attempt == 1
        assert made.executions()[run_id] == 1


def test_a_server_that_lost_its_last_commits_has_each_run_executed_and_recorded_once_more(
    tmp_path: Path, primary_and_standby: tuple[PostgresServer, PostgresServer], postgres_settings: dict[str, str]
) -> None:
    """What it does not know of has not happened for it: claims and outcomes alike."""
    primary, standby = primary_and_standby
    before = settings_of(primary, postgres_settings)
    with TcpProxy("127.0.0.1", primary.port) as proxy, bench(tmp_path, before) as made:
        under_way = made.client.enqueue("sleeps", {"seconds": 4.0})
        done = made.client.enqueue("innocent")
        until_replayed(primary, standby)
        execute(standby, "alter system set primary_conninfo = ''", "select pg_reload_conf()")
        eventually(lambda: execute(standby, "select count(*) = 0 from pg_stat_wal_receiver"))
        worker = made.worker(settings=through(proxy, before))
        first_child = made.until_noted(under_way, "start").pid
        made.until(done, RunStatus.SUCCEEDED)
        proxy.freeze()
        promote(standby)
        proxy.target = ("127.0.0.1", standby.port)
        proxy.reset_all()
        proxy.pass_through()
        with bench(tmp_path, settings_of(standby, postgres_settings)) as after:
            assert after.run(done).status is not RunStatus.SUCCEEDED or made.executions()[done] == 2
            for run_id in (under_way, done):
                assert after.until(run_id, RunStatus.SUCCEEDED).attempt == 1
        assert made.executions() == {under_way: 2, done: 2}
        assert made.until_noted(under_way, "end").pid != first_child
        assert worker.process.poll() is None
        worker.close()


# --- refused


@pytest.mark.parametrize(
    ("fault", "repair"),
    [("connection limit 0", "connection limit -1"), pytest.param("nologin", "login", marks=pytest.mark.soak)],
)
def test_a_server_that_lets_us_in_no_more_is_asked_again_with_few_words_and_loses_nothing(
    tmp_path: Path,
    own_postgres: Callable[[], PostgresServer],
    postgres_settings: dict[str, str],
    fault: str,
    repair: str,
) -> None:
    server = own_postgres()
    with bench(tmp_path, settings_of(server, postgres_settings)) as made:
        execute(server, "create role app login", "grant all on all tables in schema public to app")
        url = server.dsn.replace("//postgres@", "//app@")
        settings = {"DURABLESTACK__DATABASE_URL": url, "DURABLESTACK__OPERATION_TIMEOUT_SECONDS": "1"}
        worker = made.worker(*LONG_LEASE, settings=settings)
        run_id = made.client.enqueue("sleeps", {"seconds": 1.0})
        made.until_noted(run_id, "start")
        execute(
            server,
            f"alter role app {fault}",
            "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'",
        )
        later = made.client.enqueue("innocent")
        worker.until_logged("could not claim")
        worker.until_logged("could not record 1 outcomes")
        until_elapsed(1.0, since=time.monotonic())
        assert worker.log().count("could not claim") == 1
        assert len(worker.log().splitlines()) < 30, worker.log()
        execute(server, f"alter role app {repair}")
        for each in (run_id, later):
            assert made.until(each, RunStatus.SUCCEEDED).attempt == 1
        assert made.executions()[run_id] == 1


def test_a_server_whose_name_nobody_knows_is_told_without_the_password(sqlite_bench: Bench) -> None:
    url = "postgresql://me:geheim@nowhere.invalid/shop"
    worker = sqlite_bench.worker(settings={"DURABLESTACK__DATABASE_URL": url})
    assert worker.exit_code() == 3
    assert "nowhere.invalid" in worker.log()
    assert "geheim" not in worker.log()


def test_a_mysql_that_becomes_read_only_for_a_while_loses_no_outcome(
    tmp_path: Path, own_mariadb: Callable[[], MariaDbServer], mysql_settings: dict[str, str]
) -> None:
    server = own_mariadb()
    with bench(tmp_path, {**mysql_settings, "DURABLESTACK__DATABASE_URL": server.dsn}) as made:
        statements = ("create user app@'%'", "grant all on durablestack.* to app@'%'")  # who may do all ignores it
        on_mariadb(server, *statements)
        url = server.dsn.replace(f"//{USER}@", "//app@")
        worker = made.worker(*LONG_LEASE, settings={"DURABLESTACK__DATABASE_URL": url})
        run_id = made.client.enqueue("sleeps", {"seconds": 1.0})
        made.until_noted(run_id, "start")
        on_mariadb(server, "set global read_only = 1")
        worker.until_logged("could not record 1 outcomes")
        assert "read-only" in worker.log()
        on_mariadb(server, "set global read_only = 0")
        assert made.until(run_id, RunStatus.SUCCEEDED).attempt == 1
        assert made.executions()[run_id] == 1


def on_mariadb(server: MariaDbServer, *statements: str) -> None:
    with (
        pymysql.connect(host="127.0.0.1", port=server.port, user=USER, autocommit=True) as admin,
        admin.cursor() as cursor,
    ):
        for statement in statements:
            cursor.execute(statement)


# --- full


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 4 MB in `folder`."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a full disk: nothing can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Down to the last byte."""
    filler = disk / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return filler


TALKATIVE = """
import secrets
from durablestack import JobContext, durable_job

@durable_job(name="innocent")
def innocent(context: JobContext) -> None:
    print(secrets.token_hex(7_000))  # which cannot be made smaller
"""


def test_what_a_server_whose_disk_is_full_cannot_write_is_written_when_there_is_room(
    tmp_path: Path, own_postgres: Callable[[], PostgresServer], postgres_settings: dict[str, str]
) -> None:
    server = own_postgres()
    with small_disk(server.folder / "disk") as disk:
        if server._account is not None:
            os.chown(disk, server._account.uid, server._account.gid)
        execute(server, f"create tablespace small location '{disk}'")
        url = f"{server.dsn}&options=-cdefault_tablespace%3Dsmall"
        with bench(tmp_path, {**postgres_settings, "DURABLESTACK__DATABASE_URL": url}) as made:
            outcome_is_kept_while_full(made, disk)
        server.stop("immediate")


def test_what_a_file_on_a_full_disk_cannot_take_is_written_when_there_is_room(
    tmp_path: Path, sqlite_settings: dict[str, str]
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        url = f"sqlite:///{disk}/runs.db"
        with bench(tmp_path, {**sqlite_settings, "DURABLESTACK__DATABASE_URL": url}) as made:
            outcome_is_kept_while_full(made, disk)
            with closing(sqlite3.connect(disk / "runs.db")) as connection:
                assert connection.execute("pragma integrity_check").fetchone() == ("ok",)


def outcome_is_kept_while_full(made: Bench, disk: Path) -> None:
    (made.folder / "talkative.py").write_text(TALKATIVE)
    run_id = made.client.enqueue("innocent")
    worker = made.worker(*LONG_LEASE, target="talkative")
    filler = fill(disk)
    worker.until_logged("could not")
    until_elapsed(1.0, since=time.monotonic())
    assert not made.run(run_id).status.terminal
    filler.unlink()
    assert made.until(run_id, RunStatus.SUCCEEDED).attempt == 1
    assert worker.process.poll() is None
    worker.close()


# --- locked


def test_a_table_that_somebody_locks_for_two_leases_costs_each_run_one_attempt(postgres_bench: Bench) -> None:
    worker = postgres_bench.worker(*SHORT_LEASE)
    run_id = postgres_bench.client.enqueue("slow-at-first")
    postgres_bench.until_noted(run_id, "start")
    store = postgres_bench.stack.store
    with psycopg.connect(postgres_bench.settings["DURABLESTACK__DATABASE_URL"]) as connection:
        connection.execute(rendered(store, "lock table {runs} in access exclusive mode").encode())
        locked_at = time.monotonic()
        worker.until_logged("lease lost, not renewed in time")
        until_elapsed(4.0, since=locked_at)
    assert postgres_bench.until(run_id, RunStatus.SUCCEEDED).attempt == 2
    assert worker.process.poll() is None


def rendered(store: Store, template: str) -> str:
    assert isinstance(store, SqlStore)
    return store.dialect.render("", template, store.prefix)


@pytest.mark.parametrize("provider", ["postgres", "mysql"])
def test_a_deadlock_with_somebody_elses_transaction_is_got_out_of_and_no_outcome_is_another(
    request: pytest.FixtureRequest, provider: str
) -> None:
    made: Bench = request.getfixturevalue(f"{provider}_bench")
    store = made.stack.store
    first, second = sorted(made.client.enqueue_many("innocent", [None] * 2))
    outcomes: list[Outcome] = [Succeeded(run.lease) for run in claimed(made)]
    lock = rendered(store, "select id from {runs} where id = :id for update")
    assert isinstance(store, SqlStore)
    other = made.stack.open_store(connections_max=1)
    assert isinstance(other, SqlStore)
    errors: list[StoreUnavailable] = []

    def record() -> None:
        try:
            store.record(outcomes)
        except StoreUnavailable as error:
            errors.append(error)

    recording = threading.Thread(target=record)
    try:
        with other._connections.transaction() as tx:
            tx.fetch(lock, other.dialect.bind({"id": second}))
            recording.start()  # has the first, and waits for the second
            eventually(lambda: not available(made, first), what="the first to be locked")
            tx.fetch(lock, other.dialect.bind({"id": first}))
    except StoreUnavailable as error:
        errors.append(error)
    recording.join(PATIENCE_SECONDS)
    assert len(errors) == 1
    assert "deadlock" in str(errors[0]).lower()
    assert not errors[0].uncertain
    assert set(store.record(outcomes)) == {first, second}
    assert {made.run(run_id).status for run_id in (first, second)} == {RunStatus.SUCCEEDED}
    other.close()


def claimed(made: Bench) -> list[Run]:
    claim = Claim(
        worker_name="worker",
        lease_token=uuid4(),
        job_names=["innocent"],
        batch_size=10,
        lease_duration=timedelta(seconds=60),
    )
    return made.stack.store.claim_due_runs(claim).runs


def available(made: Bench, run_id: UUID) -> bool:
    """Whether nobody has locked the run."""
    with closing(made.stack.open_store(connections_max=1)) as store:
        assert isinstance(store, SqlStore)
        with store._connections.transaction() as tx:
            statement = rendered(store, "select id from {runs} where id = :id for update skip locked")
            return bool(tx.fetch(statement, store.dialect.bind({"id": run_id})))


# --- migrations


KILLED_AT = """
import os, signal, sys
from durablestack import DurableStack
from durablestack.options import DurableStackOptions
from durablestack.stores.connections.postgres_pipeline import Pipeline
from durablestack.stores.connections.transaction import CursorTransaction

left = int(sys.argv[1])

def dying(run):
    def run_or_die(self, statement, parameters):
        global left
        left -= 1
        if left == 0:
            if isinstance(self, Pipeline):
                self._flush()
            os.kill(os.getpid(), signal.SIGKILL)
        run(self, statement, parameters)
    return run_or_die

for kind in (CursorTransaction, Pipeline):
    kind.run = dying(kind.run)
DurableStack("chaos_jobs", options=DurableStackOptions.from_environment(dict(os.environ))).migrate()
"""


@pytest.mark.parametrize("provider", ["sqlite", "postgres", "mysql"])
def test_a_migration_that_is_killed_is_finished_by_the_next_one(
    request: pytest.FixtureRequest, tmp_path: Path, provider: str
) -> None:
    settings: dict[str, str] = request.getfixturevalue(f"{provider}_settings")
    environment = {**os.environ, **settings, "PYTHONPATH": str(TESTS)}
    for statements in (3, 12):
        killed = subprocess.run(
            [sys.executable, "-c", KILLED_AT, str(statements)], env=environment, capture_output=True, check=False
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    with bench(tmp_path, settings) as made:  # which migrates
        made.stack.store.verify_schema()
        made.worker()
        assert made.until(made.client.enqueue("innocent"), RunStatus.SUCCEEDED).attempt == 1


# --- SQLite


def test_a_file_that_somebody_locks_for_two_leases_costs_each_run_one_attempt(sqlite_bench: Bench) -> None:
    worker = sqlite_bench.worker(*SHORT_LEASE)
    run_id = sqlite_bench.client.enqueue("slow-at-first")
    sqlite_bench.until_noted(run_id, "start")
    with closing(sqlite3.connect(sqlite_bench.folder / "runs.db", isolation_level=None, timeout=30)) as connection:
        connection.execute("begin immediate")
        locked_at = time.monotonic()
        worker.until_logged("lease lost, not renewed in time")
        until_elapsed(4.0, since=locked_at)
        connection.execute("rollback")
    assert sqlite_bench.until(run_id, RunStatus.SUCCEEDED).attempt == 2


def test_a_log_that_grew_under_a_long_reader_does_not_grow_any_more_once_he_has_left(sqlite_bench: Bench) -> None:
    log = sqlite_bench.folder / "runs.db-wal"

    def write(times: int) -> int:
        for _ in range(times):
            sqlite_bench.client.enqueue("innocent")
        return log.stat().st_size

    with closing(sqlite3.connect(sqlite_bench.folder / "runs.db", isolation_level=None)) as reader:
        reader.execute("begin")
        reader.execute("select count(*) from durable_stack_job_runs").fetchone()
        grown = write(600)
    assert grown > 6_000_000, "it has to have grown beyond what is checkpointed"
    assert write(600) <= grown + 100_000


@pytest.mark.parametrize("replaced", [True, False], ids=["replaced", "deleted"])
def test_a_supervisor_goes_over_to_the_file_that_took_the_place_of_its_own(
    sqlite_bench: Bench, sqlite_settings: dict[str, str], replaced: bool
) -> None:
    worker = sqlite_bench.worker()
    assert sqlite_bench.until(sqlite_bench.client.enqueue("innocent"), RunStatus.SUCCEEDED).attempt == 1
    folder = sqlite_bench.folder
    sqlite_bench.stack.close()
    for name in ("runs.db", "runs.db-wal", "runs.db-shm"):
        if (folder / name).exists():
            (folder / name).rename(folder / f"old-{name}") if replaced else (folder / name).unlink()
    if not replaced:
        worker.until_logged("there is no SQLite file")
    with bench(folder, sqlite_settings) as made:
        assert made.until(made.client.enqueue("innocent"), RunStatus.SUCCEEDED).attempt == 1
    assert worker.process.poll() is None


# --- clients that are killed

ENQUEUES = """
import os, sys, time
from durablestack import DurableStack
from durablestack.ids import new_run_id
from durablestack.options import DurableStackOptions

options = DurableStackOptions.from_environment(dict(os.environ))
import chaos_jobs
for line in sys.stdin:  # each is an order for a process that enqueues until it is killed
    pid = os.fork()
    if pid == 0:
        stack = DurableStack("chaos_jobs", options=options)
        while True:
            ids = [new_run_id() for _ in range(3)]
            os.write(1, f"ask {' '.join(map(str, ids))}\\n".encode())
            stack.client.enqueue_many("innocent", [None] * 3, run_ids=ids)
            os.write(1, f"ack {' '.join(map(str, ids))}\\n".encode())
    os.write(1, f"pid {pid}\\n".encode())
    os.waitpid(pid, 0)
    os.write(1, b"end\\n")
"""


def clients_are_killed(made: Bench, times: int) -> tuple[list[list[UUID]], list[list[UUID]]]:
    """What was asked to be enqueued, and what was said to have been."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", ENQUEUES],
        env={**os.environ, **made.settings, "PYTHONPATH": str(TESTS)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    told: dict[str, list[list[UUID]]] = {"ask": [], "ack": []}
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(times):
            process.stdin.write("go\n")
            process.stdin.flush()
            pid, acknowledged = 0, 0
            kill_after = random.randint(1, 6)
            for line in process.stdout:
                word, *ids = line.split()
                if word == "end":
                    break
                if word == "pid":
                    pid = int(ids[0])
                    continue
                told[word].append([UUID(id) for id in ids])
                acknowledged += word == "ack"
                if acknowledged == kill_after and pid:
                    acknowledged = -1_000_000
                    threading.Timer(random.uniform(0, 0.004), os.kill, (pid, signal.SIGKILL)).start()
        process.stdin.close()
    return told["ask"], told["ack"]


@pytest.mark.parametrize(
    ("provider", "times"),
    [("sqlite", 25), ("postgres", 6), pytest.param("sqlite", 1_000, marks=pytest.mark.soak)],
)
def test_clients_that_are_killed_in_the_middle_leave_all_or_nothing_and_all_that_was_acknowledged(
    request: pytest.FixtureRequest, provider: str, times: int
) -> None:
    made: Bench = request.getfixturevalue(f"{provider}_bench")
    asked, acknowledged = clients_are_killed(made, times)
    assert len(acknowledged) > times
    stored = {run.id for run in made.stack.store.list_runs(take=1_000_000)}
    assert {len(stored.intersection(ids)) for ids in asked} <= {0, 3}
    assert all(stored.issuperset(ids) for ids in acknowledged)
    if provider == "sqlite":
        with closing(sqlite3.connect(made.folder / "runs.db")) as connection:
            assert connection.execute("pragma integrity_check").fetchone() == ("ok",)


# --- a pooler


def test_nothing_of_ours_stays_on_a_session_that_a_pooler_gives_to_others(
    tmp_path: Path, own_postgres: Callable[[], PostgresServer], postgres_settings: dict[str, str]
) -> None:
    server = own_postgres()
    with TransactionPooler(server.port) as pooler:
        dsn = server.dsn.replace(f":{server.port}/", f":{pooler.port}/")
        with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as somebody:
            # his setting goes astray, or this shows nothing
            somebody.execute("set extra_float_digits = 0")
            shown = {somebody.execute("show extra_float_digits").fetchone() for _ in range(40)}
            assert len(shown) == 2
            before = settings_left(somebody)
        with bench(tmp_path, {**postgres_settings, "DURABLESTACK__DATABASE_URL": dsn}) as made:
            made.worker("--max-concurrent-runs", "4")
            run_ids = made.client.enqueue_many("once", [None] * 100)
            failing = made.client.enqueue("raises", "no")
            renewed = made.client.enqueue("sleeps", {"seconds": 4.0})
            assert {made.until_terminal(run_id).attempt for run_id in run_ids} == {1}
            assert made.until(failing, RunStatus.FAILED).attempt == 2
            assert made.until(renewed, RunStatus.SUCCEEDED).attempt == 1
            assert pooler.taken > 150
        with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as somebody:
            assert settings_left(somebody) == before


def settings_left(connection: psycopg.Connection[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """What sessions have that is not the server's default, and the statements that were prepared on them."""
    found: set[tuple[str, ...]] = set()
    for _ in range(40):
        found.update(connection.execute("select name, setting from pg_settings where source = 'session'"))
        found.update(connection.execute("select name, statement from pg_prepared_statements"))
    return found
