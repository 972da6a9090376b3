"""What becomes of a run between the caller's hand and the table."""

from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

import pytest
from exam import (
    JOB,
    all_runs,
    claim,
    claim_one,
    enqueue,
    enqueue_and_claim,
    enqueue_many,
    failed,
    new_run,
    on_databases,
    on_postgres,
    status,
    the_run,
)

from durablestack.errors import StoreError, StoreUnavailable
from durablestack.ids import new_run_id
from durablestack.runs import Output, RunStatus, Succeeded
from durablestack.stores.contract import Store
from durablestack.text import clean

HOSTILE_TEXTS = {
    "quotes": """it's "quoted" `so` \\' ; drop table durable_stack_job_runs; --""",
    "percent": "%s %(id)s %% :id {runs} {0} $1 ?",
    "emoji": "🦕 ünïcödé \u202e rtl \u0000nul".replace("\0", ""),
    "control": "tab\tnewline\ncarriage\rescape\x1b[31m\x7f",
    "long": "x" * 16_384,
    "wide": "𝄞" * 4_096,
    "empty": "",
    "blank": "  \n ",
    "cleaned": clean("nul \0 and lone \ud800 surrogate", 100),
}
hostile = pytest.mark.parametrize("text", HOSTILE_TEXTS.values(), ids=HOSTILE_TEXTS)


def test_an_enqueued_run_is_pending_and_due_now(store: Store) -> None:
    before = store.now()
    run = the_run(store, enqueue(store, payload='{"to": "ada"}', max_attempts=7))
    assert run.job_name == JOB
    assert run.status is RunStatus.PENDING
    assert run.payload == '{"to": "ada"}'
    assert (run.attempt, run.max_attempts) == (0, 7)
    assert before <= run.scheduled_for <= store.now()
    assert before <= run.created_at <= store.now()
    assert run.started_at is run.completed_at is run.cancel_requested_at is run.requeued_from is None
    assert run.lease_owner is run.lease_token is run.lease_until is None
    assert run.error_type is run.error_message is run.error_detail is run.stdout_tail is run.stderr_tail is None


def test_many_runs_are_enqueued_at_once(store: Store) -> None:
    ids = enqueue_many(store, 120)
    assert set(all_runs(store)) == set(ids)


def test_of_many_runs_each_is_stored_as_it_was_given(store: Store) -> None:
    """Together, where the database has a way: there and back through arrays, quotes, and portions."""
    texts = [*HOSTILE_TEXTS.values(), None, "NULL", "null", "{}", '{"a": [1, "b,c"]}', "\\", '\\"', "{a,b}"]
    origin, at = new_run_id(), datetime(2031, 5, 17, 23, 59, 59, 123_456, tzinfo=timezone(timedelta(hours=-3.5)))
    runs = [new_run(payload=text) for text in texts]
    runs += [new_run(payload="1", scheduled_for=at), new_run(payload="2", requeued_from=origin, scheduled_for=None)]
    runs += [new_run(payload="x" * 400_000) for _ in range(3)] + [new_run() for _ in range(2_100)]
    store.enqueue([*runs[5:], runs[7], *runs[:9]])
    stored = all_runs(store)
    assert stored.keys() == {run.id for run in runs}
    for run in runs:
        seen = stored[run.id]
        assert (seen.payload, seen.requeued_from, seen.max_attempts) == (run.payload, run.requeued_from, 3), run
        assert run.scheduled_for in (None, seen.scheduled_for)


def test_runs_that_are_not_alike_are_stored_at_once_too(store: Store) -> None:
    runs = [new_run(), new_run(job_name="other"), new_run(max_attempts=9), new_run(trace_context="{}", payload="1")]
    store.enqueue(runs)
    stored = all_runs(store)
    for run in runs:
        seen = stored[run.id]
        assert (seen.job_name, seen.max_attempts, seen.trace_context, seen.payload) == (
            run.job_name,
            run.max_attempts,
            run.trace_context,
            run.payload,
        )


def test_enqueueing_nothing_is_no_error(store: Store) -> None:
    store.enqueue([])
    assert all_runs(store) == {}


@on_databases
def test_all_of_a_batch_are_stored_or_none(store: Store) -> None:
    impossible = new_run(max_attempts=0)
    with pytest.raises(StoreError) as caught:
        store.enqueue([new_run(), impossible, new_run()])
    assert not isinstance(caught.value, StoreUnavailable)
    assert all_runs(store) == {}
    enqueue(store)
    assert len(all_runs(store)) == 1


def test_enqueueing_a_run_again_stores_it_once(store: Store) -> None:
    runs = [new_run(payload="1"), new_run(payload="2")]
    store.enqueue(runs)
    store.enqueue([*runs, new_run(payload="3")])
    store.enqueue([new_run(id=runs[0].id, payload="other")])
    assert sorted(run.payload or "" for run in all_runs(store).values()) == ["1", "2", "3"]


def test_a_run_that_is_twice_in_a_batch_is_stored_once(store: Store) -> None:
    run = new_run()
    store.enqueue([run, run])
    assert list(all_runs(store)) == [run.id]


