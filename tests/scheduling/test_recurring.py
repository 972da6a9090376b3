"""Which slot is due, what becomes of missed ones, and what code and database agree on: functions of two instants."""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from durablestack.errors import ScheduleError
from durablestack.options import CatchUpPolicy, ExistingJobBehavior
from durablestack.schedules import Schedule, Slot
from durablestack.scheduling import recurring
from durablestack.scheduling.recurring import (
    Declaration,
    Recurrence,
    orphaned,
    rescheduled,
    slot_due,
    synced,
    trigger,
    trigger_of,
)

NOON = datetime(2030, 1, 2, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)
EVERY_SECOND = "* * * * * *"
SHOP = "shop"

skip_missed = slot_due(CatchUpPolicy.SKIP_MISSED)
catch_up = slot_due(CatchUpPolicy.CATCH_UP)


def schedule(**fields: object) -> Schedule:
    values = {
        "job_name": "tidy",
        "application": SHOP,
        "next_run_at": NOON,
        "seen_at": NOON,
        "created_at": NOON,
        "updated_at": NOON,
    }
    if not {"cron_expression", "every"} & fields.keys():
        values["cron_expression"] = "0 * * * *"
    return Schedule(**{**values, **fields})  # type: ignore[arg-type]


def declaration(job_name: str = "tidy", **fields: object) -> Declaration:
    recurs = {} if "every" in fields else {"cron": "0 * * * *"}
    return Declaration(
        job_name=job_name,
        recurrence=Recurrence(**{**recurs, **fields}),  # type: ignore[arg-type]
        payload='{"to":"ada"}',
        max_attempts=5,
        application=SHOP,
    )


def every_due(due: Callable[[Schedule, datetime], Slot | None], stored: Schedule, now: datetime) -> list[datetime]:
    """The slots that a scheduler makes one after the other while the clock stands still."""
    slots = []
    while (found := due(stored, now)) is not None:
        if found.at is not None:
            slots.append(found.at)
        stored = replace(stored, next_run_at=found.next_run_at, last_slot=found.at or stored.last_slot)
    return slots


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[datetime]:
    """Every instant after which a trigger was asked for the next one."""
    instants: list[datetime] = []

    class Counted:
        def __init__(self, stored: Schedule) -> None:
            self.trigger = trigger_of(stored)

        def next_after(self, instant: datetime) -> datetime:
            instants.append(instant)
            return self.trigger.next_after(instant)

    monkeypatch.setattr(recurring, "trigger_of", Counted)
    return instants


# --- slots


def test_nothing_is_due_before_its_time() -> None:
    assert skip_missed(schedule(), NOON - SECOND) is None
    assert catch_up(schedule(), NOON - SECOND) is None


def test_a_schedule_without_a_next_run_is_not_due() -> None:
    assert skip_missed(schedule(next_run_at=None), NOON) is None


@pytest.mark.parametrize("due", [skip_missed, catch_up])
def test_a_slot_is_due_at_its_instant_and_the_next_one_follows(due: Callable[..., Slot | None]) -> None:
    assert due(schedule(), NOON) == Slot(NOON, NOON + HOUR)


def test_skip_missed_runs_the_latest_of_what_was_missed_once() -> None:
    now = NOON + 5.5 * HOUR
    assert skip_missed(schedule(), now) == Slot(NOON + 5 * HOUR, NOON + 6 * HOUR)
    assert every_due(skip_missed, schedule(), now) == [NOON + 5 * HOUR]


def test_catch_up_runs_all_that_was_missed_one_after_the_other() -> None:
    now = NOON + 5.5 * HOUR
    assert catch_up(schedule(), now) == Slot(NOON, NOON + HOUR)
    assert every_due(catch_up, schedule(), now) == [NOON + hours * HOUR for hours in range(6)]


@pytest.mark.parametrize(("missed", "asked_max"), [(HOUR, 20), (timedelta(days=30), 30)])
@pytest.mark.parametrize("fraction", [timedelta(0), timedelta(microseconds=1), timedelta(microseconds=999_999)])
def test_it_hardly_matters_how_long_a_schedule_of_every_second_was_left_alone(
    asked: list[datetime], missed: timedelta, asked_max: int, fraction: timedelta
) -> None:
    latest = NOON + missed
    assert skip_missed(schedule(cron_expression=EVERY_SECOND), latest + fraction) == Slot(latest, latest + SECOND)
    assert len(asked) <= asked_max


def test_an_interval_of_a_second_is_found_at_once_after_years() -> None:
    latest = NOON + timedelta(days=3000)
    assert skip_missed(schedule(every=SECOND), latest + SECOND / 2) == Slot(latest, latest + SECOND)


def test_an_interval_keeps_its_step_and_its_fraction() -> None:
    first, every = NOON + timedelta(milliseconds=250), timedelta(milliseconds=1500)
    stored = schedule(every=every, next_run_at=first)
    now = NOON + timedelta(seconds=10)
    assert skip_missed(stored, now) == Slot(first + 6 * every, first + 7 * every)
    assert every_due(catch_up, stored, now) == [first + number * every for number in range(7)]


