"""The console script, called in this process or in one of its own, in a folder of its own and without options."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from durablestack import DurableStack
from durablestack.cli import main


class Ended(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def document(self) -> Any:
        return msgspec.json.decode(self.out)

    @property
    def sentence(self) -> str:
        """The one line on standard error."""
        assert self.out == "", self.out
        assert self.err.count("\n") == 1, self.err
        assert self.err.startswith("error: "), self.err
        return self.err.removeprefix("error: ").rstrip("\n")


Console = Callable[..., Ended]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in [name for name in os.environ if name.upper().startswith("DURABLESTACK")]:
        monkeypatch.delenv(variable)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def console(capsys: pytest.CaptureFixture[str]) -> Console:
    """The script in this process: `console("runs", "list")`."""

    def call(*arguments: object) -> Ended:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as ending:
            code = ending.code if isinstance(ending.code, int) else 1
        return Ended(code, *capsys.readouterr())

    return call


@pytest.fixture
def process(folder: Path) -> Console:
    """The script in a process of its own, as a user has it."""

    def call(*arguments: object, **environment: str) -> Ended:
        ended = subprocess.run(
            [Path(sys.executable).with_name("durablestack"), *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    return call


@pytest.fixture
def stack(folder: Path) -> Iterator[DurableStack]:
    """The same database as the console's, once it is told `--database-url sqlite:///runs.db`."""
    with DurableStack("cli_jobs", database_url="sqlite:///runs.db") as stack:
        stack.migrate()
        yield stack


@pytest.fixture
def on_sqlite(stack: DurableStack, monkeypatch: pytest.MonkeyPatch) -> DurableStack:
    """Migrated, and all that the console needs to know is in the environment."""
    monkeypatch.setenv("DURABLESTACK__DATABASE_URL", "sqlite:///runs.db")
    monkeypatch.setenv("DURABLESTACK_APP", "cli_jobs")
    return stack


@pytest.fixture
def on_mysql(mysql_dsn: str, table_prefix: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[DurableStack]:
    """The same on MySQL or MariaDB, not migrated."""
    monkeypatch.setenv("DURABLESTACK__DATABASE_URL", mysql_dsn)
    monkeypatch.setenv("DURABLESTACK__DATABASE_TABLE_PREFIX", table_prefix)
    monkeypatch.setenv("DURABLESTACK_APP", "cli_jobs")
    with DurableStack("cli_jobs") as stack:
        yield stack


@pytest.fixture
def on_postgres(postgres_dsn: str, table_prefix: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[DurableStack]:
    """The same on PostgreSQL, not migrated."""
    monkeypatch.setenv("DURABLESTACK__DATABASE_URL", postgres_dsn)
    monkeypatch.setenv("DURABLESTACK__DATABASE_TABLE_PREFIX", table_prefix)
    monkeypatch.setenv("DURABLESTACK_APP", "cli_jobs")
    with DurableStack("cli_jobs") as stack:
        yield stack
