"""An application on each store that needs no server, and the means to load one from files."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest
import queue_jobs

from durablestack import DurableStack, DurableStackOptions

Application = Callable[[dict[str, str]], None]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


@pytest.fixture
def sqlite_stack(database: Path) -> Iterator[DurableStack]:
    options = DurableStackOptions(database_url=f"sqlite:///{database}", payload_bytes_max=1_000)
    with DurableStack("queue_jobs", options=options) as stack:
        stack.migrate()
        yield stack


@pytest.fixture
def memory_stack() -> DurableStack:
    return DurableStack("queue_jobs", options=DurableStackOptions(payload_bytes_max=1_000))


@pytest.fixture(params=["memory", "sqlite"])
def stack(request: pytest.FixtureRequest) -> DurableStack:
    stack: DurableStack = request.getfixturevalue(f"{request.param}_stack")
    assert queue_jobs.send_email in stack.jobs
    return stack


@pytest.fixture
def application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Application]:
    """Writes source files, by path; they can be imported until the test ends. Options come from nowhere else."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)

    def write(files: dict[str, str]) -> None:
        for name, source in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dedent(source), encoding="utf-8")
        importlib.invalidate_caches()

    yield write
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]
