"""MariaDB in a chaos run."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pymysql

from benchmarks.chaos.database import (
    ADMIN_TIMEOUT_SECONDS,
    AUDIT,
    AUDIT_COLUMNS,
    AUDIT_SELECT,
    RUNS,
    Absent,
    stopped_while,
)
from mariadb import MariaDbServer


class MariaDb:
    """Its user may not write to a server that is read-only, as the tests' own user may."""

    def __init__(self, server: MariaDbServer) -> None:
        self._server = server
        self.url = server.dsn.replace("//durablestack@", "//chaos@")
        self.port: int | None = server.port
        self._execute("create user chaos@'%'")
        self._execute("grant all on durablestack.* to chaos@'%'")

    def audit(self) -> None:
        values = "{before_status}, new.status, {before_attempt}, new.attempt, {before_token}, new.lease_token"
        insert = f"insert into {AUDIT} ({AUDIT_COLUMNS}) values (new.id, unix_timestamp(sysdate(6)), {values}"
        new = insert.format(before_status="null", before_attempt="null", before_token="null")
        changed = insert.format(
            before_status="old.status", before_attempt="old.attempt", before_token="old.lease_token"
        )
        for statement in (
            f"""create table {AUDIT} (
              seq bigint auto_increment primary key, run_id binary(16), at double, before_status varchar(16),
              after_status varchar(16), before_attempt integer, after_attempt integer, before_token binary(16),
              after_token binary(16), error_type varchar(200)
            ) engine = InnoDB""",
            f"create trigger note_insert after insert on {RUNS} for each row {new}, new.error_type)",
            f"""create trigger note_update after update on {RUNS} for each row
              if not (old.status <=> new.status and old.attempt <=> new.attempt
                      and old.lease_token <=> new.lease_token) then
                {changed}, new.error_type);
              end if""",
        ):
            self._execute(statement)

    def audited(self) -> list[tuple[Any, ...]]:
        return list(self._execute(AUDIT_SELECT))

    @contextmanager
    def down(self, *, crash: bool) -> Iterator[None]:
        self._server.stop(signal.SIGKILL if crash else signal.SIGTERM)
        try:
            yield
        finally:
            self._server.start()

    def frozen(self) -> contextlib.AbstractContextManager[None]:
        return stopped_while(lambda: [int((self._server.folder / "pid").read_text())])

    def end_connections(self) -> None:
        for (number,) in self._execute("select id from information_schema.processlist where user = 'chaos'"):
            with contextlib.suppress(pymysql.Error):  # it has ended meanwhile
                self._execute(f"kill connection {number}")

    @contextmanager
    def read_only(self) -> Iterator[None]:
        self._execute("set global read_only = on")
        try:
            yield
        finally:
            self._execute("set global read_only = off")

    @contextmanager
    def runs_locked(self) -> Iterator[None]:
        with self._connection() as connection, connection.cursor() as cursor:
            cursor.execute("set lock_wait_timeout = 1")
            cursor.execute(f"lock tables {RUNS} write")
            yield

    def disk_full(self) -> contextlib.AbstractContextManager[None]:
        raise Absent("the disk of MariaDB is not filled here")

    def close(self) -> None:
        self._server.close()

    def _execute(self, statement: str) -> tuple[tuple[Any, ...], ...]:
        with self._connection() as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return tuple(cursor.fetchall())

    def _connection(self) -> Any:
        return pymysql.connect(
            host="127.0.0.1",
            port=self._server.port,
            user="durablestack",
            database="durablestack",
            autocommit=True,
            connect_timeout=ADMIN_TIMEOUT_SECONDS,
            read_timeout=ADMIN_TIMEOUT_SECONDS,
            init_command="set session time_zone = '+00:00'",
        )
