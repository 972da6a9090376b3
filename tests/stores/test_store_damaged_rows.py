"""Rows that somebody altered by hand, or that were damaged: they are set aside, and nobody else notices.

SQLite only: the other databases refuse to store such a thing.
"""

import logging

import pytest
from exam import JOB, LEASE_DURATION, age_lease, change, claim, claimed, enqueue, on_sqlite, the_run

from durablestack.errors import StoreError
from durablestack.options import ExistingJobBehavior
from durablestack.runs import RunStatus, Succeeded
from durablestack.scheduling.recurring import Declaration, Recurrence, synced
from durablestack.stores.contract import Store

pytestmark = on_sqlite


@pytest.mark.parametrize("column", ["scheduled_for_utc", "created_at_utc", "slot_utc"])
def test_a_due_run_that_cannot_be_read_fails_and_the_others_are_claimed(
    store: Store, column: str, caplog: pytest.LogCaptureFixture
) -> None:
    damaged, sound = enqueue(store), enqueue(store)
    change(store, f"update {{runs}} set {column} = '0 o''clock' where id = :id", id=damaged)
    assert [run.id for run in claim(store)] == [sound]
    assert claim(store) == []
    assert len([record for record in caplog.records if str(damaged) in record.getMessage()]) == 1
    change(store, f"update {{runs}} set {column} = created_at_utc where id = :id", id=damaged)
    if column != "created_at_utc":
        assert (the_run(store, damaged).status, the_run(store, damaged).error_type) == (
            RunStatus.FAILED,
            "UnreadableRow",
        )
    else:
        change(store, "update {runs} set created_at_utc = scheduled_for_utc where id = :id", id=damaged)
    assert the_run(store, damaged).status is RunStatus.FAILED


def test_an_expired_lease_whose_token_is_none_does_not_hold_up_the_others(store: Store) -> None:
    damaged, sound = enqueue(store), enqueue(store)
    claim(store)
    age_lease(store, damaged, sound)
    change(store, "update {runs} set lease_token = 'nonsense' where id = :id", id=damaged)
    assert [run.run_id for run in claimed(store).expired] == [sound]
    assert the_run(store, damaged).status is RunStatus.FAILED


def test_a_token_that_was_altered_costs_its_run_the_lease_and_no_other(store: Store) -> None:
    damaged, sound = enqueue(store), enqueue(store)
    leases = [run.lease for run in claim(store)]
    change(store, "update {runs} set lease_token = 'nonsense' where id = :id", id=damaged)
    assert store.extend_leases(leases, LEASE_DURATION).held == {sound}
    assert set(store.record([Succeeded(lease) for lease in leases])) == {sound}
    change(store, "update {runs} set lease_token = id where id = :id", id=damaged)


def test_lists_show_what_can_be_read(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    damaged, sound = enqueue(store), enqueue(store)
    change(store, "update {runs} set scheduled_for_utc = 'soon' where id = :id", id=damaged)
    for _ in range(3):
        assert [run.id for run in store.list_runs(take=10)] == [sound]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    with pytest.raises(StoreError, match="cannot be read"):
        store.get_run(damaged)
    change(store, "update {runs} set scheduled_for_utc = created_at_utc where id = :id", id=damaged)


def test_a_schedule_that_cannot_be_read_hides_no_other(store: Store) -> None:
    for name in ("damaged", JOB):
        declared = Declaration(
            job_name=name, recurrence=Recurrence(cron="* * * * *"), payload=None, max_attempts=1, application="exam"
        )
        store.change_schedule(name, synced(declared, ExistingJobBehavior.KEEP_DATABASE))
    change(store, "update {jobs} set seen_at_utc = 'never' where job_name = 'damaged'")
    assert [schedule.job_name for schedule in store.list_schedules()] == [JOB]
    _, due = store.next_schedules(["damaged", JOB], LEASE_DURATION * 10)
    assert [schedule.job_name for schedule in due] == [JOB]
