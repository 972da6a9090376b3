"""Attempts whose process died: how often, of what, and what it used; as it was told, and only once."""

from datetime import timedelta

import pytest
from exam import (
    BOOM,
    change,
    claim,
    claim_one,
    enqueue,
    enqueue_and_claim,
    on_sqlite,
    reclaimed_after_expiry,
    the_run,
)
from msgspec.structs import replace

from durablestack.errors import StoreError
from durablestack.runs import (
    Attempt,
    Cancelled,
    EndedBy,
    Failed,
    Failure,
    Lease,
    Released,
    RunStatus,
    Succeeded,
    Usage,
)
from durablestack.stores.contract import Store

USAGE = Usage(peak_memory_bytes=5 * 2**40, user_cpu_seconds=1234.56789, system_cpu_seconds=0.000_123)
CRASH = Failure(
    error_type="ChildCrashed",
    error_message="the child process was ended by SIGKILL",
    signal="SIGKILL",
    exit_code=-9,
    ended_by=EndedBy.KERNEL,
    usage=USAGE,
    crashed=True,
)
NOW = timedelta(0)


def crashed(lease: Lease, retry_after: timedelta | None = NOW) -> Failed:
    return Failed(lease, CRASH, retry_after)


def facts(attempt: Attempt) -> tuple[str | None, int | None, EndedBy | None, Usage]:
    usage = Usage(attempt.peak_memory_bytes, attempt.user_cpu_seconds, attempt.system_cpu_seconds)
    return attempt.signal, attempt.exit_code, attempt.ended_by, usage


# --- how often


def test_a_run_begins_without_a_crash(store: Store) -> None:
    lease = enqueue_and_claim(store)
    assert the_run(store, lease.run_id).crash_count == 0


def test_a_claim_tells_how_often_the_run_has_crashed(store: Store) -> None:
    run_id = enqueue(store, max_attempts=10)
    for crash_count in range(4):
        (run,) = claim(store)
        assert run.crash_count == crash_count == the_run(store, run_id).crash_count
        store.record([crashed(run.lease)])


def test_a_crash_counts_at_the_last_attempt_too(store: Store) -> None:
    lease = enqueue_and_claim(store, max_attempts=1)
    assert store.record([crashed(lease, None)]) == {lease.run_id: RunStatus.FAILED}
    assert the_run(store, lease.run_id).crash_count == 1


def test_a_crash_counts_though_the_run_is_to_be_cancelled(store: Store) -> None:
    lease = enqueue_and_claim(store)
    store.cancel_run(lease.run_id)
    assert store.record([crashed(lease)]) == {lease.run_id: RunStatus.CANCELLED}
    assert the_run(store, lease.run_id).crash_count == 1


def test_a_crash_that_is_recorded_again_counts_once(store: Store) -> None:
    lease = enqueue_and_claim(store)
    for _ in range(3):
        assert store.record([crashed(lease)]) == {lease.run_id: RunStatus.PENDING}
    assert the_run(store, lease.run_id).crash_count == 1


def test_what_ends_otherwise_is_no_crash(store: Store) -> None:
    run_id = enqueue(store, max_attempts=20)
    store.record([crashed(claim_one(store))])
    for outcome in (
        lambda lease: Failed(lease, BOOM, NOW),
        lambda lease: Failed(lease, replace(CRASH, crashed=False), NOW),
        Released,
    ):
        store.record([outcome(claim_one(store))])
    lease = reclaimed_after_expiry(store, claim_one(store))
    assert the_run(store, run_id).crash_count == 1
    store.record([Succeeded(lease)])
    assert the_run(store, run_id).crash_count == 1


def test_a_zombie_counts_no_crash(store: Store) -> None:
    stale = enqueue_and_claim(store)
    reclaimed_after_expiry(store, stale)
    assert store.record([crashed(stale)]) == {}
    assert the_run(store, stale.run_id).crash_count == 0


