"""What the README promises, with the commands as they stand there."""

import importlib.util
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

from durablestack import DurableStack, DurableStackOptions, Run
from workers import eventually

ROOT = Path(__file__).parent.parent.parent
STAND_INS = Path(__file__).parent / "stand_ins"


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


@contextmanager
def runs_in(folder: Path, file: str) -> Iterator[DurableStack]:
    """What an example has stored in its file, for whoever reads it beside the example."""
    with DurableStack(options=DurableStackOptions(database_url=f"sqlite:///{folder / file}")) as stack:
        stack.migrate()
        yield stack


def ended(stack: DurableStack, run_id: str) -> Run:
    return eventually(lambda: run if (run := stack.queries.get_run(UUID(run_id))) and run.status.terminal else None)


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
    with serving(tmp_path, "examples.embedded_starlette:app") as place:
        answer = eventually(lambda: _post(f"{place}/reports/2026"))
        _wait_until_it_tells_of_success(place, answer)


def test_an_application_of_fastapi_executes_its_own_runs(tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    stand_in = () if importlib.util.find_spec("fastapi") else (STAND_INS,)
    path = os.pathsep.join(map(str, (ROOT, *stand_in)))
    with serving(tmp_path, "examples.fastapi_lifespan:app", PYTHONPATH=path) as place:
        answer = eventually(lambda: _post(f"{place}/welcome/ada@example.com"))
        _wait_until_it_tells_of_success(place, answer)


@contextmanager
def serving(folder: Path, application: str, **environment: str) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with running(folder, "uvicorn", application, "--port", str(port), **environment):
        yield f"http://127.0.0.1:{port}"


def _wait_until_it_tells_of_success(place: str, answer: str) -> None:
    run_id = re.search(r'"run_id":"([^"]+)"', answer)
    assert run_id
    url = f"{place}/runs/{run_id[1]}"
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


def test_the_email_is_sent_and_the_wrong_address_is_not_tried_again(tmp_path: Path) -> None:
    with running(tmp_path, "durablestack.supervisor", "examples.welcome_email"):
        sent, refused = output_of(tmp_path, "examples.welcome_email", "ada@example.com", "nowhere").split()
        with runs_in(tmp_path, "welcome_email.db") as stack:
            assert ended(stack, sent).stdout_tail == f"to ada@example.com: Welcome! <{sent}@example.com>\n"
            run = ended(stack, refused)
            assert (run.status, run.attempt) == ("failed", 1)


def test_the_recurring_clean_up_deletes_what_has_expired(tmp_path: Path) -> None:
    output_of(tmp_path, "examples.recurring_cleanup")
    supervisor = running(tmp_path, "durablestack.supervisor", "examples.recurring_cleanup")
    with supervisor, runs_in(tmp_path, "recurring.db") as stack:
        latest, *_ = eventually(lambda: [run for run in stack.queries.get_runs_by_status("succeeded") if run.slot])
    assert (latest.stdout_tail or "").endswith(f"sessions deleted, for the slot at {latest.slot:%H:%M:%S}\n")
    with closing(sqlite3.connect(tmp_path / "sessions.db")) as sessions:
        assert sessions.execute("select count(*) from sessions").fetchone() == (0,)


def test_the_synchronisation_outlives_a_failure_and_a_pause_that_was_asked_for(tmp_path: Path) -> None:
    with running(tmp_path, "durablestack.supervisor", "examples.third_party_sync"):
        shown = output_of(tmp_path, "examples.third_party_sync")
    assert "attempt 1 failed: the shop does not answer" in shown
    assert "attempt 2 failed: the shop asked for a pause" in shown
    assert shown.endswith("succeeded\n")
    assert sorted(file.name for file in (tmp_path / "orders").iterdir()) == ["A-1", "A-2"]


def test_of_two_reminders_the_one_that_was_cancelled_is_not_sent(tmp_path: Path) -> None:
    shown = output_of(tmp_path, "examples.delayed")
    assert "cancelled: True, again: False" in shown
    soon, later = re.findall(r"^(?:soon|later): run (\S+)", shown, re.MULTILINE)
    with running(tmp_path, "durablestack.supervisor", "examples.delayed"), runs_in(tmp_path, "delayed.db") as stack:
        assert ended(stack, soon).stdout_tail == "to ada@example.com: your basket waits\n"
        assert ended(stack, later).status == "cancelled"


def test_the_report_is_paused_resumed_changed_and_run_by_commands(tmp_path: Path) -> None:
    with running(tmp_path, "durablestack.supervisor", "examples.run_now"), runs_in(tmp_path, "run_now.db") as stack:
        eventually(stack.schedules.list_scheduled_jobs)
        told = {word: output_of(tmp_path, "examples.run_now", word) for word in ("pause", "resume", "run", "hourly")}
        run = ended(stack, told["run"].removeprefix("run ").strip())
        assert run.stdout_tail == "the figures of yesterday\n"
    assert told["pause"] == "paused\n"
    assert told["resume"].startswith("next: 2")
    assert told["hourly"].endswith(":00:00+00:00\n")


@pytest.mark.parametrize("server", [None, "postgres_dsn", "mysql_dsn"])
def test_the_same_job_runs_on_each_store(
    tmp_path: Path, request: pytest.FixtureRequest, table_prefix: str, server: str | None
) -> None:
    urls = [] if server is None else [request.getfixturevalue(server)]
    shown = output_of(
        tmp_path, "examples.every_store", *urls, DURABLESTACK__DATABASE_TABLE_PREFIX=table_prefix
    ).splitlines()
    assert len(shown) == (len(urls) or 2)
    assert all(line.endswith(": 1, 4, 9") for line in shown)
