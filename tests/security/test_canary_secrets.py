"""Secrets that are looked for wherever something is told, after everything has gone wrong that can.

The canaries are words that stand in a password, full of characters that are written otherwise in a URL, in JSON, in
a connection string, and in the client secret of the hosted service. Whatever spelling passes by the redactor, the
word in it is found.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from uuid import UUID

import psycopg
import pymysql
import pytest
from psycopg import sql

from collector import Collector, collector
from durablestack.errors import StoreUnavailable
from durablestack.ids import new_run_id
from durablestack.runs import NewRun, RunStatus
from processes import command_line, descendants
from servers import PostgresServer
from workers import PATIENCE_SECONDS, TESTS, Bench, Worker, bench, eventually

CANARY = "kanari"
PASSWORD = f"""%^@'"\\{CANARY}7f3a9c;=/?#&+$ {{x}}%s:é"""
CLIENT_SECRET = f"{CANARY}51b2e8'\"\\%"
WRONG_PASSWORD = f"another-{CANARY}"
TELLERS = [
    *(("tells-its-environment", f'"{how}"') for how in ("repr", "json", "lines", "parts")),
    ("raises-with-the-dsn", None),
    ("logs-the-dsn", None),
    ("dies-with-the-dsn", None),
    ("overruns-with-the-dsn", None),
]


class Home(Protocol):
    """A database with a user of ours, whose password is the canary."""

    prefix: str

    def url(self, password: str = PASSWORD) -> str: ...
    def set_password(self, password: str) -> None: ...
    def end_sessions(self) -> None: ...
    def dump(self) -> str: ...


class PostgresHome:
    def __init__(self, server: PostgresServer) -> None:
        self.prefix = ""
        self._server = server
        hba = server.folder / "data" / "pg_hba.conf"
        hba.write_text("host all bird 127.0.0.1/32 scram-sha-256\n" + hba.read_text())
        self._run("create role bird login")
        self._run("grant create on schema public to bird")
        self.set_password(PASSWORD)
        self._run("select pg_reload_conf()")
        eventually(self._asks_for_the_password)

    def url(self, password: str = PASSWORD) -> str:
        return f"postgresql://bird:{quote(password, safe='')}@127.0.0.1:{self._server.port}/postgres?sslmode=disable"

    def set_password(self, password: str) -> None:
        self._run(sql.SQL("alter role bird password {}").format(password))

    def end_sessions(self) -> None:
        self._run("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'bird'")

    def dump(self) -> str:
        with psycopg.connect(self._server.dsn) as connection:
            tables = connection.execute("select tablename from pg_tables where schemaname = 'public'").fetchall()
            selects = [sql.SQL("select t::text from {} as t").format(sql.Identifier(name)) for (name,) in tables]
            return "\n".join(row[0] for select in selects for row in connection.execute(select).fetchall())

    def _run(self, statement: str | sql.Composed) -> None:
        with psycopg.connect(self._server.dsn, autocommit=True) as connection:
            connection.execute(statement)

    def _asks_for_the_password(self) -> bool:
        try:
            psycopg.connect(self.url(WRONG_PASSWORD)).close()
        except psycopg.OperationalError:
            return True
        return False


