"""durablestack enqueue"""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import click
import pytest

from durablestack import DurableStack, RunStatus
from durablestack.cli.moments import delay, moment


def test_enqueue_prints_the_id_of_the_run_and_nothing_else(console, on_sqlite: DurableStack):
    ended = console("enqueue", "send-email", '{"to": "ada@example.com"}')
    assert (ended.code, ended.err, len(ended.lines)) == (0, "", 1)
    run = on_sqlite.queries.get_run(UUID(ended.lines[0]))
    assert run is not None
    assert (run.job_name, run.status, run.payload) == ("send-email", RunStatus.PENDING, '{"to":"ada@example.com"}')


def test_enqueue_works_on_postgresql(console, on_postgres: DurableStack):
    assert console("migrate").code == 0
    ended = console("enqueue", "send-email", '{"to": "ada"}', "--count", 3, "--in", "1h")
    assert ended.code == 0
    assert {str(run.id) for run in on_postgres.queries.get_recent_runs()} == set(ended.lines)
    listed = console("runs", "list", "--json")
    assert {run["id"] for run in listed.document} == set(ended.lines)


def test_count_enqueues_as_many_and_prints_their_ids(console, on_sqlite: DurableStack):
    ended = console("enqueue", "tidy-up", "--count", 3)
    assert ended.code == 0
    assert {str(run.id) for run in on_sqlite.queries.get_recent_runs()} == set(ended.lines)
    assert len(ended.lines) == 3


def test_at_is_when_the_run_is_due(console, on_sqlite: DurableStack):
    ended = console("enqueue", "tidy-up", "--at", "2031-12-24T18:00:00+01:00")
    run = on_sqlite.queries.get_run(UUID(ended.lines[0]))
    assert run is not None
    assert run.scheduled_for == datetime(2031, 12, 24, 17, tzinfo=UTC)


@pytest.mark.parametrize("count", [1, 2])
def test_in_is_counted_from_now(console, on_sqlite: DurableStack, count: int):
    ended = console("enqueue", "tidy-up", "--in", "10m", "--count", count)
    for run_id in ended.lines:
        run = on_sqlite.queries.get_run(UUID(run_id))
        assert run is not None
        assert timedelta(minutes=9) < run.scheduled_for - datetime.now(UTC) < timedelta(minutes=11)


def test_the_same_run_id_is_stored_once(console, on_sqlite: DurableStack):
    run_id = uuid4()
    for _ in range(2):
        assert console("enqueue", "tidy-up", "--run-id", run_id).out == f"{run_id}\n"
    assert len(on_sqlite.queries.get_recent_runs()) == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("send-email", "{to: ada}"), "not JSON"),
        (("send-email", "[" * 100_000), "nested too deeply"),
        (("send-email", '{"to": 5}'), "$.to"),
        (("send-email", '{"copies": 5}'), "to"),
        (("send-email",), "takes Email"),
        (("send-email", '{"to": "ada", "copies": NaN}'), "not finite"),
        (("tidy-up", "{}"), "takes no arguments"),
        (("send-emial", "{}"), "send-emial"),
        (("tidy-up", "--at", "2031-12-24T18:00:00"), "time zone"),
        (("tidy-up", "--at", "tomorrow"), "ISO 8601"),
        (("tidy-up", "--at", "0001-01-01T00:00:00+14:00"), "calendar"),
        (("tidy-up", "--in", "soon"), "30s"),
        (("tidy-up", "--in", "-5m"), "--in"),
        (("tidy-up", "--in", "999999999d"), "ten years"),
        (("tidy-up", "--in", "1h", "--at", "2031-12-24T18:00:00Z"), "both given"),
        (("tidy-up", "--count", "0"), "--count"),
        (("tidy-up", "--count", "2", "--run-id", str(uuid4())), "--run-id"),
        (("tidy-up", "--run-id", "7"), "--run-id"),
        ((), "JOB"),
    ],
)
def test_bad_input_gets_one_sentence_exit_code_2_and_no_run(console, on_sqlite: DurableStack, arguments, expected):
    ended = console("enqueue", *arguments)
    assert ended.code == 2
    assert expected in ended.sentence
    assert on_sqlite.queries.get_recent_runs() == []


def test_enqueue_needs_an_application(console, stack):
    ended = console("enqueue", "tidy-up", "--database-url", "sqlite:///runs.db")
    assert ended.code == 2
    assert "--app" in ended.sentence


def test_enqueue_into_memory_is_refused(console):
    ended = console("-a", "cli_jobs", "enqueue", "tidy-up")
    assert ended.code == 2
    assert "memory" in ended.sentence


def test_a_refused_argument_is_not_repeated_since_it_may_be_secret(console, on_sqlite):
    ended = console("enqueue", "send-email", '{"to": 5, "token": "hunter22secret"}')
    assert "hunter22secret" not in ended.err


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("10m", 600), ("2h", 7200), ("1d", 86_400), ("1h30m", 5400), ("0s", 0)]
)
def test_a_delay_is_amounts_with_units(text, seconds):
    assert delay(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "5", "m", "5 m", "1.5h", "٣m", "1w", "-1s"])
def test_other_delays_are_refused(text):
    with pytest.raises(click.BadParameter):
        delay(text)


def test_a_moment_may_be_written_with_z():
    assert moment("2031-12-24T18:00Z") == datetime(2031, 12, 24, 18, tzinfo=UTC)
