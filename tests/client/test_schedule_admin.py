"""Schedules are looked after while the application runs; every error names the thing."""

from datetime import datetime, timedelta
from uuid import uuid4

import pytest
from msgspec.structs import replace

from durablestack import DurableStack, RunStatus
from durablestack.admin import ScheduleAdmin
from durablestack.errors import DurableStackError, ScheduleBusy, ScheduleError, StoreUnavailable
from durablestack.options import DurableStackOptions, ExistingJobBehavior
from durablestack.runs import Failed, Failure
from durablestack.schedules import Schedule
from durablestack.scheduling.recurring import Declaration, Recurrence, synced
from durablestack.stores.contract import Claim

HOUR = timedelta(hours=1)


@pytest.fixture
def admin(stack: DurableStack) -> ScheduleAdmin:
    """Of a database with three schedules, as workers have left them."""
    for job_name, recurrence in {
        "tidy": Recurrence(cron="0 * * * *"),
        "nightly": Recurrence(cron="0 2 * * *", time_zone="Europe/Berlin", enabled=False),
        "pulse": Recurrence(every=timedelta(seconds=90), allow_concurrent_runs=True),
    }.items():
        declared = Declaration(
            job_name=job_name, recurrence=recurrence, payload='{"to":"ada"}', max_attempts=4, application="shop"
        )
        stack.store.change_schedule(job_name, synced(declared, ExistingJobBehavior.KEEP_DATABASE))
    return stack.schedules


def alter(stack: DurableStack, job_name: str, **fields: object) -> None:
    def alter(stored: Schedule | None, now: datetime) -> Schedule:
        assert stored is not None
        return replace(stored, **fields)  # type: ignore[arg-type]

    stack.store.change_schedule(job_name, alter)


# --- list


def test_enabled_schedules_are_listed_and_the_disabled_ones_if_asked_for(admin: ScheduleAdmin) -> None:
    assert [schedule.job_name for schedule in admin.list_scheduled_jobs()] == ["pulse", "tidy"]
    assert [schedule.job_name for schedule in admin.list_scheduled_jobs(True)] == ["nightly", "pulse", "tidy"]


def test_a_schedule_says_for_people_when_it_recurs(admin: ScheduleAdmin) -> None:
    assert admin.get_scheduled_job("tidy").recurs == "0 * * * *"
    assert admin.get_scheduled_job("pulse").recurs == "every 0:01:30"


def test_an_application_without_schedules_has_none(stack: DurableStack) -> None:
    assert stack.schedules.list_scheduled_jobs(include_disabled=True) == []
    with pytest.raises(ScheduleError, match="there are: none"):
        stack.schedules.get_scheduled_job("tidy")


# --- enable, disable


def test_a_disabled_schedule_has_no_next_run_until_it_is_enabled(stack: DurableStack, admin: ScheduleAdmin) -> None:
    alter(stack, "tidy", next_run_at=stack.store.now() - 5 * HOUR, last_slot=stack.store.now() - 6 * HOUR)
    disabled = admin.set_scheduled_job_enabled("tidy", False)
    assert (disabled.enabled, disabled.next_run_at) == (False, None)
    assert disabled == admin.get_scheduled_job("tidy")
    before = stack.store.now()
    enabled = admin.set_scheduled_job_enabled("tidy", True)
    assert enabled.next_run_at is not None
    assert before < enabled.next_run_at <= before + HOUR
    assert enabled.last_slot == disabled.last_slot


def test_enabling_what_is_enabled_loses_no_slot(stack: DurableStack, admin: ScheduleAdmin) -> None:
    due = stack.store.now() - 5 * HOUR
    alter(stack, "tidy", next_run_at=due)
    assert admin.set_scheduled_job_enabled("tidy", True).next_run_at == due


def test_an_orphan_that_an_administrator_touches_is_no_orphan_any_more(
    stack: DurableStack, admin: ScheduleAdmin
) -> None:
    for enabled in (True, False):
        alter(stack, "tidy", enabled=False, next_run_at=None, orphaned_at=stack.store.now())
        left = admin.set_scheduled_job_enabled("tidy", enabled)
        assert (left.enabled, left.orphaned_at) == (enabled, None)


# --- update


def test_a_cron_expression_counts_from_now_on(stack: DurableStack, admin: ScheduleAdmin) -> None:
    alter(stack, "tidy", next_run_at=stack.store.now() - 5 * HOUR, error_message="cannot be read")
    left = admin.update_scheduled_job_cron("tidy", "0 9 * * *", "Asia/Tokyo")
    assert (left.cron_expression, left.time_zone, left.error_message) == ("0 9 * * *", "Asia/Tokyo", None)
    assert left.next_run_at is not None
    assert left.next_run_at > stack.store.now()
    assert (left.next_run_at.hour, left.next_run_at.minute) == (0, 0)


def test_the_zone_stays_unless_one_is_given(admin: ScheduleAdmin) -> None:
    assert admin.update_scheduled_job_cron("nightly", "0 3 * * *").time_zone == "Europe/Berlin"


def test_an_interval_becomes_a_cron_expression(admin: ScheduleAdmin) -> None:
    left = admin.update_scheduled_job_cron("pulse", "* * * * *")
    assert (left.cron_expression, left.every, left.allow_concurrent_runs) == ("* * * * *", None, True)


def test_a_disabled_schedule_is_updated_and_stays_disabled(admin: ScheduleAdmin) -> None:
    left = admin.update_scheduled_job_cron("nightly", "0 3 * * *")
    assert (left.cron_expression, left.enabled, left.next_run_at) == ("0 3 * * *", False, None)


