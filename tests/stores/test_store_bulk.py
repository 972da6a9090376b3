"""Very many runs at once: copied into the table where the database has a way, and stored as any others."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from urllib.parse import urlsplit

import psycopg
import pytest
from exam import (
    PROXIED_TIMEOUT_SECONDS,
    Place,
    all_runs,
    claim_one,
    new_run,
    on_postgres,
    the_run,
)

from durablestack.errors import StoreError, StoreUnavailable
from durablestack.runs import NewRun, RunStatus
from durablestack.stores import inserts
from durablestack.stores.contract import Store
from durablestack.stores.hints import NO_HINTS
from durablestack.stores.sql import SqlStore
from proxy import TcpProxy, When

HOSTILE_TEXTS = [
    None,
    "",
    "NULL",
    "\\N",
    "\\.",
    "\\",
    "\\t",
    "\t",
    "\r\n",
    "a\nb\\nc",
    '{"a": "\\n \\\\ é 𝄞"}',
    "\x7f\x1b",
]
COPY_DONE = b"c\0\0\0\4"  # as PostgreSQL is told


@pytest.fixture(autouse=True)
def from_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inserts, "COPIED_MIN", 20)


def many(count: int = 30) -> list[NewRun]:
    return [new_run(payload=str(number)) for number in range(count)]


def payloads(store: Store) -> list[str]:
    return sorted(run.payload or "" for run in all_runs(store).values())


def is_uncertain(call: Callable[[], object]) -> bool:
    with pytest.raises(StoreUnavailable) as caught:
        call()
    return caught.value.uncertain


def copies_after(portions: int, then: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Something happens on the way."""
    copy_portions = inserts.copy_portions

    def interrupted(runs: Sequence[NewRun], now: datetime, encoding: str) -> Iterator[bytes]:
        for number, portion in enumerate(copy_portions(runs, now, encoding)):
            if number == portions:
                then()
            yield portion

    monkeypatch.setattr(inserts, "copy_portions", interrupted)


# --- what is stored


def test_each_is_stored_as_it_was_given(store: Store) -> None:
    same = {"job_name": 'a\tjob\\N "x"\n', "max_attempts": 9, "trace_context": "a\\b\tc", "recurring": True}
    runs = [new_run(payload=text, **same) for text in HOSTILE_TEXTS * 100]
    runs += [new_run(payload="x" * 400_000, **same) for _ in range(3)]
    before = store.now()
    store.enqueue(runs[::-1])
    stored = all_runs(store)
    assert stored.keys() == {run.id for run in runs}
    for run in runs:
        seen = stored[run.id]
        assert (seen.job_name, seen.payload, seen.trace_context) == (run.job_name, run.payload, run.trace_context)
        assert (seen.status, seen.attempt, seen.max_attempts) == (RunStatus.PENDING, 0, 9)
        assert before <= seen.scheduled_for == seen.created_at <= store.now()


@on_postgres
@pytest.mark.parametrize("encoding", ["UTF8", "LATIN1", "WIN1252"])
def test_each_is_stored_as_it_was_given_in_whatever_encoding_it_is_sent(
    place: Place, store: Store, encoding: str
) -> None:
    url = urlsplit(place.database_url or "")
    query = "&".join(filter(None, [url.query, f"client_encoding={encoding}"]))
    sender = Place(place.provider, url._replace(query=query).geturl(), place.table_prefix).open()
    sender.enqueue([new_run(payload="é", job_name="dû") for _ in range(30)])
    sender.close()
    assert {(run.job_name, run.payload) for run in all_runs(store).values()} == {("dû", "é")}


@on_postgres
def test_they_are_copied_where_it_pays_and_they_differ_by_their_payload_alone(store: Store) -> None:
    assert isinstance(store, SqlStore)
    assert store._enqueuer._copies(many())
    assert not store._enqueuer._copies(many(19))
    for other in (
        new_run(scheduled_for=store.now()),
        new_run(slot=store.now()),
        new_run(requeued_from=new_run().id),
        new_run(job_name="other"),
        new_run(trace_context="{}"),
    ):
        assert not store._enqueuer._copies([*many(), other])