class MySqlHome:
    def __init__(self, dsn: str, prefix: str) -> None:
        self.prefix = prefix
        self._dsn = urlsplit(dsn)
        self._user = f"bird_{secrets.token_hex(4)}"
        self._database = self._dsn.path.removeprefix("/")
        self._run(f"create user {self._user}@'%%' identified by %s", PASSWORD)
        self._run(f"grant all on {self._database}.* to {self._user}@'%%'")

    def url(self, password: str = PASSWORD) -> str:
        address = f"127.0.0.1:{self._dsn.port}{self._dsn.path}"
        return f"mysql://{self._user}:{quote(password, safe='')}@{address}"

    def set_password(self, password: str) -> None:
        self._run(f"alter user {self._user}@'%%' identified by %s", password)

    def end_sessions(self) -> None:
        self._run(f"kill user {self._user}")

    def dump(self) -> str:
        like = self.prefix.replace("_", "\\_") + "%"
        rows = self._run("select table_name from information_schema.tables where table_name like %s", like)
        return "\n".join(str(self._run(f"select * from `{name}`")) for (name,) in rows)

    def close(self) -> None:
        self._run(f"drop user {self._user}@'%%'")

    def _run(self, statement: str, *parameters: str) -> list[tuple[str, ...]]:
        address = {"host": "127.0.0.1", "port": self._dsn.port, "user": self._dsn.username, "database": self._database}
        with pymysql.connect(**address, autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return list(cursor.fetchall())


@pytest.fixture(params=["postgres", "mysql"])
def home(request: pytest.FixtureRequest, table_prefix: str) -> Iterator[Home]:
    if request.param == "postgres":
        own_postgres: Callable[[], PostgresServer] = request.getfixturevalue("own_postgres")
        yield PostgresHome(own_postgres())
        return
    made = MySqlHome(request.getfixturevalue("mysql_dsn"), table_prefix)
    yield made
    made.close()


class Sinks:
    """Everything that was told, by where it was told."""

    def __init__(self) -> None:
        self.told: dict[str, str] = {}

    def add(self, name: str, text: str | bytes) -> None:
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        self.told[name] = self.told.get(name, "") + text

    def hits(self) -> list[str]:
        return [
            f"{name}: …{told[max(0, found.start() - 60) : found.end() + 30]!r}…"
            for name, told in self.told.items()
            for found in re.finditer(CANARY, told, re.IGNORECASE)
        ]


def settings_of(home: Home, folder: Path, hosted: Collector) -> dict[str, str]:
    return {
        "DURABLESTACK__DATABASE_URL": home.url(),
        "DURABLESTACK__DATABASE_TABLE_PREFIX": home.prefix,
        "DURABLESTACK__LEASE_DURATION_SECONDS": "5",
        "DURABLESTACK__POLL_INTERVAL_SECONDS": "0.2",
        "DURABLESTACK__MAX_CONCURRENT_RUNS": "2",
        "DURABLESTACK__CANCEL_GRACE_SECONDS": "0.2",
        "DURABLESTACK__TERMINATE_GRACE_SECONDS": "0.2",
        "DURABLESTACK__SHUTDOWN_DRAIN_TIMEOUT_SECONDS": "0.5",
        "DURABLESTACK__CAPTURED_OUTPUT_BYTES_MAX": "200000",
        "DURABLESTACK__EVENTING__TENANT_ID": "tenant",
        "DURABLESTACK__EVENTING__CLIENT_SECRET": CLIENT_SECRET,
        "DURABLESTACK__EVENTING__INGESTION_API_BASE_URL": hosted.url,
        "DURABLESTACK__EVENTING__INGESTION_FLUSH_INTERVAL_SECONDS": "0.1",
        "DURABLESTACK__EVENTING__INCLUDE_ERROR_DETAIL": "true",
        "EVENTS_FILE": str(folder / "events"),
        "TRACE_FILE": str(folder / "spans"),
        "METRICS_FILE": str(folder / "metrics"),
    }


@contextmanager
def with_environment(settings: dict[str, str]) -> Iterator[None]:
    """For what reads the environment of this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        yield


def test_no_secret_is_told_by_anything_whatever_goes_wrong(tmp_path: Path, home: Home) -> None:
    sinks = Sinks()
    with collector() as hosted, bench(tmp_path, settings_of(home, tmp_path, hosted)) as made:
        worker = made.worker("--monitoring-port", "0", "--verbose", target="canary_jobs")
        run_ids = _enqueue(made, TELLERS)
        for run_id in run_ids:
            assert "TOLD" in str(made.until_terminal(run_id)), made.run(run_id)
        _ask_for_a_stack(made, sinks)
        _break_the_connections(home, worker, sinks)
        run_ids += _enqueue(made, [("raises-with-the-dsn", None)])
        made.until(run_ids[-1], RunStatus.FAILED)
        _listen(worker, sinks)
        _command_lines(worker, sinks)
        worker.terminate()
        worker.exit_code()
        sinks.add("log", worker.log())
        for post in hosted.posts:
            sinks.add("posts", post.raw)
        _commands(made.settings, run_ids, sinks)
    for name in ("events", "spans"):
        sinks.add(name, (tmp_path / name).read_bytes())
    sinks.add("tables", home.dump())
    for name, word in {"log": "could not", "events": "job_failed", "spans": "process raises", "tables": "TOLD"}.items():
        assert word in sinks.told[name], name
    assert "job_failed" in sinks.told["posts"]
    assert sinks.hits() == []


def _enqueue(made: Bench, jobs: list[tuple[str, str | None]]) -> list[UUID]:
    runs = [NewRun(id=new_run_id(), job_name=name, payload=payload, max_attempts=1) for name, payload in jobs]
    eventually(lambda: _stored(made, runs))  # the sessions of this process are ended too
    return [run.id for run in runs]


def _stored(made: Bench, runs: list[NewRun]) -> bool:
    try:
        made.stack.store.enqueue(runs)
    except StoreUnavailable:
        return False
    return True


def _ask_for_a_stack(made: Bench, sinks: Sinks) -> None:
    (run_id,) = _enqueue(made, [("waits", None)])
    made.until(run_id, RunStatus.LEASED)
    stack = made.stack.queries.get_stack(run_id)
    assert stack is not None
    assert "wait_cancelled" in stack
    sinks.add("stack", stack)
    made.stack.store.cancel_run(run_id)
    made.until(run_id, RunStatus.CANCELLED)


def _break_the_connections(home: Home, worker: Worker, sinks: Sinks) -> None:
    """Sessions are ended again and again; then the password is another one, and later the old one again."""
    for _ in range(3):
        home.end_sessions()
    home.set_password(WRONG_PASSWORD)
    home.end_sessions()
    worker.until_logged("trying again")
    _listen(worker, sinks)
    home.set_password(PASSWORD)


def _listen(worker: Worker, sinks: Sinks) -> None:
    found = eventually(lambda: re.search(r"listening on http://127\.0\.0\.1:(\d+)", worker.log()))
    for path in ("/live", "/ready", "/metrics", f"/{CANARY.upper()[0]}"):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}{path}", timeout=PATIENCE_SECONDS) as answer:
                sinks.add("endpoint", answer.read())
        except HTTPError as error:
            with error:
                sinks.add("endpoint", error.read())


def _command_lines(worker: Worker, sinks: Sinks) -> None:
    family = {pid: command_line(pid) for pid in [worker.pid, *descendants(worker.pid)]}
    assert len(family) >= 4, "supervisor, fork server, two children"
    for line in family.values():
        sinks.add("command lines", line)


def _commands(settings: dict[str, str], run_ids: list[UUID], sinks: Sinks) -> None:
    url = settings["DURABLESTACK__DATABASE_URL"]
    refused = url.replace(str(urlsplit(url).port), "1")
    wrong = url.replace(quote(PASSWORD, safe=""), WRONG_PASSWORD)
    malformed = url.replace("%5E", "^").replace("%23", "#").replace("%2F", "/")
    script = [str(Path(sys.executable).with_name("durablestack"))]
    supervisor = [sys.executable, "-m", "durablestack.supervisor", "canary_jobs", "--plain"]
    commands = [
        (url, [*script, "runs", "list"]),
        *((url, [*script, "runs", "show", str(run_id)]) for run_id in run_ids[-1:]),
        (url, [*script, "runs", "show", str(run_ids[0]), "--json"]),
        (url, [*script, "doctor"]),
        (refused, [*script, "doctor"]),
        (wrong, [*script, "migrate"]),
        (malformed, [*script, "migrate"]),
        (wrong, supervisor),
        (malformed, supervisor),
    ]
    started = [
        subprocess.Popen(
            command,
            env={**os.environ, **settings, "DURABLESTACK__DATABASE_URL": given, "PYTHONPATH": str(TESTS)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for given, command in commands
    ]
    for process, (_, command) in zip(started, commands, strict=True):
        told, _ = process.communicate(timeout=60)
        assert told, command
        sinks.add(" ".join(command[1:]), told)
