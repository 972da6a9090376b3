"""When the database goes away under an enqueue: nothing is stored twice, and nothing is claimed to be known."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import pytest
from queue_jobs import Bill, tidy

from durablestack import (
    DurableStack,
    DurableStackClient,
    DurableStackOptions,
    EnqueueUncertain,
    JobRegistry,
    SchemaError,
    StoreUnavailable,
)
from durablestack.runs import NewRun
from durablestack.stores.memory import InMemoryStore
from proxy import TcpProxy, When
from servers import free_port


class Failing(InMemoryStore):
    """Fails as told, call by call, and then works."""

    def __init__(self, *failures: Exception, stores_first: bool = False) -> None:
        super().__init__()
        self.failures = list(failures)
        self.calls = 0
        self._stores_first = stores_first

    def enqueue(self, runs: Sequence[NewRun], connection: Any = None) -> None:
        self.calls += 1
        if self._stores_first:
            super().enqueue(runs, connection)
        if self.failures:
            raise self.failures.pop(0)
        super().enqueue(runs, connection)


CUT = StoreUnavailable("cut", uncertain=True)
AWAY = StoreUnavailable("away")


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durablestack.client._TRY_AGAIN_AFTER_SECONDS", 0)


def client_of(store: InMemoryStore, wakes: list[str] | None = None) -> DurableStackClient:
    woken = [] if wakes is None else wakes
    return DurableStackClient(
        store, JobRegistry([Bill, tidy]), payload_bytes_max=1_000, enqueued=lambda: woken.append("woken")
    )


@pytest.mark.parametrize("failures", [[CUT], [AWAY], [CUT, CUT], [AWAY, CUT]])
@pytest.mark.parametrize("stores_first", [True, False])
def test_an_enqueue_that_fails_is_tried_again_with_the_same_ids(failures: list[Exception], stores_first: bool) -> None:
    store, wakes = Failing(*failures, stores_first=stores_first), list[str]()
    ids = client_of(store, wakes).enqueue_many(Bill, [1, 2])
    assert {run.id for run in store.list_runs(take=10)} == set(ids)
    assert store.calls == len(failures) + 1
    assert wakes == ["woken"]


@pytest.mark.parametrize("failures", [[CUT, CUT, CUT], [CUT, AWAY, AWAY], [AWAY, AWAY, CUT], [AWAY, CUT, AWAY]])
def test_once_a_commit_was_cut_only_a_success_makes_it_certain(failures: list[Exception]) -> None:
    store, wakes = Failing(*failures, stores_first=True), list[str]()
    client = client_of(store, wakes)
    with pytest.raises(EnqueueUncertain) as caught:
        client.enqueue(Bill, 1)
    (run_id,) = caught.value.run_ids
    assert isinstance(caught.value.__cause__, StoreUnavailable)
    assert wakes == []
    assert client.enqueue(Bill, 1, run_id=run_id) == run_id
    assert [run.id for run in store.list_runs(take=10)] == [run_id]


def test_all_ids_of_many_are_told_when_they_are_uncertain() -> None:
    with pytest.raises(EnqueueUncertain) as caught:
        client_of(Failing(CUT, CUT, CUT)).enqueue_many(Bill, [1, 2, 3])
    assert len(set(caught.value.run_ids)) == 3


def test_a_database_that_was_never_reached_is_unavailable_and_nothing_is_uncertain() -> None:
    store = Failing(AWAY, AWAY, AWAY)
    with pytest.raises(StoreUnavailable) as caught:
        client_of(store).enqueue(Bill, 1)
    assert not caught.value.uncertain
    assert store.calls == 3


def test_what_the_database_refuses_is_not_tried_again() -> None:
    store = Failing(SchemaError("no such table"))
    with pytest.raises(SchemaError):
        client_of(store).enqueue(Bill, 1)
    assert store.calls == 1


# --- the real thing


def postgres_options(dsn: str, port: int, table_prefix: str) -> DurableStackOptions:
    url = urlsplit(dsn)
    user = url.netloc.rpartition("@")[0]
    return DurableStackOptions(
        database_url=url._replace(netloc=f"{user}@127.0.0.1:{port}").geturl(),
        database_table_prefix=table_prefix,
        operation_timeout_seconds=2.0,
    )


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_enqueue_whose_commit_is_cut_is_tried_again_and_stored_once(
    postgres_dsn: str, table_prefix: str, when: When
) -> None:
    url = urlsplit(postgres_dsn)
    with (
        TcpProxy(url.hostname or "127.0.0.1", url.port or 5432) as proxy,
        DurableStack("queue_jobs", options=postgres_options(postgres_dsn, proxy.port, table_prefix)) as stack,
    ):
        stack.migrate()
        proxy.cut_commit(when, b"insert into")
        run_id = stack.client.enqueue(Bill, 1)
        assert proxy.cuts == 1
        assert [run.id for run in stack.queries.get_recent_runs()] == [run_id]


def test_a_port_that_nobody_listens_on_is_unavailable(postgres_dsn: str, table_prefix: str) -> None:
    with DurableStack("queue_jobs", options=postgres_options(postgres_dsn, free_port(), table_prefix)) as stack:
        with pytest.raises(StoreUnavailable) as caught:
            stack.client.enqueue(Bill, 1)
        assert not caught.value.uncertain