def test_those_that_are_not_copied_are_stored_too(store: Store) -> None:
    later = new_run(scheduled_for=store.now().replace(year=2031))
    store.enqueue([*many(), later])
    assert len(all_runs(store)) == 31
    assert the_run(store, later.id).scheduled_for == later.scheduled_for


def test_a_run_that_is_there_already_is_left_as_it_is_and_the_others_are_stored(store: Store) -> None:
    runs = many()
    store.enqueue(runs[:1])
    lease = claim_one(store)
    store.enqueue([*runs, runs[7]])
    assert the_run(store, runs[0].id).lease == lease
    assert len(all_runs(store)) == 30
    store.enqueue(runs)
    assert len(all_runs(store)) == 30


def test_those_who_enqueue_the_same_at_once_store_it_once(store: Store) -> None:
    runs = many(300)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: store.enqueue(runs[number::-1] + runs[number + 1 :]), (0, 99, 199, 299)))
    assert payloads(store) == sorted(str(number) for number in range(300))


@on_postgres
@pytest.mark.parametrize("payload", ["nul \0", "surrogate \ud800"])
def test_of_all_none_is_stored_where_one_is_refused(store: Store, payload: str) -> None:
    with pytest.raises(StoreError) as caught:
        store.enqueue([*many(2_000), new_run(payload=payload)])
    assert not isinstance(caught.value, StoreUnavailable)
    assert all_runs(store) == {}
    store.enqueue(many())
    assert len(all_runs(store)) == 30


# --- hints


@on_postgres
def test_they_are_hinted_at_once(place: Place, store: Store) -> None:
    with psycopg.connect(place.database_url or "", autocommit=True) as ears:
        ears.execute(f'listen "{place.table_prefix}durable_stack"'.encode())
        store.enqueue(many())
        assert [hint.payload for hint in ears.notifies(timeout=10, stop_after=1)] == [""]
        assert list(ears.notifies(timeout=0)) == []


# --- what is lost on the way


@on_postgres
@pytest.mark.parametrize("when", ["before", "after"])
def test_those_whose_commit_was_not_answered_are_enqueued_again_and_stored_once(
    store: Store, proxied: Store, proxy: TcpProxy, when: When
) -> None:
    runs = many()
    assert isinstance(proxied, SqlStore)
    proxied._enqueuer.hints = NO_HINTS  # so that the commit follows
    proxy.cut_commit(when, COPY_DONE)
    assert is_uncertain(lambda: proxied.enqueue(runs))
    assert len(all_runs(store)) == (0 if when == "before" else 30)
    proxied.enqueue(runs)
    assert set(all_runs(store)) == {run.id for run in runs}


@on_postgres
def test_a_server_that_falls_silent_is_given_up_within_the_timeout_and_nothing_is_stored(
    store: Store, proxied: Store, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies_after(1, proxy.freeze, monkeypatch)
    started = time.monotonic()
    runs = [new_run(payload="x" * 100_000) for _ in range(100)]
    assert not is_uncertain(lambda: proxied.enqueue(runs))
    assert time.monotonic() - started < PROXIED_TIMEOUT_SECONDS + 2
    monkeypatch.undo()
    proxy.thaw()
    assert all_runs(store) == {}
    proxied.enqueue(many())
    assert len(all_runs(store)) == 30


@on_postgres
def test_a_session_that_is_ended_is_no_uncertainty_and_nothing_is_stored(
    place: Place, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end_sessions() -> None:
        with psycopg.connect(place.database_url or "", autocommit=True) as other:
            other.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where query like %s",
                [f'copy "{place.table_prefix}durable_stack_job_runs"%'],
            )

    copies_after(1, end_sessions, monkeypatch)
    assert not is_uncertain(lambda: store.enqueue(many(1_200)))
    assert all_runs(store) == {}
    monkeypatch.undo()
    store.enqueue(many())
    assert len(all_runs(store)) == 30
