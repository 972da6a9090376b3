"""SQLite in a chaos run."""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.chaos.database import ADMIN_TIMEOUT_SECONDS, AUDIT, AUDIT_COLUMNS, AUDIT_SELECT, RUNS, Absent

DISK_BYTES = 64 * 1024 * 1024

HOLD_WRITE_LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
connection.execute("begin immediate")
connection.execute("create table if not exists left_behind (word text)")
print("held", flush=True)
sys.stdin.read()
"""


class SqliteFile:
    """One file, on a small disk of its own where one can be made."""

    def __init__(self, folder: Path) -> None:
        self._cleanup = ExitStack()
        self._folder = folder / "database"
        self._folder.mkdir()
        self._own_disk = self._mount()
        self._path = self._folder / "runs.db"
        self.url = f"sqlite:///{self._path}"
        self.port: int | None = None

    def _mount(self) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(self._folder)]
        with contextlib.suppress(OSError):
            if os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0:
                self._cleanup.callback(subprocess.run, ["umount", "-l", str(self._folder)], capture_output=True)
                return True
        return False

    def audit(self) -> None:
        now = "(julianday('now') - 2440587.5) * 86400.0"
        columns = f"insert into {AUDIT} ({AUDIT_COLUMNS}) values (new.id, {now}"
        with contextlib.closing(self._connection()) as connection:
            connection.executescript(f"""
                create table {AUDIT} (
                  seq integer primary key, run_id text, at real, before_status text, after_status text,
                  before_attempt integer, after_attempt integer, before_token text, after_token text, error_type text
                );
                create trigger note_insert after insert on {RUNS} begin
                  {columns}, null, new.status, null, new.attempt, null, new.lease_token, new.error_type);
                end;
                create trigger note_update after update on {RUNS}
                when old.status is not new.status or old.attempt is not new.attempt
                  or old.lease_token is not new.lease_token
                begin
                  {columns}, old.status, new.status, old.attempt, new.attempt, old.lease_token, new.lease_token,
                    new.error_type);
                end;
            """)

    def audited(self) -> list[tuple[Any, ...]]:
        with contextlib.closing(self._connection()) as connection:
            return connection.execute(AUDIT_SELECT).fetchall()

    def down(self, *, crash: bool) -> contextlib.AbstractContextManager[None]:
        raise Absent("SQLite has no server")

    def frozen(self) -> contextlib.AbstractContextManager[None]:
        raise Absent("SQLite has no server")

    def end_connections(self) -> None:
        raise Absent("SQLite has no server")

    def read_only(self) -> contextlib.AbstractContextManager[None]:
        raise Absent("a disk with open files does not become read-only")

    @contextmanager
    def runs_locked(self) -> Iterator[None]:
        """By another process, which is killed in the middle of its transaction."""
        command = [sys.executable, "-c", HOLD_WRITE_LOCK, str(self._path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
            try:
                yield
            finally:
                holder.kill()

    @contextmanager
    def disk_full(self) -> Iterator[None]:
        if not self._own_disk:
            raise Absent("no disk of its own: mount -t tmpfs takes root")
        filler = self._folder / f"filler-{secrets.token_hex(4)}"
        try:
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(bytes(4096)):
                    pass
            yield
        finally:
            filler.unlink(missing_ok=True)

    def close(self) -> None:
        self._cleanup.close()

    def _connection(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=ADMIN_TIMEOUT_SECONDS, isolation_level=None)
