"""Nobody writes lines into a log or a table of ours, or speaks to the terminal, whatever text he has put where."""

import logging
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from durablestack import DurableStack
from durablestack.cli import main
from durablestack.cli.printing import one_line, visible
from durablestack.events import Event, EventType, LoggingEventSink
from durablestack.ids import new_run_id
from durablestack.options import MASK, Secret
from durablestack.runs import NewRun
from durablestack.stores.sql import SqlStore
from durablestack.supervisor.logs import LineFormatter
from durablestack.text import on_one_line

FORGED = "x\r\n2026-01-01 00:00:00,000 INFO    run succeeded\x1b[2J\x1b]0;title\x07\x85\u2028\u202e\x9b31m\v\f\x1c"
CONTROLS = st.sampled_from(
    "\0\a\b\t\n\v\f\r\x1b\x1c\x1d\x1e\x7f\x85\x9b\xad\u061c\u200b\u2028\u2029\u202e\u2066\ufeff\ud800"
)
texts = st.lists(CONTROLS | st.characters(), max_size=30).map("".join)


@given(text=texts)
@example(FORGED)
def test_text_of_strangers_is_shown_and_not_obeyed(text: str) -> None:
    assert one_line(text).isprintable()
    assert on_one_line(text).isprintable()
    assert all(c in "\n\t" or c.isprintable() for c in visible(text) if c not in "\xa0\u3000")


@given(text=texts)
@example(FORGED)
def test_a_line_of_the_log_begins_where_we_begin_it(text: str) -> None:
    record = logging.LogRecord("n", logging.ERROR, "f", 1, "run failed: %s", (text,), None)
    first, *others = LineFormatter("%(levelname)s %(message)s").format(record).splitlines()
    assert first.startswith("ERROR run failed: ")
    assert all(line.startswith("    ") for line in others)
    assert "\x1b" not in first + "".join(others)


def test_a_traceback_in_the_log_tells_no_secret_and_begins_no_line() -> None:
    lines = LineFormatter("%(message)s")
    lines.secrets = [Secret("p^ss'w\"rd")]
    record = logging.LogRecord("n", logging.ERROR, "f", 1, "failed: %s\nTraceback: %r", ("p^ss'w\"rd",) * 2, None)
    told = lines.format(record)
    assert told.count(MASK) == 2
    assert "w" + '"rd' not in told


def test_an_event_is_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    fields = {"worker_name": FORGED, "job_name": FORGED, "error_type": FORGED, "error_message": FORGED}
    with caplog.at_level(logging.INFO, "durablestack.events"):
        event = Event(event_type=EventType.JOB_FAILED, occurred_at=datetime.now(UTC), message=FORGED, **fields)
        LoggingEventSink().emit([event])
    (line,) = caplog.messages
    assert line.isprintable()


def test_tables_and_documents_of_the_command_show_a_line_per_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every column that holds text holds a forged line."""
    url = f"sqlite:///{tmp_path}/runs.db"
    run = NewRun(id=new_run_id(), job_name=FORGED, payload=f'"{FORGED}"')
    with DurableStack(database_url=url) as stack:
        stack.migrate()
        stack.store.enqueue([run])
        assert isinstance(stack.store, SqlStore)
        columns = ("lease_owner", "error_type", "error_message", "error_detail", "stdout_tail", "stderr_tail")
        sets = ", ".join(f"{column} = :text" for column in columns)
        attempt = "insert into durable_stack_job_run_attempts (run_id, attempt, worker_name, ended_at_utc, outcome,"
        attempt += " error_type, error_message, error_detail, signal) values (:id, 1, :text, :now, 'failed', :text,"
        attempt += " :text, :text, :text)"
        bind = stack.store.dialect.bind
        with stack.store._connections.transaction() as tx:
            tx.run(f"update durable_stack_job_runs set {sets}", bind({"text": FORGED}))
            tx.run(attempt, bind({"id": run.id, "text": FORGED, "now": datetime.now(UTC)}))
    capsys.readouterr()
    for arguments in (["list"], ["list", "--json"], ["show", str(run.id)], ["show", str(run.id), "--json"]):
        assert main(["--database-url", url, "runs", *arguments]) == 0
        told = capsys.readouterr()
        assert told.err == ""
        assert all(character == "\n" or character.isprintable() for character in told.out), arguments
        assert not any(line.startswith("2026-01-01 00:00:00,000") for line in told.out.splitlines()), arguments
        if arguments == ["list"]:
            assert len(told.out.splitlines()) == 2
