"""durablestack schedules list, enable, disable, update, run"""

from datetime import datetime, timedelta
from uuid import UUID

import pytest
from cli_situations import PASSWORD, unreachable_url
from msgspec.structs import replace

from durablestack import DurableStack, RunStatus
from durablestack.options import ExistingJobBehavior
from durablestack.schedules import Schedule
from durablestack.scheduling.recurring import Declaration, Recurrence, synced

HOSTILE = "\x1b[2J [red]no markup[/red] \u202e\n"


def declare(stack: DurableStack, job_name: str, **fields: object) -> None:
    """As a worker with this job in its code does it."""
    recurs = {} if "every" in fields else {"cron": "0 * * * *"}
    declared = Declaration(
        job_name=job_name,
        recurrence=Recurrence(**{**recurs, **fields}),  # type: ignore[arg-type]
        payload='{"to":"Zoë"}',
        max_attempts=3,
        application="shop",
    )
    stack.store.change_schedule(job_name, synced(declared, ExistingJobBehavior.KEEP_DATABASE))


def alter(stack: DurableStack, job_name: str, **fields: object) -> None:
    def alter(stored: Schedule | None, now: datetime) -> Schedule:
        assert stored is not None
        return replace(stored, **fields)  # type: ignore[arg-type]

    stack.store.change_schedule(job_name, alter)


@pytest.fixture
def scheduled(on_sqlite: DurableStack, monkeypatch: pytest.MonkeyPatch) -> DurableStack:
    """Two schedules in the database; the console knows the database, and no application."""
    monkeypatch.delenv("DURABLESTACK_APP")
    declare(on_sqlite, "tidy-up")
    declare(on_sqlite, "at-night", cron="0 2 * * *", time_zone="Europe/Berlin", enabled=False)
    return on_sqlite


def cells(ended, job_name: str) -> list[str]:
    """The row of a job; columns are two spaces apart."""
    assert ended.code == 0, ended.err
    (line,) = [line for line in ended.lines if line.startswith(job_name)]
    return [cell for cell in line.split("  ") if cell]


# --- list


def test_list_shows_the_enabled_schedules_a_line_each(console, scheduled):
    schedule = scheduled.schedules.get_scheduled_job("tidy-up")
    ended = console("schedules", "list")
    assert len(ended.lines) == 2
    assert ended.lines[0].split("  ")[0] == "job"
    next_run = f"{schedule.next_run_at:%Y-%m-%d %H:%M:%S}Z"
    assert [cell.strip() for cell in cells(ended, "tidy-up")] == ["tidy-up", "0 * * * *", "UTC", "yes", next_run]


def test_list_all_shows_the_disabled_ones_too(console, scheduled):
    ended = console("schedules", "list", "--all")
    assert [cell.strip() for cell in cells(ended, "at-night")] == ["at-night", "0 2 * * *", "Europe/Berlin", "no"]
    assert cells(ended, "tidy-up")


def test_list_shows_the_last_slot_the_error_and_since_when_nobody_has_it_in_his_code(console, scheduled):
    slot = datetime.fromisoformat("2030-01-02T03:04:05Z")
    alter(scheduled, "tidy-up", last_slot=slot, error_message="cron expression 'garbage' has 1 fields")
    alter(scheduled, "at-night", orphaned_at=slot)
    ended = console("schedules", "list", "--all")
    assert "2030-01-02 03:04:05Z  cron expression 'garbage' has 1 fields" in ended.out
    assert "no, in nobody's code since 2030-01-02 03:04:05Z" in ended.out


def test_list_shows_intervals(console, scheduled):
    declare(scheduled, "pulse", every=timedelta(seconds=90))
    assert "every 0:01:30" in console("schedules", "list").out


def test_list_as_json_is_one_document_with_the_arguments_inside(console, scheduled):
    (document,) = console("schedules", "list", "--json").document
    assert (document["job_name"], document["cron_expression"], document["enabled"]) == ("tidy-up", "0 * * * *", True)
    assert document["payload"] == {"to": "Zoë"}
    assert len(console("schedules", "list", "--all", "--json").document) == 2


def test_an_empty_list_is_empty_on_standard_output(console, on_sqlite):
    assert console("schedules", "list") == (
        0,
        "",
        "no enabled schedules; a supervisor stores those of its jobs when it starts\n",
    )
    assert console("schedules", "list", "--all") == (
        0,
        "",
        "no schedules; a supervisor stores those of its jobs when it starts\n",
    )
    assert console("schedules", "list", "--json").document == []


