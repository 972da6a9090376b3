"""durablestack doctor"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import psycopg
import pymysql
import pytest
from cli_situations import PASSWORD, unreachable_url

from durablestack import DurableStack
from durablestack.cli import checkup
from durablestack.cli.checkup import Level, clock_finding, file_system_of, server_findings, snapshot_finding
from durablestack.ids import new_run_id
from durablestack.options import StorageProvider
from durablestack.runs import NewRun
from durablestack.stores.contract import OldSnapshot
from mariadb import MariaDbServer
from servers import PostgresServer

POSTGRES_FACTS = {
    "server_version": "16.2",
    "server_version_num": "160002",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
}
MYSQL_FACTS = {
    "version": "10.11.19-MariaDB",
    "version_comment": "Debian 12",
    "transaction_isolation": "READ-COMMITTED",
    "innodb_flush_log_at_trx_commit": "1",
    "sync_binlog": "1",
    "log_bin": "1",
    "binlog_format": "MIXED",
    "read_only": "0",
}
SQLSERVER_FACTS = {
    "version": "16.0.4165.4",
    "edition": "Developer Edition (64-bit)",
    "compatibility_level": "160",
    "read_committed_snapshot": "1",
    "delayed_durability": "DISABLED",
}
SQLITE_FACTS = {"version": "3.51.3", "journal_mode": "wal", "synchronous": "2"}


def findings(ended) -> dict[str, tuple[str, str]]:
    return {each["subject"]: (each["level"], each["text"]) for each in ended.document["findings"]}


def levels(provider: StorageProvider, facts: dict[str, str]) -> set[Level]:
    return {finding.level for finding in server_findings(provider, facts)}


def test_a_healthy_database_is_exit_code_0_and_a_line_per_finding(console, on_sqlite):
    ended = console("doctor")
    assert (ended.code, ended.err) == (0, "")
    subjects = [line.split()[1] for line in ended.lines[1:]]
    assert {"connection", "clock", "server", "durability", "schema", "runs", "due", "jobs"} <= set(subjects)
    assert all(line.split()[0] in ("ok", "advice") for line in ended.lines[1:])


def test_doctor_examines_postgresql(console, on_postgres: DurableStack, postgres_dsn: str):
    assert console("doctor").code == 3
    on_postgres.migrate()
    ended = console("doctor", "--json")
    assert ended.code == 0
    found = findings(ended)
    assert found["connection"][1].startswith("postgresql://")
    assert found["server"][1].startswith("PostgreSQL 1")
    assert found["clock"][0] == found["schema"][0] == "ok"


def test_doctor_examines_mysql(console, on_mysql: DurableStack):
    assert console("doctor").code == 3
    on_mysql.migrate()
    ended = console("doctor", "--json")
    assert ended.code == 0
    found = findings(ended)
    assert found["connection"][1].startswith("mysql://")
    assert "transactions are READ-COMMITTED" in found["server"][1]
    assert found["clock"][0] == found["schema"][0] == "ok"


def test_missing_tables_are_a_problem(console, folder):
    (folder / "empty.db").touch()
    ended = console("doctor", "--database-url", "sqlite:///empty.db", "--json")
    assert ended.code == 3
    assert ended.document["healthy"] is False
    assert findings(ended)["schema"] == ("problem", findings(ended)["schema"][1])
    assert "durablestack migrate" in findings(ended)["schema"][1]


def test_a_missing_file_is_a_problem_and_is_not_made(console, folder):
    ended = console("doctor", "--database-url", "sqlite:///elsewhere.db", "--json")
    assert ended.code == 3
    assert "elsewhere.db" in findings(ended)["database"][1]
    assert not (folder / "elsewhere.db").exists()


def test_a_file_of_somebody_else_is_left_as_it_was(console, folder):
    with closing(sqlite3.connect(folder / "theirs.db")) as theirs:
        theirs.execute("create table invoices (id integer)")
    before = (folder / "theirs.db").read_bytes()
    assert console("doctor", "--database-url", "sqlite:///theirs.db").code == 3
    assert console("runs", "list", "--database-url", "sqlite:///theirs.db").code != 0
    assert (folder / "theirs.db").read_bytes() == before


def test_without_an_application_and_a_database_nothing_is_well(console):
    ended = console("doctor")
    assert ended.code == 2
    assert ended.err.startswith("error: no database is named")


def test_an_unreachable_database_is_a_problem_told_without_its_password(process):
    ended = process("doctor", "--database-url", unreachable_url())
    assert ended.code == 3
    assert "problem" in ended.out
    assert PASSWORD not in ended.out + ended.err


def test_in_memory_there_is_nothing_to_see(console):
    ended = console("doctor", "-a", "cli_jobs")
    assert ended.code == 0
    assert "nothing to see" in ended.out
    assert "send-email, tidy-up" in ended.out


def test_doctor_tells_what_a_worker_would_claim_and_what_nobody_here_has_registered(console, on_sqlite):
    on_sqlite.client.enqueue_many("tidy-up", [None] * 2)
    on_sqlite.client.schedule("send-email", {"to": "a"}, run_at=datetime.now(UTC) + timedelta(hours=1))
    on_sqlite.store.enqueue([NewRun(id=new_run_id(), job_name="lost [red]job\x1b") for _ in range(3)])
    found = findings(console("doctor", "--json"))
    assert found["runs"][1].startswith("6 pending, 0 leased")
    assert found["due"][1].startswith("5 due")
    assert found["claimable"] == ("ok", "a worker with these jobs would claim 2 of tidy-up")
    assert found["unregistered"][0] == "advice"
    assert "lost [red]job\x1b (3)" in found["unregistered"][1]
    assert r"lost [red]job\x1b (3)" in console("doctor").out


def test_runs_that_have_waited_long_make_doctor_ask_for_a_supervisor(console, on_sqlite):
    on_sqlite.client.schedule("tidy-up", run_at=datetime.now(UTC) - timedelta(hours=3, minutes=2, seconds=5))
    level, text = findings(console("doctor", "--json"))["due"]
    assert level == "advice"
    assert text.startswith("1 due, the first for 3 h 2 min: is a supervisor running")


def test_doctor_changes_nothing(console, on_sqlite):
    run_id = on_sqlite.client.enqueue("tidy-up")
    before = on_sqlite.queries.get_run(run_id)
    console("doctor")
    assert on_sqlite.queries.get_run(run_id) == before


@pytest.mark.parametrize(
    ("version", "level"),
    [
        ("3.51.2", Level.ADVICE),
        ("3.40.1", Level.ADVICE),
        ("3.7.0", Level.ADVICE),
        ("3.51.3", Level.OK),
        ("3.52", Level.OK),
    ],
)
def test_sqlite_with_the_wal_reset_bug_is_advised_against_never_refused(version, level):
    first, *_ = server_findings(StorageProvider.SQLITE, {**SQLITE_FACTS, "version": version})
    assert first.level is level


def test_settings_that_lose_commits_are_advised_against():
    assert levels(StorageProvider.SQLITE, SQLITE_FACTS) == {Level.OK}
    assert Level.ADVICE in levels(StorageProvider.SQLITE, {**SQLITE_FACTS, "synchronous": "1"})
    assert Level.ADVICE in levels(StorageProvider.SQLITE, {**SQLITE_FACTS, "journal_mode": "delete"})
    assert levels(StorageProvider.POSTGRES, POSTGRES_FACTS) == {Level.OK}
    for setting in ("fsync", "full_page_writes", "synchronous_commit"):
        assert Level.ADVICE in levels(StorageProvider.POSTGRES, {**POSTGRES_FACTS, setting: "off"})


def test_what_mysql_would_lose_or_refuse_is_told():
    assert levels(StorageProvider.MY_SQL, MYSQL_FACTS) == {Level.OK}
    for setting in ("innodb_flush_log_at_trx_commit", "sync_binlog"):
        assert levels(StorageProvider.MY_SQL, {**MYSQL_FACTS, setting: "0"}) == {Level.OK, Level.ADVICE}
    without_log = {**MYSQL_FACTS, "log_bin": "0", "sync_binlog": "0", "binlog_format": "STATEMENT"}
    assert levels(StorageProvider.MY_SQL, without_log) == {Level.OK}
    assert Level.PROBLEM in levels(StorageProvider.MY_SQL, {**MYSQL_FACTS, "binlog_format": "STATEMENT"})
    assert Level.PROBLEM in levels(StorageProvider.MY_SQL, {**MYSQL_FACTS, "read_only": "1"})
    first, *_ = server_findings(StorageProvider.MY_SQL, {**MYSQL_FACTS, "version": "8.4.3"})
    assert first.text.startswith("MySQL 8.4.3")


def test_what_sql_server_would_lose_or_wait_for_is_told():
    assert levels(StorageProvider.SQL_SERVER, SQLSERVER_FACTS) == {Level.OK}
    for setting, value in {"read_committed_snapshot": "0", "delayed_durability": "FORCED"}.items():
        assert Level.ADVICE in levels(StorageProvider.SQL_SERVER, {**SQLSERVER_FACTS, setting: value})


def test_a_postgresql_that_is_too_old_is_a_problem():
    assert Level.PROBLEM in levels(StorageProvider.POSTGRES, {**POSTGRES_FACTS, "server_version_num": "110022"})


@contextmanager
def transaction_of(dsn: str, name: str) -> Iterator[int]:
    """The pid of a transaction that somebody has begun, and that goes on."""
    with psycopg.connect(dsn, application_name=name) as connection:
        connection.execute("set transaction isolation level repeatable read")
        row = connection.execute("select pg_backend_pid()").fetchone()
        assert row is not None
        yield row[0]


def test_doctor_names_who_keeps_postgresql_from_cleaning_up(
    console, own_postgres: Callable[[], PostgresServer], monkeypatch: pytest.MonkeyPatch
):
    dsn = own_postgres().dsn
    with DurableStack(database_url=dsn) as stack:
        stack.migrate()
    with transaction_of(dsn, "a report") as pid:
        level, text = findings(console("doctor", "--database-url", dsn, "--json"))["snapshots"]
        assert level == "ok"
        assert text.startswith(f"the transaction of pid {pid} (a report) holds the oldest, for 0 s")
        monkeypatch.setattr(checkup, "_OLD_AFTER", timedelta(0))
        level, text = findings(console("doctor", "--database-url", dsn, "--json"))["snapshots"]
        assert level == "advice"
        assert f"pid {pid}" in text
    assert "snapshots" not in findings(console("doctor", "--database-url", dsn, "--json"))


def test_of_prepared_transactions_and_slots_the_oldest_is_told(own_postgres: Callable[[], PostgresServer]):
    server = own_postgres()
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute("alter system set max_prepared_transactions = 5")
    server.stop()
    server.start()
    with DurableStack(database_url=server.dsn) as stack, psycopg.connect(server.dsn, autocommit=True) as connection:
        assert stack.store.oldest_snapshot() is None
        connection.execute("begin")
        connection.execute("create table forgotten (id integer)")
        connection.execute("prepare transaction 'half done'")
        connection.execute("create table later (id integer)")
        with transaction_of(server.dsn, "later"):
            oldest = stack.store.oldest_snapshot()
            assert oldest is not None
            assert oldest.holder == "the prepared transaction half done"
            assert oldest.held_for is not None
            assert oldest.changes >= 1
        connection.execute("rollback prepared 'half done'")
        assert stack.store.oldest_snapshot() is None


def test_doctor_names_the_oldest_transaction_of_a_mysql_to_those_who_may_see_it(
    console, own_mariadb: Callable[[], MariaDbServer]
):
    dsn = own_mariadb().dsn
    with DurableStack(database_url=dsn) as stack:
        stack.migrate()
    url = urlsplit(dsn)
    stranger = url._replace(netloc=f"stranger@{url.hostname}:{url.port}").geturl()
    with closing(pymysql.connect(host=url.hostname, port=url.port or 0, user=url.username)) as connection:
        cursor = connection.cursor()
        cursor.execute("create user stranger")
        cursor.execute(f"grant all on {url.path[1:]}.* to stranger")
        cursor.execute("select connection_id()")
        (number,) = cursor.fetchone() or (0,)
        cursor.execute("start transaction with consistent snapshot")
        level, text = findings(console("doctor", "--database-url", dsn, "--json"))["snapshots"]
        assert level == "ok"
        assert text.startswith(f"the transaction of connection {number} holds the oldest, for ")
        level, text = findings(console("doctor", "--database-url", stranger, "--json"))["snapshots"]
        assert level == "ok"
        assert text.startswith("who holds an old one cannot be seen: ")


def test_a_snapshot_is_old_by_its_time_or_where_that_is_unknown_by_what_happened_since():
    minute, hour = timedelta(minutes=1), timedelta(hours=1)
    assert snapshot_finding(OldSnapshot("a slot", None, 10)).level is Level.OK
    assert snapshot_finding(OldSnapshot("a slot", None, 1_000_000)).level is Level.ADVICE
    assert snapshot_finding(OldSnapshot("the transaction of pid 7", minute, 1_000_000)).level is Level.OK
    old = snapshot_finding(OldSnapshot("the transaction of pid 7", hour, 10))
    assert old.level is Level.ADVICE
    assert "the transaction of pid 7 holds the oldest, for 1 h" in old.text


def test_clocks_that_differ_are_told_with_their_direction():
    assert clock_finding(timedelta(seconds=1), timedelta()).level is Level.OK
    assert clock_finding(timedelta(seconds=3), timedelta(seconds=4)).level is Level.OK  # the network may have been it
    ahead, behind = clock_finding(timedelta(minutes=1), timedelta()), clock_finding(timedelta(minutes=-1), timedelta())
    assert ahead.level is behind.level is Level.ADVICE
    assert "60.0 s ahead of" in ahead.text
    assert "60.0 s behind" in behind.text


def test_the_file_system_is_that_of_the_nearest_mount(folder):
    mounts = folder / "mounts"
    mounts.write_text(
        "/dev/sda1 / ext4 rw 0 0\nserver:/home /home nfs4 rw 0 0\nserver:/x /mnt/my\\040share cifs rw 0 0\n"
        "overlay /home/local tmpfs rw 0 0\n"
    )
    assert file_system_of(folder.__class__("/home/ada/runs.db"), mounts) == "nfs4"
    assert file_system_of(folder.__class__("/home/local/runs.db"), mounts) == "tmpfs"
    assert file_system_of(folder.__class__("/homes/runs.db"), mounts) == "ext4"
    assert file_system_of(folder.__class__("/mnt/my share/runs.db"), mounts) == "cifs"
    assert file_system_of(folder.__class__("/home/x"), folder / "no such file") is None


def test_a_file_on_a_network_file_system_is_advised_against(console, on_sqlite, monkeypatch):
    monkeypatch.setattr("durablestack.cli.checkup.file_system_of", lambda path, mounts: "nfs4")
    level, text = findings(console("doctor", "--json"))["file system"]
    assert level == "advice"
    assert "nfs4" in text
