"""Applications that are written into the test's own folder, imported, and forgotten; the context of a run."""

import importlib
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from textwrap import dedent

import pytest

from durablestack.ids import new_run_id
from durablestack.jobs import JobContext
from durablestack.jobs.context import CancelFlag

Application = Callable[[dict[str, str]], None]


@pytest.fixture
def application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Application]:
    """Writes source files, by path; they can be imported until the test ends."""
    monkeypatch.syspath_prepend(tmp_path)
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


@pytest.fixture
def flag() -> CancelFlag:
    return CancelFlag()


@pytest.fixture
def context(flag: CancelFlag) -> JobContext:
    """What a job is told on its second attempt of three; `flag` is its cancel flag."""
    return JobContext(
        run_id=new_run_id(),
        job_name="job",
        attempt=2,
        max_attempts=3,
        scheduled_for=datetime(2030, 1, 2, tzinfo=UTC),
        _cancel_flag=flag,
    )