def test_enqueueing_a_run_again_changes_nothing_of_what_became_of_it(store: Store) -> None:
    run = new_run()
    store.enqueue([run])
    lease = claim_one(store)
    store.enqueue([run])
    assert status(store, run.id) is RunStatus.LEASED
    store.record([Succeeded(lease)])
    ended = the_run(store, run.id)
    store.enqueue([run])
    assert the_run(store, run.id) == ended
    assert claim(store) == []


@pytest.mark.parametrize("microsecond", [0, 1, 999, 1_000, 123_456, 999_999])
def test_the_microseconds_of_a_schedule_are_kept(store: Store, microsecond: int) -> None:
    at = datetime(2031, 5, 17, 23, 59, 59, microsecond, tzinfo=UTC)
    assert the_run(store, enqueue(store, scheduled_for=at)).scheduled_for == at


@pytest.mark.parametrize("hours", [-11, -3.5, 0, 5.75, 14])
def test_a_schedule_in_any_time_zone_is_the_same_instant_in_utc(store: Store, hours: float) -> None:
    at = datetime(2031, 1, 1, 0, 30, tzinfo=timezone(timedelta(hours=hours)))
    run = the_run(store, enqueue(store, scheduled_for=at))
    assert run.scheduled_for == at
    assert run.scheduled_for.utcoffset() == timedelta(0)


@pytest.mark.parametrize("year", [999, 1970, 2038, 9998])
def test_schedules_of_remote_years_are_kept(store: Store, year: int) -> None:
    at = datetime(year, 7, 1, 12, 0, 0, 1, tzinfo=UTC)
    run_id = enqueue(store, scheduled_for=at)
    assert the_run(store, run_id).scheduled_for == at
    assert (claim(store) != []) == (at < store.now())


@hostile
def test_a_hostile_payload_comes_back_as_it_was(store: Store, text: str) -> None:
    run_id = enqueue(store, payload=text)
    (run,) = claim(store)
    assert run.payload == text
    assert the_run(store, run_id).payload == text


def test_no_payload_is_not_an_empty_payload(store: Store) -> None:
    assert the_run(store, enqueue(store, payload=None)).payload is None
    assert the_run(store, enqueue(store, payload="")).payload == ""


def test_a_payload_of_a_mebibyte_comes_back_as_it_was(store: Store) -> None:
    payload = '"' + "é" * 524_287 + '"'
    assert the_run(store, enqueue(store, payload=payload)).payload == payload


@hostile
def test_a_hostile_job_name_is_claimed_by_that_name_only(store: Store, text: str) -> None:
    name = text[:200]
    run_id = enqueue(store, job_name=name)
    assert claim(store, job_names=[f"{name}x", f"x{name}", name.swapcase() + "."]) == []
    assert store.measure_backlog([name], 10).due == 1
    assert [run.id for run in store.list_runs(take=1, job_name=name or None)] == [run_id]
    (run,) = claim(store, job_names=["other", name])
    assert (run.id, run.job_name) == (run_id, name)


@hostile
def test_hostile_text_of_a_failure_comes_back_as_it_was(store: Store, text: str) -> None:
    lease = enqueue_and_claim(store)
    outcome = failed(lease, output=Output(text, text))
    failure = type(outcome.failure)(error_type=text[:200], error_message=text, error_detail=text)
    assert store.record([type(outcome)(lease, failure, None, outcome.output)]) == {lease.run_id: RunStatus.FAILED}
    run = the_run(store, lease.run_id)
    assert (run.error_type, run.error_message, run.error_detail) == (text[:200], text, text)
    assert (run.stdout_tail, run.stderr_tail) == (text, text)
    (attempt,) = store.get_attempts(lease.run_id)
    assert (attempt.error_type, attempt.error_message, attempt.error_detail) == (text[:200], text, text)


@hostile
def test_a_hostile_worker_name_is_only_a_name(store: Store, text: str) -> None:
    enqueue(store)
    lease = claim_one(store, worker_name=text[:200])
    assert the_run(store, lease.run_id).lease_owner == text[:200]
    assert store.record([failed(lease, 0)]) == {lease.run_id: RunStatus.PENDING}
    assert store.get_attempts(lease.run_id)[0].worker_name == text[:200]


@on_postgres
@pytest.mark.parametrize("payload", ["nul \0", "surrogate \ud800"])
def test_text_that_nobody_cleaned_is_refused_for_good(store: Store, payload: str) -> None:
    with pytest.raises(StoreError) as caught:
        enqueue(store, payload=payload)
    assert not isinstance(caught.value, StoreUnavailable)
    enqueue(store)
    assert len(all_runs(store)) == 1


def test_requeued_from_is_kept(store: Store) -> None:
    origin = new_run_id()
    assert the_run(store, enqueue(store, requeued_from=origin)).requeued_from == origin


def test_ids_need_not_be_of_version_7(store: Store) -> None:
    ids = [UUID(int=0), UUID(int=(1 << 128) - 1), UUID("0123abcd-0000-4000-8000-00000000000f")]
    store.enqueue([new_run(id=id) for id in ids])
    assert set(all_runs(store)) == set(ids)
    assert {run.id for run in claim(store)} == set(ids)
