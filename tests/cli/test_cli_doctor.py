"""durablestack doctor"""

from datetime import UTC, datetime, timedelta

import pytest
from cli_situations import PASSWORD, unreachable_url

from durablestack import DurableStack
from durablestack.cli.checkup import Level, clock_finding, file_system_of, server_findings
from durablestack.ids import new_run_id
from durablestack.options import StorageProvider
from durablestack.runs import NewRun

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