def test_the_same_expression_again_loses_no_slot(stack: DurableStack, admin: ScheduleAdmin) -> None:
    due = stack.store.now() - 5 * HOUR
    alter(stack, "tidy", next_run_at=due)
    assert admin.update_scheduled_job_cron("tidy", "0 * * * *").next_run_at == due


@pytest.mark.parametrize("job_name", ["tidy", "nightly", "pulse"])
@pytest.mark.parametrize(
    ("cron_expression", "time_zone", "part"),
    [("0 2 * *", None, "4 fields"), ("0 2 * * *", "Atlantis", "Atlantis"), ("0 0 31 2 *", None, "never fires")],
)
def test_what_cannot_be_meant_changes_nothing_and_is_told_with_its_job(
    admin: ScheduleAdmin, job_name: str, cron_expression: str, time_zone: str | None, part: str
) -> None:
    before = admin.get_scheduled_job(job_name)
    with pytest.raises(ScheduleError) as error:
        admin.update_scheduled_job_cron(job_name, cron_expression, time_zone)
    assert repr(job_name) in str(error.value)
    assert part in str(error.value)
    assert admin.get_scheduled_job(job_name) == before


def test_a_schedule_that_cannot_be_read_is_told_with_its_job_and_can_be_mended(
    stack: DurableStack, admin: ScheduleAdmin
) -> None:
    alter(stack, "nightly", cron_expression="garbage", time_zone="Atlantis")
    with pytest.raises(ScheduleError, match="'nightly'"):
        admin.set_scheduled_job_enabled("nightly", True)
    with pytest.raises(ScheduleError, match="Atlantis"):
        admin.update_scheduled_job_cron("nightly", "0 2 * * *")
    admin.update_scheduled_job_cron("nightly", "0 2 * * *", "UTC")
    assert admin.set_scheduled_job_enabled("nightly", True).next_run_at is not None


# --- run now


def test_a_run_now_is_enqueued_and_the_schedule_stays_as_it_is(stack: DurableStack, admin: ScheduleAdmin) -> None:
    before = admin.list_scheduled_jobs(True)
    for job_name in ("tidy", "nightly"):
        run = stack.queries.get_run(admin.run_scheduled_job_now(job_name))
        assert run is not None
        assert (run.job_name, run.status, run.payload, run.max_attempts) == (
            job_name,
            RunStatus.PENDING,
            '{"to":"ada"}',
            4,
        )
        assert run.slot is None
    assert admin.list_scheduled_jobs(True) == before


def test_a_run_now_that_would_overlap_is_refused(stack: DurableStack, admin: ScheduleAdmin) -> None:
    admin.run_scheduled_job_now("tidy")
    with pytest.raises(ScheduleBusy, match="'tidy'"):
        admin.run_scheduled_job_now("tidy")
    claim = Claim(worker_name="w", lease_token=uuid4(), job_names=["tidy"], batch_size=1, lease_duration=HOUR)
    (run,) = stack.store.claim_due_runs(claim).runs
    with pytest.raises(ScheduleBusy):
        admin.run_scheduled_job_now("tidy")
    stack.store.record([Failed(run.lease, Failure(error_type="E", error_message="no"), None)])
    admin.run_scheduled_job_now("tidy")


def test_runs_that_may_overlap_are_run_now_as_often_as_one_likes(admin: ScheduleAdmin) -> None:
    assert len({admin.run_scheduled_job_now("pulse") for _ in range(3)}) == 3


def test_a_supervisor_in_this_process_is_woken(stack: DurableStack, admin: ScheduleAdmin) -> None:
    woken: list[None] = []
    stack.add_waker(lambda: woken.append(None))
    admin.run_scheduled_job_now("tidy")
    assert len(woken) == 1


# --- errors


def test_an_unknown_job_is_told_with_those_that_are_known(admin: ScheduleAdmin) -> None:
    for call in (
        lambda: admin.get_scheduled_job("unknown"),
        lambda: admin.set_scheduled_job_enabled("unknown", True),
        lambda: admin.update_scheduled_job_cron("unknown", "0 2 * * *"),
        lambda: admin.update_scheduled_job_cron("unknown", "garbage"),
        lambda: admin.run_scheduled_job_now("unknown"),
    ):
        with pytest.raises(ScheduleError) as error:
            call()
        assert str(error.value) == "there is no schedule of a job 'unknown'; there are: nightly, pulse, tidy"


def test_a_database_that_is_away_is_told_as_everywhere() -> None:
    options = DurableStackOptions(database_url="postgresql://localhost:1/nowhere", operation_timeout_seconds=1)
    with DurableStack(options=options) as stack, pytest.raises(StoreUnavailable):
        stack.schedules.list_scheduled_jobs()


def test_schedule_errors_are_ours() -> None:
    assert issubclass(ScheduleBusy, ScheduleError)
    assert issubclass(ScheduleError, DurableStackError)


# --- who declares schedules


def test_an_application_is_called_by_its_modules_or_as_it_is_told() -> None:
    options = DurableStackOptions()
    assert DurableStack("shop.jobs", "billing", options=options).application_name == "shop.jobs,billing"
    assert DurableStack("shop", options=DurableStackOptions(application_name="Shop")).application_name == "Shop"
    assert len(DurableStack(*(f"module{number}" for number in range(100)), options=options).application_name) == 200


def test_an_application_without_modules_is_not_mistaken_for_another_one() -> None:
    assert DurableStack(options=DurableStackOptions()).application_name != ""
