"""What the README promises, with the commands as they stand there."""

import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from uuid import UUID

import pytest

from durablestack import DurableStack, DurableStackOptions
from workers import eventually

ROOT = Path(__file__).parent.parent.parent


@contextmanager
def running(folder: Path, *command: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs while the block lasts, and ends when it is asked to: of itself, or of the signal."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        assert process.wait(30) in (0, -signal.SIGTERM)  # uvicorn raises the signal again once it is done


def output_of(folder: Path, *command: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_quickstart_shows_20_runs_done_on_sqlite(tmp_path: Path) -> None:
    with running(tmp_path, "durablestack.supervisor", "examples.quickstart"):
        assert "20 of 20 runs done" in output_of(tmp_path, "examples.quickstart", "enqueue", "20")


def test_the_quickstart_shows_20_runs_done_on_postgresql_when_a_url_is_given(
    tmp_path: Path, postgres_dsn: str, table_prefix: str
) -> None:
    settings = {"DATABASE_URL": postgres_dsn, "DURABLESTACK__DATABASE_TABLE_PREFIX": table_prefix}
    with running(tmp_path, "durablestack.supervisor", "examples.quickstart", **settings):
        assert "20 of 20 runs done" in output_of(tmp_path, "examples.quickstart", "enqueue", "20", **settings)
    assert not list(tmp_path.glob("*.db"))


def test_the_demonstration_ends_with_its_table_and_exit_code_0(tmp_path: Path) -> None:
    shown = output_of(tmp_path, "durablestack.supervisor", "--demo", COLUMNS="160")
    for words in ("RunTimeout", "ConnectionError", "SIGSEGV", "cancelled", "60 succeeded"):
        assert words in shown
    assert not list(tmp_path.iterdir()), "the demonstration leaves nothing behind"


def test_the_in_memory_example_squares_numbers(tmp_path: Path) -> None:
    assert len(re.findall("succeeded", output_of(tmp_path, "examples.embedded_in_memory"))) == 10


def test_the_web_application_executes_its_own_runs(tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with running(tmp_path, "uvicorn", "examples.embedded_starlette:app", "--port", str(port)):
        answer = eventually(lambda: _post(f"http://127.0.0.1:{port}/reports/2026"))
        run_id = re.search(r'"run_id":"([^"]+)"', answer)
        assert run_id
        url = f"http://127.0.0.1:{port}/runs/{run_id[1]}"
        eventually(lambda: '"succeeded"' in urllib.request.urlopen(url, timeout=5).read().decode())


def _post(url: str) -> str:
    try:
        answer: bytes = urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=5).read()
        return answer.decode()
    except OSError:  # not up yet
        return ""


def test_a_run_enqueued_in_a_transaction_that_fails_does_not_exist(tmp_path: Path) -> None:
    shown = output_of(tmp_path, "examples.in_your_transaction")
    assert "no second welcome" in shown
    assert "1 run is waiting" in shown


def test_an_order_is_booked_exactly_if_its_attempt_succeeds(tmp_path: Path) -> None:
    stack = DurableStack(options=DurableStackOptions(database_url=f"sqlite:///{tmp_path}/services.db"))
    with running(tmp_path, "durablestack.supervisor", "examples.services", "--migrate"):
        ids = [UUID(text) for text in re.findall(r"run (\S+)", output_of(tmp_path, "examples.services"))]
        booked, refused = (
            eventually(lambda id=id: run if (run := stack.queries.get_run(id)) and run.status.terminal else None)
            for id in ids
        )
    assert booked.stdout_tail == "to ada@example.com: your order of 40 is booked\n"
    assert refused.error_message == "that is too much: nothing is booked"
    stack.close()
    with closing(sqlite3.connect(tmp_path / "orders.db")) as books:
        assert books.execute("select run_id, amount from orders").fetchall() == [(str(ids[0]), 40)]
