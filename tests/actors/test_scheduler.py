"""The scheduler keeps schedules in step with the code, and makes the run of each slot, whatever ails the others."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import anyio
import pytest
from msgspec.structs import replace
from parts import NOON, leased_run

from durablestack.errors import StoreUnavailable
from durablestack.jobs import JobRegistry
from durablestack.options import CatchUpPolicy, ExistingJobBehavior, OrphanedJobBehavior, RecurringOptions
from durablestack.options.groups import RegistrationSyncOptions
from durablestack.runs import Succeeded
from durablestack.schedules import Schedule
from durablestack.stores.contract import Claim, Store
from durablestack.stores.memory import InMemoryStore
from durablestack.supervisor import scheduler as module
from durablestack.supervisor.scheduler import ORPHANED_AFTER, Scheduler

pytestmark = pytest.mark.anyio

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
SHOP = "shop"
NEVER_SECONDS = 3600.0


class Wall:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def store(wall: Wall) -> InMemoryStore:
    return InMemoryStore(wall)


class Failing:
    """A store that does not answer, as often as told."""

    def __init__(self, store: Store, **failures: int) -> None:
        self._store = store
        self.failures = failures
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def ask(*arguments: Any) -> Any:
            self.asked.append(name)
            if self.failures.get(name, 0) > 0:
                self.failures[name] -= 1
                raise StoreUnavailable("away")
            return getattr(self._store, name)(*arguments)

        return ask


def job(name: str) -> Callable[[], None]:
    def execute() -> None: ...

    execute.__name__ = name
    return execute


def jobs(*names: str, **recurrence: Any) -> JobRegistry:
    registry = JobRegistry([job("does-not-recur")])
    for name in names:
        registry.add(job(name), **({"cron": "0 * * * *"} | recurrence))
    return registry


def new_scheduler(
    store: Any,
    registry: JobRegistry,
    *,
    policy: CatchUpPolicy = CatchUpPolicy.SKIP_MISSED,
    existing: ExistingJobBehavior = ExistingJobBehavior.KEEP_DATABASE,
    orphaned: OrphanedJobBehavior = OrphanedJobBehavior.DISABLE,
    application: str = SHOP,
    poll_interval_seconds: float = NEVER_SECONDS,
    on_enqueued: Callable[[], None] = lambda: None,
) -> Scheduler:
    sync = RegistrationSyncOptions(existing_job_behavior=existing, orphaned_job_behavior=orphaned)
    return Scheduler(
        store,
        registry,
        RecurringOptions(catch_up_policy=policy, registration_sync=sync),
        application=application,
        poll_interval_seconds=poll_interval_seconds,
        on_enqueued=on_enqueued,
    )


@asynccontextmanager
async def running(scheduler: Scheduler) -> AsyncIterator[None]:
    async with anyio.create_task_group() as group:
        group.start_soon(scheduler.run)
        with anyio.fail_after(20):
            yield
        group.cancel_scope.cancel()


async def eventually(look: Callable[[], object]) -> None:
    while not look():
        await anyio.sleep(0.005)


def alter(store: Store, job_name: str, **fields: Any) -> Schedule:
    def alter(stored: Schedule | None, now: datetime) -> Schedule:
        assert stored is not None
        return replace(stored, **fields)

    altered = store.change_schedule(job_name, alter)
    assert altered is not None
    return altered


def the_schedule(store: Store, job_name: str) -> Schedule:
    schedule = store.get_schedule(job_name)
    assert schedule is not None
    return schedule


def slots(store: Store, job_name: str) -> list[datetime]:
    return sorted(run.slot for run in store.list_runs(take=10_000, job_name=job_name) if run.slot is not None)


def end_all(store: Store, job_names: Collection[str]) -> None:
    claim = Claim(
        worker_name="w", lease_token=uuid4(), job_names=job_names, batch_size=100, lease_duration=timedelta(minutes=1)
    )
    store.record([Succeeded(run.lease) for run in store.claim_due_runs(claim).runs])


async def look_for_orphans(scheduler: Scheduler) -> None:
    scheduler._say_seen_at = 0.0
    await scheduler._keep_seen()


# --- registration sync


async def test_what_recurs_in_code_is_stored_and_nothing_else(store: InMemoryStore) -> None:
    await new_scheduler(store, jobs("tidy", "bill"))._synchronize()
    assert [schedule.job_name for schedule in store.list_schedules()] == ["bill", "tidy"]
    assert {schedule.application for schedule in store.list_schedules()} == {SHOP}


async def test_keep_database_keeps_it_and_tells_where_it_differs(
    store: InMemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    await new_scheduler(store, jobs("tidy", "same"))._synchronize()
    alter(store, "tidy", cron_expression="5 * * * *")
    await new_scheduler(store, jobs("tidy", "same"))._synchronize()
    assert the_schedule(store, "tidy").cron_expression == "5 * * * *"
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "tidy" in record.getMessage()
    assert "'5 * * * *'" in record.getMessage()


async def test_update_from_code_takes_it_back(store: InMemoryStore, caplog: pytest.LogCaptureFixture) -> None:
    await new_scheduler(store, jobs("tidy"))._synchronize()
    alter(store, "tidy", cron_expression="5 * * * *")
    await new_scheduler(store, jobs("tidy"), existing=ExistingJobBehavior.UPDATE_FROM_CODE)._synchronize()
    assert the_schedule(store, "tidy").cron_expression == "0 * * * *"
    assert caplog.records == []


async def test_an_orphan_is_disabled_once_nobody_has_had_it_in_his_code_for_long_enough(
    store: InMemoryStore, wall: Wall, caplog: pytest.LogCaptureFixture
) -> None:
    await new_scheduler(store, jobs("old", "kept"))._synchronize()
    newer = new_scheduler(store, jobs("kept"))
    await newer._synchronize()
    wall.now += ORPHANED_AFTER - SECOND
    await look_for_orphans(newer)
    assert the_schedule(store, "old").enabled, "a worker of the old version may be about to say that it has it"
    wall.now += SECOND
    for _ in range(2):
        await look_for_orphans(newer)
    left = the_schedule(store, "old")
    assert (left.enabled, left.next_run_at, left.orphaned_at) == (False, None, wall.now)
    assert the_schedule(store, "kept").enabled
    (record,) = caplog.records
    assert "job_name=old" in record.getMessage()


async def test_an_old_worker_that_still_has_it_keeps_it(store: InMemoryStore, wall: Wall) -> None:
    older, newer = new_scheduler(store, jobs("old")), new_scheduler(store, jobs("kept"))
    await older._synchronize()
    for _ in range(10):
        wall.now += module.SEEN_EVERY
        await look_for_orphans(older)
        await look_for_orphans(newer)
    assert the_schedule(store, "old").enabled


async def test_orphans_are_left_alone_if_so_told(store: InMemoryStore, wall: Wall) -> None:
    await new_scheduler(store, jobs("old"))._synchronize()
    wall.now += HOUR
    await look_for_orphans(new_scheduler(store, jobs("kept"), orphaned=OrphanedJobBehavior.IGNORE))
    assert the_schedule(store, "old").enabled


async def test_what_another_application_declared_is_left_alone(store: InMemoryStore, wall: Wall) -> None:
    await new_scheduler(store, jobs("theirs"), application="billing")._synchronize()
    wall.now += HOUR
    await look_for_orphans(new_scheduler(store, jobs("ours")))
    assert the_schedule(store, "theirs").enabled


async def test_a_worker_without_recurring_jobs_finds_orphans_too(store: InMemoryStore, wall: Wall) -> None:
    await new_scheduler(store, jobs("old"))._synchronize()
    wall.now += HOUR
    async with running(new_scheduler(store, jobs())):
        await eventually(lambda: not the_schedule(store, "old").enabled)


@pytest.mark.parametrize("existing", list(ExistingJobBehavior))
async def test_an_orphan_that_returns_is_enabled(
    store: InMemoryStore, wall: Wall, existing: ExistingJobBehavior
) -> None:
    await new_scheduler(store, jobs("old"))._synchronize()
    wall.now += HOUR
    await look_for_orphans(new_scheduler(store, jobs()))
    wall.now += HOUR
    await new_scheduler(store, jobs("old"), existing=existing)._synchronize()
    left = the_schedule(store, "old")
    assert (left.enabled, left.orphaned_at, left.next_run_at) == (True, None, wall.now + HOUR)


async def test_a_worker_that_was_not_heard_of_takes_its_schedule_back(store: InMemoryStore, wall: Wall) -> None:
    older = new_scheduler(store, jobs("old"))
    await older._synchronize()
    wall.now += HOUR
    await look_for_orphans(new_scheduler(store, jobs()))
    assert not the_schedule(store, "old").enabled
    await look_for_orphans(older)
    assert the_schedule(store, "old").enabled


async def test_what_an_administrator_disabled_stays_disabled(store: InMemoryStore, wall: Wall) -> None:
    scheduler = new_scheduler(store, jobs("tidy"))
    await scheduler._synchronize()
    alter(store, "tidy", enabled=False, next_run_at=None)
    wall.now += HOUR
    await look_for_orphans(scheduler)
    await scheduler._synchronize()
    assert not the_schedule(store, "tidy").enabled


async def test_that_a_schedule_is_in_our_code_is_said_again_and_again(store: InMemoryStore, wall: Wall) -> None:
    scheduler = new_scheduler(store, jobs("tidy"))
    await scheduler._synchronize()
    wall.now += HOUR
    await look_for_orphans(scheduler)
    assert the_schedule(store, "tidy").seen_at == wall.now


async def test_it_is_said_often_enough_however_seldom_workers_poll(
    store: InMemoryStore, wall: Wall, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEEN_EVERY", timedelta(milliseconds=10))
    async with running(new_scheduler(store, jobs("tidy"), poll_interval_seconds=NEVER_SECONDS)):
        await eventually(store.list_schedules)
        for _ in range(3):
            wall.now += timedelta(minutes=1)
            await eventually(lambda: the_schedule(store, "tidy").seen_at == wall.now)


# --- due slots


async def test_a_due_slot_gets_its_run_and_the_claimer_is_told(store: InMemoryStore, wall: Wall) -> None:
    told: list[None] = []
    scheduler = new_scheduler(store, jobs("tidy"), on_enqueued=lambda: told.append(None))
    await scheduler._synchronize()
    await scheduler._materialize_due()
    assert (slots(store, "tidy"), told) == ([], [])
    wall.now += HOUR
    assert await scheduler._materialize_due() == 0.0
    assert slots(store, "tidy") == [wall.now]
    assert len(told) == 1


async def test_a_missed_slot_is_made_first_and_then_the_next_one(store: InMemoryStore, wall: Wall) -> None:
    scheduler = new_scheduler(store, jobs("tidy", allow_concurrent_runs=True))
    await scheduler._synchronize()
    wall.now += 5 * HOUR
    for _ in range(3):
        await scheduler._materialize_due()
    assert slots(store, "tidy") == [NOON + 5 * HOUR]


async def test_catching_up_is_one_slot_in_each_pass_for_each_job(store: InMemoryStore, wall: Wall) -> None:
    registry = jobs("one", "other", allow_concurrent_runs=True)
    scheduler = new_scheduler(store, registry, policy=CatchUpPolicy.CATCH_UP)
    await scheduler._synchronize()
    wall.now += 3 * HOUR
    for made in range(1, 4):
        assert await scheduler._materialize_due() == 0.0
        assert slots(store, "one") == slots(store, "other") == [NOON + number * HOUR for number in range(1, made + 1)]
    assert await scheduler._materialize_due() > 0.0
    assert len(slots(store, "one")) == 3


async def test_it_rests_until_the_next_slot_or_the_next_poll(store: InMemoryStore, wall: Wall) -> None:
    scheduler = new_scheduler(store, jobs("tidy"), poll_interval_seconds=10.0)
    await scheduler._synchronize()
    assert 9.0 <= await scheduler._materialize_due() <= 10.0
    wall.now += HOUR - 3 * SECOND
    assert 0.0 < await scheduler._materialize_due() <= 3.0


async def test_a_slot_that_has_to_wait_is_looked_at_again_soon(store: InMemoryStore, wall: Wall) -> None:
    scheduler = new_scheduler(store, jobs("tidy"))
    await scheduler._synchronize()
    for _ in range(2):
        wall.now += HOUR
        rest_seconds = [await scheduler._materialize_due() for _ in range(2)]
    assert rest_seconds == [1.0, 1.0]
    assert len(slots(store, "tidy")) == 1


async def test_jobs_of_others_are_left_to_them(store: InMemoryStore, wall: Wall) -> None:
    await new_scheduler(store, jobs("theirs"))._synchronize()
    wall.now += HOUR
    scheduler = new_scheduler(store, jobs("ours"))
    await scheduler._materialize_due()
    assert slots(store, "theirs") == []


async def test_a_slot_that_waited_is_made_as_soon_as_the_run_has_ended(
    store: InMemoryStore, wall: Wall, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOOK_AGAIN_SECONDS", NEVER_SECONDS)
    scheduler = new_scheduler(store, jobs("tidy"), policy=CatchUpPolicy.CATCH_UP)
    await scheduler._synchronize()
    wall.now += 3 * HOUR
    async with running(scheduler):
        for made in (1, 2, 3):
            await eventually(lambda made=made: len(slots(store, "tidy")) == made)
            end_all(store, ["tidy"])
            await eventually(lambda: not scheduler._woken.is_set())
            scheduler.run_ended(leased_run(job_name="tidy"))
    assert slots(store, "tidy") == [NOON + number * HOUR for number in (1, 2, 3)]


async def test_runs_that_nothing_waits_for_do_not_wake_it(store: InMemoryStore, wall: Wall) -> None:
    failing = Failing(store)
    scheduler = new_scheduler(failing, jobs("tidy"))
    await scheduler._synchronize()
    await scheduler._materialize_due()
    for job_name in ("tidy", "does-not-recur", "unknown"):
        scheduler.run_ended(leased_run(job_name=job_name))
    assert not scheduler._woken.is_set()


# --- trouble


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_schedule_that_cannot_be_read_is_told_once_and_stops_no_other(
    store: InMemoryStore, wall: Wall, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = new_scheduler(store, jobs("aa-bad", "fine", allow_concurrent_runs=True))
    await scheduler._synchronize()
    alter(store, "aa-bad", cron_expression="garbage", next_run_at=NOON)
    for passes in range(1, 4):
        wall.now += HOUR
        await scheduler._materialize_due()
        assert len(slots(store, "fine")) == passes
    (message,) = errors(caplog)
    assert "job_name=aa-bad" in message
    assert "garbage" in message
    bad = the_schedule(store, "aa-bad")
    assert "garbage" in (bad.error_message or "")
    assert (bad.enabled, bad.next_run_at, slots(store, "aa-bad")) == (True, NOON, [])
    alter(store, "aa-bad", cron_expression="0 * * * *")
    await scheduler._materialize_due()
    assert the_schedule(store, "aa-bad").error_message is None
    assert len(slots(store, "aa-bad")) == 1


async def test_a_schedule_that_cannot_be_read_at_the_start_stops_no_other(
    store: InMemoryStore, wall: Wall, caplog: pytest.LogCaptureFixture
) -> None:
    await new_scheduler(store, jobs("aa-bad"))._synchronize()
    alter(store, "aa-bad", time_zone="Atlantis", next_run_at=None)
    scheduler = new_scheduler(store, jobs("aa-bad", "fine"))
    await scheduler._synchronize()
    assert the_schedule(store, "fine").next_run_at == NOON + HOUR
    assert "Atlantis" in (the_schedule(store, "aa-bad").error_message or "")
    assert len(errors(caplog)) == 1


async def test_what_is_wrong_with_a_schedule_is_noted_as_soon_as_it_can_be(store: InMemoryStore, wall: Wall) -> None:
    await new_scheduler(store, jobs("bad"))._synchronize()
    alter(store, "bad", cron_expression="garbage", next_run_at=NOON)
    failing = Failing(store, change_schedule=1)
    scheduler = new_scheduler(failing, jobs("bad"))
    with pytest.raises(StoreUnavailable):
        await scheduler._materialize_due()
    await scheduler._materialize_due()
    assert "garbage" in (the_schedule(store, "bad").error_message or "")


async def test_it_goes_on_when_the_store_answers_again(
    store: InMemoryStore, wall: Wall, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    failing = Failing(store, change_schedule=2, next_schedules=2, materialize_recurring_run=2, list_schedules=1)
    scheduler = new_scheduler(failing, jobs("tidy", cron="* * * * * *"), poll_interval_seconds=0.01)
    async with running(scheduler):
        await eventually(lambda: store.list_schedules())
        wall.now += HOUR
        await eventually(lambda: slots(store, "tidy"))
        await eventually(lambda: "looked after again" in caplog.text)
    assert not any(failing.failures.values())
    away = [record for record in caplog.records if "could not look for due schedules" in record.getMessage()]
    assert 1 <= len(away) <= 4, "each failure in a row would be too much to read"


async def test_many_schedulers_make_each_slot_once(store: InMemoryStore, wall: Wall) -> None:
    registry = jobs("tidy", cron="* * * * * *", allow_concurrent_runs=True)
    schedulers = [new_scheduler(store, registry, policy=CatchUpPolicy.CATCH_UP) for _ in range(4)]
    await schedulers[0]._synchronize()
    wall.now += 50 * SECOND
    async with anyio.create_task_group() as group:
        for scheduler in schedulers:
            group.start_soon(scheduler.run)
        with anyio.fail_after(20):
            await eventually(lambda: len(slots(store, "tidy")) >= 50)
        group.cancel_scope.cancel()
    assert slots(store, "tidy") == [NOON + number * SECOND for number in range(1, 51)]
