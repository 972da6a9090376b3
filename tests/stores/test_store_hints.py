"""Hints: who listens hears of enqueues, those that need not be heard are withheld, and no enqueue depends on them."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import psycopg
import pytest
from exam import Place, all_runs, claim, new_run, on_postgres, on_sqlite
from psycopg import AsyncConnection

from durablestack.errors import StoreUnavailable
from durablestack.options import DurableStackOptions
from durablestack.runs import NewRun
from durablestack.stores.contract import Listener, Store
from durablestack.stores.hints import IN_A_ROW, PER_SECOND_MAX, WITHHELD, HintRate
from durablestack.stores.providers import open_store
from pooler import TransactionPooler
from proxy import TcpProxy
from servers import ServerAbsent, start_postgres

HEARD_WITHIN_SECONDS = 10.0


class Ears:
    """A session that listens as the supervisor's does, in plain words of the driver."""

    def __init__(self, place: Place) -> None:
        self._connection = psycopg.connect(place.database_url or "", autocommit=True)
        self._connection.execute(f'listen "{place.table_prefix}durable_stack"'.encode())

    def heard(self) -> list[str]:
        """What has come by now: the answer to a query comes after all notifications before it."""
        self._connection.execute("select 1")
        return [notify.payload for notify in self._connection.notifies(timeout=0)]

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def ears(place: Place, store: Store) -> Iterator[Ears]:
    assert store.listen() is not None
    with closing(Ears(place)) as ears:
        yield ears


# --- what is sent


@on_postgres
def test_one_enqueue_is_one_hint_however_many_runs_it_has(store: Store, ears: Ears) -> None:
    store.enqueue([new_run()])
    assert ears.heard() == [""]
    store.enqueue([new_run() for _ in range(500)])
    assert ears.heard() == [""]


@on_postgres
def test_a_run_for_later_needs_no_hint_and_one_whose_time_has_come_does(store: Store, ears: Ears) -> None:
    store.enqueue([new_run(scheduled_for=datetime.now(UTC) + timedelta(hours=1))])
    assert ears.heard() == []
    store.enqueue([new_run(scheduled_for=datetime.now(UTC) - timedelta(hours=1))])
    assert ears.heard() == [""]


@on_postgres
@pytest.mark.parametrize("commit", [True, False], ids=["commit", "rollback"])
def test_the_hint_of_a_callers_transaction_comes_with_its_commit(
    place: Place, store: Store, ears: Ears, commit: bool
) -> None:
    with closing(place.connect()) as connection:
        store.enqueue([new_run()], connection)
        assert ears.heard() == []
        connection.commit() if commit else connection.rollback()
    assert ears.heard() == ([""] if commit else [])


@on_postgres
@pytest.mark.anyio
async def test_the_hint_of_an_asynchronous_callers_transaction_comes_with_its_commit(
    place: Place, store: Store, ears: Ears
) -> None:
    async with await AsyncConnection.connect(place.database_url or "") as connection:
        await store.enqueue_async([new_run()], connection)
        assert ears.heard() == []
        await connection.commit()
        assert ears.heard() == [""]


@on_postgres
def test_a_run_that_is_requeued_is_hinted_at(store: Store, ears: Ears) -> None:
    run = new_run()
    store.enqueue([run])
    assert store.cancel_run(run.id)
    assert ears.heard() == [""]
    assert store.requeue_run(run.id)
    assert ears.heard() == [""]


@on_postgres
def test_nothing_is_sent_where_it_is_not_wanted(place: Place, store: Store, ears: Ears) -> None:
    options = DurableStackOptions(
        database_url=place.database_url, database_table_prefix=place.table_prefix, wake_on_enqueue=False
    )
    with closing(open_store(options)) as quiet:
        assert quiet.listen() is None
        quiet.enqueue([new_run()])
        assert ears.heard() == []
    assert len(all_runs(store)) == 1