@pytest.mark.parametrize("due", [skip_missed, catch_up])
def test_a_clock_that_went_back_makes_no_slot_again(due: Callable[..., Slot | None]) -> None:
    stored = schedule(next_run_at=NOON - 2 * HOUR, last_slot=NOON)
    assert due(stored, NOON - HOUR) == Slot(None, NOON + HOUR)


def test_a_next_run_that_was_set_back_makes_no_slot_again_and_loses_none_that_is_to_be_caught_up() -> None:
    stored = schedule(next_run_at=NOON - 5 * HOUR, last_slot=NOON)
    now = NOON + 3 * HOUR
    assert every_due(catch_up, stored, now) == [NOON + HOUR, NOON + 2 * HOUR, NOON + 3 * HOUR]
    assert every_due(skip_missed, stored, now) == [NOON + 3 * HOUR]


EXPRESSIONS = [
    ("*/7 * * * *", timedelta(hours=30)),
    ("30 2 * * *", timedelta(days=12)),
    ("0,30 */3 * * mon-fri", timedelta(days=6)),
    ("*/20 59 1,2 * * *", timedelta(days=4)),
    ("15 4 1,15 * fri", timedelta(days=80)),
    ("0 0 29 2 *", timedelta(days=3000)),
    (EVERY_SECOND, timedelta(minutes=10)),
]
# the clocks change: forward and back, by half an hour, and at midnight
PLACES = [
    ("UTC", datetime(2026, 3, 29, tzinfo=UTC)),
    ("Europe/Berlin", datetime(2026, 3, 29, tzinfo=UTC)),
    ("Europe/Berlin", datetime(2026, 10, 25, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 4, 4, 15, tzinfo=UTC)),
    ("Africa/Cairo", datetime(2026, 4, 23, 22, tzinfo=UTC)),
]


@pytest.mark.parametrize(("expression", "span"), EXPRESSIONS)
@pytest.mark.parametrize(("zone", "around"), PLACES)
def test_the_latest_slot_is_the_one_that_a_walk_from_slot_to_slot_ends_at(
    expression: str, span: timedelta, zone: str, around: datetime
) -> None:
    seeded = random.Random(f"{expression} {zone} {around}")
    recurs = trigger(expression, None, zone)
    for _ in range(12):
        first = recurs.next_after(around - span * seeded.random())
        now = first + span * seeded.random() ** 3
        walked = first
        while (following := recurs.next_after(walked)) <= now:
            walked = following
        stored = schedule(cron_expression=expression, time_zone=zone, next_run_at=first)
        assert skip_missed(stored, now) == Slot(walked, following), (first, now)


def test_a_schedule_that_cannot_be_read_says_why() -> None:
    for broken in (
        schedule(cron_expression="garbage"),
        schedule(time_zone="Atlantis"),
        schedule(every=timedelta(0)),
        schedule(cron_expression=None, every=None),
    ):
        with pytest.raises(ScheduleError):
            skip_missed(broken, NOON)


# --- what code and database agree on

KEEP, UPDATE = ExistingJobBehavior.KEEP_DATABASE, ExistingJobBehavior.UPDATE_FROM_CODE
LATER = NOON + timedelta(minutes=90)
both_behaviors = pytest.mark.parametrize("behavior", [KEEP, UPDATE])


def sync(stored: Schedule | None, declared: Declaration, behavior: ExistingJobBehavior) -> Schedule:
    return synced(declared, behavior)(stored, LATER)


@both_behaviors
def test_what_is_only_in_code_is_stored_with_its_next_run(behavior: ExistingJobBehavior) -> None:
    declared = declaration(cron="0 2 * * *", time_zone="Europe/Berlin", allow_concurrent_runs=True)
    new = sync(None, declared, behavior)
    assert (new.cron_expression, new.every, new.time_zone) == ("0 2 * * *", None, "Europe/Berlin")
    assert (new.payload, new.max_attempts, new.application) == ('{"to":"ada"}', 5, SHOP)
    assert (new.enabled, new.allow_concurrent_runs, new.seen_at) == (True, True, LATER)
    assert (new.next_run_at, new.last_slot) == (datetime(2030, 1, 3, 1, tzinfo=UTC), None)


def test_what_is_declared_disabled_is_stored_without_a_next_run() -> None:
    new = sync(None, declaration(enabled=False), KEEP)
    assert (new.enabled, new.next_run_at) == (False, None)


def test_a_new_interval_begins_one_interval_from_now() -> None:
    assert sync(None, declaration(every=HOUR), KEEP).next_run_at == LATER + HOUR


@both_behaviors
def test_what_is_the_same_in_both_keeps_its_slots_also_those_that_wait(behavior: ExistingJobBehavior) -> None:
    stored = schedule(last_slot=NOON - HOUR, error_message="once")
    left = sync(stored, declaration(), behavior)
    assert (left.next_run_at, left.last_slot, left.created_at) == (NOON, NOON - HOUR, NOON)