def test_what_stands_in_the_table_cannot_command_the_terminal(console, scheduled):
    alter(scheduled, "tidy-up", error_message=HOSTILE, cron_expression=HOSTILE, time_zone=HOSTILE)
    for arguments in (("list",), ("list", "--json"), ("disable", "tidy-up")):
        out = console("schedules", *arguments).out
        assert out.count("[red]no markup[/red]") >= 1
        assert all(character == "\n" or character.isprintable() for character in out)


# --- enable, disable, update


def test_a_schedule_is_disabled_and_enabled(console, scheduled):
    ended = console("schedules", "disable", "tidy-up")
    assert (ended.code, ended.out) == (0, "tidy-up: 0 * * * * in UTC, disabled\n")
    assert not scheduled.schedules.get_scheduled_job("tidy-up").enabled
    ended = console("schedules", "enable", "tidy-up")
    schedule = scheduled.schedules.get_scheduled_job("tidy-up")
    assert schedule.next_run_at is not None
    assert ended.out == f"tidy-up: 0 * * * * in UTC, next run {schedule.next_run_at:%Y-%m-%d %H:%M:%S}Z\n"


def test_a_schedule_is_updated(console, scheduled):
    ended = console("schedules", "update", "tidy-up", "*/20 * * * * *", "--tz", "Asia/Tokyo")
    assert ended.code == 0
    assert ended.out.startswith("tidy-up: */20 * * * * * in Asia/Tokyo, next run 2")
    schedule = scheduled.schedules.get_scheduled_job("tidy-up")
    assert (schedule.cron_expression, schedule.time_zone) == ("*/20 * * * * *", "Asia/Tokyo")


def test_the_zone_stays_unless_one_is_given(console, scheduled):
    ended = console("schedules", "update", "at-night", "0 3 * * *")
    assert ended.out == "at-night: 0 3 * * * in Europe/Berlin, disabled\n"


# --- run


def test_run_prints_the_id_of_the_new_run(console, scheduled):
    ended = console("schedules", "run", "tidy-up")
    (run_id,) = ended.lines
    run = scheduled.queries.get_run(UUID(run_id))
    assert run is not None
    assert (run.job_name, run.status, run.slot) == ("tidy-up", RunStatus.PENDING, None)


def test_a_run_that_would_overlap_is_refused(console, scheduled):
    assert console("schedules", "run", "tidy-up").code == 0
    ended = console("schedules", "run", "tidy-up")
    assert ended.code == 2
    assert "'tidy-up' is pending or leased" in ended.sentence


# --- errors


@pytest.mark.parametrize(
    "arguments", [("enable", "nope"), ("disable", "nope"), ("update", "nope", "0 2 * * *"), ("run", "nope")]
)
def test_an_unknown_job_is_bad_input_and_the_known_ones_are_named(console, scheduled, arguments):
    ended = console("schedules", *arguments)
    assert ended.code == 2
    assert ended.sentence == "there is no schedule of a job 'nope'; there are: at-night, tidy-up"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("0 2 * *",), "has 4 fields"),
        (("@daily",), "write '0 0 * * *'"),
        (("0 2 * * *", "--tz", "Atlantis"), "'Atlantis' is not known"),
        (("0 2 * * *", "--tz", "Eastern Standard Time"), "America/New_York"),
        ((), "Missing argument 'CRON'"),
        (("0", "2", "*", "*", "*"), "unexpected extra arguments"),
    ],
)
def test_an_expression_that_cannot_be_meant_is_bad_input_and_changes_nothing(console, scheduled, arguments, part):
    before = scheduled.schedules.get_scheduled_job("tidy-up")
    ended = console("schedules", "update", "tidy-up", *arguments)
    assert ended.code == 2
    assert part in ended.sentence
    assert scheduled.schedules.get_scheduled_job("tidy-up") == before


def test_a_database_without_tables_is_told_how_to_get_them(console):
    ended = console("schedules", "list", "--database-url", "sqlite:///nowhere.db")
    assert ended.code == 3
    assert "durablestack migrate" in ended.sentence


def test_a_database_that_is_away_is_exit_code_3_and_no_password_is_shown(console):
    ended = console("schedules", "list", "--database-url", unreachable_url())
    assert ended.code == 3
    assert PASSWORD not in ended.sentence


def test_schedules_need_no_application(process, scheduled):
    ended = process("schedules", "list", "--database-url", "sqlite:///runs.db")
    assert (ended.code, ended.err) == (0, "")
    assert "tidy-up" in ended.out
