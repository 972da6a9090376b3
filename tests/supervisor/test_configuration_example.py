"""The documents' JSON configuration example starts a supervisor, unchanged."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from durablestack import DurableStack
from servers import PostgresServer
from workers import PATIENCE_SECONDS, TESTS, eventually

EXAMPLE = TESTS / "options" / "documents_example.json"

SHOP = """
from durablestack import DurableStack

stack = DurableStack(database_url="{url}")
"""


@pytest.fixture
def refusing_port() -> Iterator[int]:
    """A port of this machine at which nobody answers."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@contextmanager
def supervisor(folder: Path, *arguments: str, **environment: str) -> Iterator[Callable[[], str]]:
    """A supervisor of `chaos_jobs` while the block lasts; gives a way to read its log. It ends when it is asked to."""
    path = folder / "supervisor.log"
    with path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "durablestack.supervisor", "chaos_jobs", "--plain", *arguments],
            env={**os.environ, "PYTHONPATH": str(TESTS), "CHAOS_DIARY": str(folder / "diary"), **environment},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield lambda: path.read_text(errors="replace")
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0, path.read_text(errors="replace")


def test_the_documents_json_example_starts_a_supervisor_on_postgresql(
    tmp_path: Path, own_postgres: Callable[[], PostgresServer], refusing_port: int
) -> None:
    url = own_postgres().dsn
    # where the server of this test is, and that nothing leaves this machine; all the rest is the file's
    elsewhere = {
        "DURABLESTACK__POSTGRES__CONNECTION_STRING": url,
        "DURABLESTACK__EVENTING__INGESTION_API_BASE_URL": f"http://127.0.0.1:{refusing_port}",
    }
    with (
        supervisor(tmp_path, "--config", str(EXAMPLE), **elsewhere) as log,
        DurableStack("chaos_jobs", database_url=url, database_table_prefix="prod_") as stack,
    ):
        eventually(lambda: "worker orders-api-1: " in log(), what=log())
        run_id = stack.client.enqueue("innocent")
        eventually(lambda: f"run succeeded: run_id={run_id}" in log(), what=log())


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_what_is_said_of_options_is_said_by_the_supervisor_and_not_by_each_process(
    tmp_path: Path, start_method: str
) -> None:
    (tmp_path / "shop.py").write_text(SHOP.format(url=f"sqlite:///{tmp_path}/runs.db"))
    chosen = {"DURABLESTACK__START_METHOD": start_method, "DURABLESTACK_BATCH_SIZE": "3"}
    with supervisor(tmp_path, "shop:stack", PYTHONPATH=f"{tmp_path}{os.pathsep}{TESTS}", **chosen) as log:
        stack = DurableStack("chaos_jobs", database_url=f"sqlite:///{tmp_path}/runs.db")
        eventually(lambda: "worker " in log(), what=log())
        with stack:
            run_id = stack.client.enqueue("innocent")
            eventually(lambda: f"run succeeded: run_id={run_id}" in log(), what=log())
    told = [line for line in log().splitlines() if "DURABLESTACK_BATCH_SIZE is not read" in line]
    assert told
    assert all(" WARNING " in line for line in told), "by the supervisor, whose log has levels"