@both_behaviors
def test_how_runs_are_made_is_always_the_codes(behavior: ExistingJobBehavior) -> None:
    left = sync(schedule(payload="1", max_attempts=1), declaration(allow_concurrent_runs=True), behavior)
    assert (left.payload, left.max_attempts, left.allow_concurrent_runs) == ('{"to":"ada"}', 5, True)
    assert (left.next_run_at, left.seen_at) == (NOON, LATER)


def test_keep_database_keeps_when_it_recurs_and_whether() -> None:
    stored = schedule(cron_expression="5 * * * *", time_zone="Asia/Tokyo", application="other")
    left = sync(stored, declaration(cron="0 2 * * *", enabled=False), KEEP)
    assert (left.cron_expression, left.time_zone, left.enabled) == ("5 * * * *", "Asia/Tokyo", True)
    assert (left.next_run_at, left.application) == (NOON, "other")


def test_keep_database_leaves_what_an_administrator_disabled() -> None:
    left = sync(schedule(enabled=False, next_run_at=None), declaration(), KEEP)
    assert (left.enabled, left.next_run_at) == (False, None)


@pytest.mark.parametrize(
    "declared",
    [declaration(cron="5 * * * *"), declaration(every=HOUR), declaration(time_zone="Asia/Kolkata")],
)
def test_update_from_code_lets_it_recur_as_in_code_from_now_on(declared: Declaration) -> None:
    left = sync(schedule(last_slot=NOON - HOUR), declared, UPDATE)
    code = declared.recurrence
    assert (left.cron_expression, left.every, left.time_zone) == (code.cron, code.every, code.time_zone)
    assert left.next_run_at == trigger_of(left).next_after(LATER)
    assert left.last_slot == NOON - HOUR


def test_update_from_code_mends_what_cannot_be_read() -> None:
    left = sync(schedule(cron_expression="garbage", error_message="garbage"), declaration(), UPDATE)
    assert (left.cron_expression, left.next_run_at, left.error_message) == ("0 * * * *", NOON + 2 * HOUR, None)


def test_update_from_code_enables_and_disables_as_in_code() -> None:
    enabled = sync(schedule(enabled=False, next_run_at=None), declaration(), UPDATE)
    assert (enabled.enabled, enabled.next_run_at) == (True, NOON + 2 * HOUR)
    disabled = sync(schedule(), declaration(enabled=False), UPDATE)
    assert (disabled.enabled, disabled.next_run_at) == (False, None)


@both_behaviors
def test_an_orphan_that_returns_is_enabled_from_now_on(behavior: ExistingJobBehavior) -> None:
    stored = schedule(enabled=False, next_run_at=None, orphaned_at=NOON)
    left = sync(stored, declaration(), behavior)
    assert (left.enabled, left.orphaned_at, left.next_run_at) == (True, None, NOON + 2 * HOUR)


def test_keeping_what_cannot_be_computed_is_told() -> None:
    with pytest.raises(ScheduleError):
        sync(schedule(cron_expression="garbage", next_run_at=None), declaration(), KEEP)


# --- orphans

UNSEEN_FOR = timedelta(minutes=1)


def orphan(stored: Schedule | None, now: datetime = LATER) -> Schedule | None:
    return orphaned(SHOP, UNSEEN_FOR)(stored, now)


def test_a_schedule_that_nobody_has_seen_for_long_enough_is_disabled() -> None:
    left = orphan(schedule(last_slot=NOON))
    assert left is not None
    assert (left.enabled, left.next_run_at, left.orphaned_at, left.last_slot) == (False, None, LATER, NOON)
    assert orphan(schedule(), NOON + UNSEEN_FOR) is not None


def test_other_schedules_are_left_alone() -> None:
    assert orphan(None) is None
    assert orphan(schedule(), NOON + UNSEEN_FOR - timedelta(microseconds=1)) is None, "somebody has it in his code"
    assert orphan(schedule(application="another")) is None
    assert orphan(schedule(enabled=False, next_run_at=None)) is None


def test_an_orphan_that_cannot_be_read_is_disabled_all_the_same() -> None:
    left = orphan(schedule(cron_expression="garbage"))
    assert left is not None
    assert not left.enabled


# --- enabling


def test_enabling_goes_on_from_now_whatever_stands_in_the_row_of_a_disabled_schedule() -> None:
    for before in (schedule(enabled=False, next_run_at=None), schedule(enabled=False, next_run_at=NOON)):
        assert rescheduled(replace(before, enabled=True), before, LATER).next_run_at == NOON + 2 * HOUR


def test_enabling_what_is_enabled_loses_no_slot_that_waits() -> None:
    assert rescheduled(schedule(), schedule(), LATER).next_run_at == NOON


def test_a_slot_that_was_dealt_with_while_the_clock_was_wrong_does_not_hold_up_what_is_asked_for_now() -> None:
    ahead = schedule(cron_expression="* * * * *", enabled=False, next_run_at=None, last_slot=NOON + timedelta(days=365))
    enabled = rescheduled(replace(ahead, enabled=True), ahead, NOON)
    assert enabled.last_slot is None
    assert enabled.next_run_at == NOON + timedelta(minutes=1)
