"""PostgreSQL in a chaos run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from benchmarks.chaos.database import (
    ADMIN_TIMEOUT_SECONDS,
    AUDIT,
    AUDIT_COLUMNS,
    AUDIT_SELECT,
    RUNS,
    Absent,
    stopped_while,
)
from processes import descendants
from servers import PostgresServer


class Postgres:
    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self.url = server.dsn
        self.port: int | None = server.port

    def audit(self) -> None:
        self._execute(f"""
            create table {AUDIT} (
              seq bigserial primary key, run_id uuid, at double precision, before_status text, after_status text,
              before_attempt integer, after_attempt integer, before_token uuid, after_token uuid, error_type text
            );
            create function note_change() returns trigger language plpgsql as $$
            begin
              insert into {AUDIT} ({AUDIT_COLUMNS}) values (
                new.id, extract(epoch from clock_timestamp()),
                case when tg_op = 'UPDATE' then old.status end, new.status,
                case when tg_op = 'UPDATE' then old.attempt end, new.attempt,
                case when tg_op = 'UPDATE' then old.lease_token end, new.lease_token,
                new.error_type
              );
              return null;
            end $$;
            create trigger note_insert after insert on {RUNS} for each row execute function note_change();
            create trigger note_update after update on {RUNS} for each row
              when ((old.status, old.attempt, old.lease_token) is distinct from
                    (new.status, new.attempt, new.lease_token))
              execute function note_change();
        """)

    def audited(self) -> list[tuple[Any, ...]]:
        with self._connection() as connection:
            return connection.execute(AUDIT_SELECT).fetchall()

    @contextmanager
    def down(self, *, crash: bool) -> Iterator[None]:
        self._server.stop("immediate" if crash else "fast")
        try:
            yield
        finally:
            self._server.start()

    def frozen(self) -> contextlib.AbstractContextManager[None]:
        return stopped_while(lambda: [self._postmaster, *sorted(descendants(self._postmaster))])

    @property
    def _postmaster(self) -> int:
        return int((self._server.folder / "data" / "postmaster.pid").read_text().split()[0])

    def end_connections(self) -> None:
        self._execute("select pg_terminate_backend(pid) from pg_stat_activity where pid != pg_backend_pid()")

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """For those that connect from now on, and the others are ended."""
        self._set_read_only("on")
        try:
            yield
        finally:
            self._set_read_only("off")

    def _set_read_only(self, value: str) -> None:
        with self._connection() as connection:
            connection.execute("set default_transaction_read_only = off")
            connection.execute(f"alter system set default_transaction_read_only = {value}".encode())
            connection.execute("select pg_reload_conf()")
        self.end_connections()

    @contextmanager
    def runs_locked(self) -> Iterator[None]:
        with self._connection() as connection:
            connection.execute("set lock_timeout = '1s'")  # who holds a lock may be frozen, and we are to thaw it
            connection.execute("begin")
            connection.execute(f"lock table {RUNS} in access exclusive mode".encode())
            yield

    def disk_full(self) -> contextlib.AbstractContextManager[None]:
        raise Absent("the disk of PostgreSQL is not filled here")

    def close(self) -> None:
        self._server.close()

    def _execute(self, statements: str) -> None:
        with self._connection() as connection:
            connection.execute(statements.encode())

    def _connection(self) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(self.url, autocommit=True, connect_timeout=ADMIN_TIMEOUT_SECONDS)
