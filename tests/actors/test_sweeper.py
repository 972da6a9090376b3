"""The sweeper deletes what ended long ago, some at a time, and lets nothing keep it from trying again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from uuid import uuid4

import anyio
import pytest
from parts import NOON

from durablestack.errors import StoreUnavailable
from durablestack.ids import new_run_id
from durablestack.runs import NewRun, RunStatus, Succeeded
from durablestack.stores.contract import Claim
from durablestack.stores.memory import InMemoryStore
from durablestack.supervisor import sweeper as module
from durablestack.supervisor.sweeper import Sweeper

pytestmark = pytest.mark.anyio

DAY = timedelta(days=1)
RETENTION = timedelta(days=7)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_WITHIN_SECONDS", 0.0)
    monkeypatch.setattr(module, "_BETWEEN_BATCHES_SECONDS", 0.0)


class Swept(InMemoryStore):
    """A store whose clock the test sets, that writes down what it was asked, and fails as told."""

    def __init__(self) -> None:
        self.time = NOON
        super().__init__(lambda: self.time)
        self.batches: list[int] = []
        self.failures: list[Exception] = []
        self.on_prune: Callable[[], None] = lambda: None

    def prune_runs(self, older_than: timedelta, batch_size: int) -> int:
        self.on_prune()
        if self.failures:
            raise self.failures.pop(0)
        deleted = super().prune_runs(older_than, batch_size)
        self.batches.append(deleted)
        return deleted

    def ended(self, count: int, at: datetime) -> None:
        """So many runs that ended then."""
        self.time = at
        self.enqueue([NewRun(id=new_run_id(), job_name="job") for _ in range(count)])
        claim = Claim(worker_name="w", lease_token=uuid4(), job_names=["job"], batch_size=count, lease_duration=DAY)
        self.record([Succeeded(run.lease) for run in self.claim_due_runs(claim).runs])
        self.time = NOON


def new_sweeper(store: Swept, *, sweep_interval_seconds: float = 3600.0, delete_batch_size: int = 10) -> Sweeper:
    return Sweeper(
        store,
        run_retention=RETENTION,
        sweep_interval_seconds=sweep_interval_seconds,
        delete_batch_size=delete_batch_size,
    )


async def test_a_backlog_is_emptied_in_bounded_batches_and_what_is_young_stays() -> None:
    store = Swept()
    store.ended(25, NOON - RETENTION)
    store.ended(4, NOON - RETENTION + timedelta(seconds=1))
    store.enqueue([NewRun(id=new_run_id(), job_name="job", scheduled_for=NOON - 9 * DAY)])
    sweeper = new_sweeper(store)
    await sweeper._sweep()
    assert store.batches == [10, 10, 5]
    assert store.count_runs()[RunStatus.SUCCEEDED] == 4
    assert store.count_runs()[RunStatus.PENDING] == 1
    await sweeper._sweep()
    assert store.batches == [10, 10, 5, 0]


async def test_a_backlog_of_whole_batches_is_emptied_too() -> None:
    store = Swept()
    store.ended(20, NOON - 8 * DAY)
    await new_sweeper(store)._sweep()
    assert store.batches == [10, 10, 0]


async def test_it_keeps_up_with_runs_that_end_while_it_deletes() -> None:
    store = Swept()
    store.ended(30, NOON - 8 * DAY)
    still_to_end = [10] * 5

    def more_have_ended() -> None:
        if still_to_end:
            store.ended(still_to_end.pop(), NOON - 8 * DAY)

    store.on_prune = more_have_ended
    await new_sweeper(store)._sweep()
    assert store.batches == [10] * 8 + [0]


async def test_others_get_their_turn_between_two_batches() -> None:
    store = Swept()
    store.ended(30, NOON - 8 * DAY)
    turns: list[int] = []

    async def other() -> None:
        while True:
            turns.append(len(store.batches))
            await anyio.sleep(0)

    async with anyio.create_task_group() as group:
        group.start_soon(other)
        await new_sweeper(store)._sweep()
        group.cancel_scope.cancel()
    assert {1, 2} <= set(turns)


async def test_it_sweeps_again_and_again_also_when_the_store_is_away_for_a_while(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    store = Swept()
    store.ended(15, NOON - 8 * DAY)
    store.failures = [StoreUnavailable("away"), StoreUnavailable("away")]
    async with anyio.create_task_group() as group:
        group.start_soon(new_sweeper(store, sweep_interval_seconds=0.01).run)
        with anyio.fail_after(20):
            while store.count_runs()[RunStatus.SUCCEEDED]:
                await anyio.sleep(0.005)
        group.cancel_scope.cancel()
    assert caplog.text.count("could not delete old runs") == 2
    assert "deleted 15 runs" in caplog.text


async def test_what_was_deleted_before_the_store_went_away_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    store = Swept()
    store.ended(15, NOON - 8 * DAY)

    def away_after_a_batch() -> None:
        if store.batches:
            raise StoreUnavailable("away")

    store.on_prune = away_after_a_batch
    await new_sweeper(store)._sweep()
    assert store.count_runs()[RunStatus.SUCCEEDED] == 5
    assert "deleted 10 runs" in caplog.text