@on_postgres
def test_of_many_enqueues_in_a_row_few_are_hinted_at_and_the_last_hint_says_that_others_are_withheld(
    store: Store, ears: Ears
) -> None:
    for _ in range(300):
        store.enqueue([new_run()])
    heard = ears.heard()
    assert IN_A_ROW <= len(heard) < 150
    assert heard[-1] == WITHHELD
    assert len(all_runs(store)) == 300


@on_postgres
def test_threads_that_enqueue_at_once_lose_nothing(store: Store, ears: Ears) -> None:
    runs = [[new_run() for _ in range(25)] for _ in range(4)]

    def enqueue_each(mine: Sequence[NewRun]) -> None:
        for run in mine:
            store.enqueue([run])

    threads = [threading.Thread(target=enqueue_each, args=(mine,)) for mine in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(all_runs(store)) == {run.id for mine in runs for run in mine}
    assert ears.heard() != []


def test_a_transaction_that_can_be_prepared_is_not_spoiled_by_a_hint(own_postgres_with_prepared: Place) -> None:
    with closing(own_postgres_with_prepared.open()) as store:
        store.migrate()
        with closing(own_postgres_with_prepared.connect()) as connection:
            connection.tpc_begin("two phases")
            store.enqueue([new_run()], connection)
            connection.tpc_prepare()
            assert all_runs(store) == {}
            connection.tpc_commit()
        assert len(claim(store)) == 1


@pytest.fixture
def own_postgres_with_prepared(table_prefix: str) -> Iterator[Place]:
    try:
        server = start_postgres({"max_prepared_transactions": "2"})
    except ServerAbsent as absent:
        pytest.skip(f"PostgreSQL of our own: {absent}")
    yield Place("postgres", server.dsn, table_prefix)
    server.close()


# --- how many


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_hints_in_a_row_are_few_and_more_come_with_time() -> None:
    clock = Clock()
    rate = HintRate(PER_SECOND_MAX, clock)
    said = [rate.take([new_run()]) for _ in range(100)]
    assert said[: int(IN_A_ROW)] == [""] * (int(IN_A_ROW) - 1) + [WITHHELD]
    assert set(said[int(IN_A_ROW) :]) == {None}
    clock.now += 1.001 / PER_SECOND_MAX
    assert [rate.take([new_run()]) for _ in range(3)] == [WITHHELD, None, None]
    clock.now += 3600.0
    assert [rate.take([new_run()]) for _ in range(100)] == said


def test_where_transactions_with_a_hint_take_long_they_are_fewer() -> None:
    clock = Clock()
    rate = HintRate(PER_SECOND_MAX, clock)
    while rate.take([new_run()]) is not None:
        pass
    rate.took(0.5)  # a tenth of the time is then one in five seconds
    clock.now += 4.9
    assert rate.take([new_run()]) is None
    clock.now += 0.2
    assert rate.take([new_run()]) == WITHHELD
    rate.took(0.0001)
    clock.now += 1.001 / PER_SECOND_MAX
    assert rate.take([new_run()]) == WITHHELD


# --- who listens


async def hears(listener: Listener) -> bool:
    with anyio.fail_after(HEARD_WITHIN_SECONDS):
        return await listener.heard()


@pytest.fixture(params=["told by the kernel", "by looking"])
def by_either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "by looking":
        monkeypatch.setattr("durablestack.stores.connections.sqlite_listener._watch", lambda folder: None)


@pytest.mark.parametrize("place", ["postgres", "sqlite"], indirect=True)
@pytest.mark.usefixtures("by_either_way")
@pytest.mark.anyio
async def test_a_listener_hears_what_another_store_enqueues(place: Place, store: Store) -> None:
    listener = store.listen()
    assert listener is not None
    await listener.open()
    try:
        assert await listener.works()
        with closing(place.open()) as other:
            await hears(listener)  # whatever came before
            other.enqueue([new_run()])
            await hears(listener)
            with anyio.move_on_after(0.3):  # what is heard comes to an end
                while True:
                    await listener.heard()
            other.enqueue([new_run()])
            await hears(listener)
    finally:
        await listener.close()


@pytest.mark.parametrize("place", ["memory", "mysql", "sqlserver"], indirect=True)
def test_elsewhere_there_is_nothing_to_listen_to(store: Store) -> None:
    assert store.listen() is None


@on_sqlite
@pytest.mark.usefixtures("by_either_way")
@pytest.mark.anyio
async def test_a_claim_that_finds_nothing_is_not_heard_or_it_would_call_for_the_next(
    place: Place, store: Store
) -> None:
    listener = store.listen()
    assert listener is not None
    claim(store)
    await listener.open()
    with anyio.move_on_after(0.5):
        while True:
            await listener.heard()
    with closing(place.open()) as other, anyio.move_on_after(0.7) as quiet:
        for _ in range(20):
            assert claim(other) == []
        await listener.heard()
    assert quiet.cancelled_caught
    await listener.close()


@on_sqlite
@pytest.mark.usefixtures("by_either_way")
@pytest.mark.anyio
async def test_a_listener_hears_of_a_file_whose_log_is_not_there_yet(place: Place, store: Store) -> None:
    store.close()  # the last one out takes the log along
    listener = store.listen()
    assert listener is not None
    await listener.open()
    await hears(listener)  # whatever came before
    with closing(place.open()) as other:
        other.enqueue([new_run()])
        await hears(listener)
    await listener.close()


@on_sqlite
@pytest.mark.anyio
async def test_what_others_write_in_the_folder_is_not_heard_and_the_file_is_found_behind_a_link(
    place: Place, store: Store
) -> None:
    link = Path(place.sqlite_path).parent / "elsewhere" / "link.db"
    link.parent.mkdir()
    link.symlink_to(place.sqlite_path)
    with closing(Place("sqlite", f"sqlite:///{link}", place.table_prefix).open()) as linked:
        listener = linked.listen()
        assert listener is not None
        await listener.open()
        await hears(listener)
        with anyio.move_on_after(0.2) as quiet:
            (Path(place.sqlite_path).parent / "other.log").write_text("line")
            await listener.heard()
        assert quiet.cancelled_caught
        store.enqueue([new_run()])
        await hears(listener)
        await listener.close()


@on_postgres
@pytest.mark.anyio
async def test_behind_a_pooler_a_listener_knows_that_it_hears_nothing(place: Place) -> None:
    with psycopg.connect(place.database_url or "") as connection:
        port = connection.info.port
    with TransactionPooler(port) as pooler, closing(place.through(pooler.port).open()) as store:
        for _ in range(8):  # whichever session it is given
            listener = store.listen()
            assert listener is not None
            await listener.open()
            assert not await listener.works()
            await listener.close()


@on_postgres
@pytest.mark.anyio
async def test_a_listener_whose_server_is_silent_knows_it_in_time(place: Place) -> None:
    with psycopg.connect(place.database_url or "") as connection:
        port = connection.info.port
    with TcpProxy("127.0.0.1", port) as proxy, closing(place.through(proxy.port).open(timeout_seconds=1.0)) as store:
        listener = store.listen()
        assert listener is not None
        await listener.open()
        assert await listener.works()
        proxy.freeze()
        with anyio.fail_after(HEARD_WITHIN_SECONDS), pytest.raises(StoreUnavailable):
            await listener.works()
        await listener.close()
        with anyio.fail_after(HEARD_WITHIN_SECONDS), pytest.raises(StoreUnavailable):
            await listener.open()
        proxy.thaw()
        await listener.open()
        assert await listener.works()
        await listener.close()


@on_postgres
@pytest.mark.anyio
async def test_a_listener_whose_session_is_ended_says_so(place: Place, store: Store) -> None:
    listener = store.listen()
    assert listener is not None
    await listener.open()
    assert await listener.works()
    await hears(listener)
    end = "select pg_terminate_backend(pid) from pg_stat_activity where query like %s and pid <> pg_backend_pid()"
    with psycopg.connect(place.database_url or "", autocommit=True) as admin:
        admin.execute(end, [f'%listen "{place.table_prefix}durable_stack"%'])
    with pytest.raises(StoreUnavailable):
        await hears(listener)
    await listener.close()
    await listener.open()
    assert await listener.works()
    await listener.close()