def test_a_requeued_run_begins_without_a_crash(store: Store) -> None:
    lease = enqueue_and_claim(store)
    store.record([crashed(lease, None)])
    new_id = store.requeue_run(lease.run_id)
    assert new_id is not None
    assert the_run(store, new_id).crash_count == 0
    (run,) = claim(store)
    assert (run.id, run.crash_count) == (new_id, 0)


def test_runs_are_listed_with_their_crashes(store: Store) -> None:
    store.record([crashed(enqueue_and_claim(store))])
    assert [run.crash_count for run in store.list_runs(take=10)] == [1]
    assert [run.crash_count for run in store.list_runs(take=10, due_first=True)] == [1]


# --- of what, and what it used


def test_an_attempt_tells_how_its_process_ended_and_what_it_used(store: Store) -> None:
    lease = enqueue_and_claim(store)
    store.record([crashed(lease)])
    (attempt,) = store.get_attempts(lease.run_id)
    assert facts(attempt) == ("SIGKILL", -9, EndedBy.KERNEL, USAGE)


@pytest.mark.parametrize("ended_by", EndedBy)
def test_everything_that_may_end_an_attempt_is_kept(store: Store, ended_by: EndedBy) -> None:
    lease = enqueue_and_claim(store)
    store.record([Failed(lease, replace(BOOM, ended_by=ended_by), None)])
    (attempt,) = store.get_attempts(lease.run_id)
    assert attempt.ended_by is ended_by


def test_what_is_not_known_is_not_told(store: Store) -> None:
    lease = enqueue_and_claim(store)
    store.record([Failed(lease, Failure(error_type="E", error_message="no"), None)])
    (attempt,) = store.get_attempts(lease.run_id)
    assert facts(attempt) == (None, None, None, Usage())


def test_nothing_is_something_else_than_unknown(store: Store) -> None:
    lease = enqueue_and_claim(store)
    store.record([Failed(lease, replace(CRASH, exit_code=0, usage=Usage(0, 0.0, 0.0)), None)])
    (attempt,) = store.get_attempts(lease.run_id)
    assert facts(attempt) == ("SIGKILL", 0, EndedBy.KERNEL, Usage(0, 0.0, 0.0))


def test_a_cancelled_attempt_tells_of_its_process_too(store: Store) -> None:
    lease = enqueue_and_claim(store)
    store.cancel_run(lease.run_id)
    store.record([Cancelled(lease, signal="SIGTERM", exit_code=-15, ended_by=EndedBy.CANCEL, usage=USAGE)])
    (attempt,) = store.get_attempts(lease.run_id)
    assert facts(attempt) == ("SIGTERM", -15, EndedBy.CANCEL, USAGE)
    assert the_run(store, lease.run_id).crash_count == 0


def test_an_expired_attempt_tells_nothing_of_its_process(store: Store) -> None:
    stale = enqueue_and_claim(store)
    reclaimed_after_expiry(store, stale)
    (attempt,) = store.get_attempts(stale.run_id)
    assert facts(attempt) == (None, None, None, Usage())


@on_sqlite
def test_an_attempt_that_was_ended_by_what_nobody_knows_is_told_as_unreadable(store: Store) -> None:
    lease = enqueue_and_claim(store)
    store.record([crashed(lease)])
    change(store, "update {attempts} set ended_by = 'magic'")
    with pytest.raises(StoreError, match="cannot be read"):
        store.get_attempts(lease.run_id)
    change(store, "update {attempts} set ended_by = null")


@on_sqlite
def test_a_count_of_crashes_that_was_altered_fails_its_run_and_no_other(store: Store) -> None:
    damaged, sound = enqueue(store), enqueue(store)
    change(store, "update {runs} set crash_count = 'many' where id = :id", id=damaged)
    assert [run.id for run in claim(store)] == [sound]
    assert the_run(store, damaged).status is RunStatus.FAILED
    change(store, "update {runs} set crash_count = 0 where id = :id", id=damaged)
