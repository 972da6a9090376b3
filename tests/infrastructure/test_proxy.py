"""The proxy misbehaves exactly as told."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

import psycopg
import pytest

from proxy import CommitWatch, Cut, TcpProxy, When
from workers import PATIENCE_SECONDS, eventually


@pytest.fixture
def proxy(postgres_dsn: str) -> Iterator[TcpProxy]:
    target = urlsplit(postgres_dsn)
    with TcpProxy(target.hostname or "127.0.0.1", target.port or 5432) as proxy:
        yield proxy


@pytest.fixture
def proxied_dsn(postgres_dsn: str, proxy: TcpProxy) -> str:
    return psycopg.conninfo.make_conninfo(postgres_dsn, host="127.0.0.1", port=proxy.port, connect_timeout=5)


@pytest.fixture
def table(postgres_dsn: str, table_prefix: str) -> Iterator[str]:
    name = f"{table_prefix}rows"
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        connection.execute(f"create table {name} (word text)".encode())
        yield name
        connection.execute(f"drop table {name}".encode())


def row_count(dsn: str, table: str) -> int:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(f"select count(*) from {table}".encode()).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize(("when", "rows"), [("before", 0), ("after", 1)])
def test_a_commit_is_cut_before_or_after_it_happens(
    when: When, rows: int, proxy: TcpProxy, proxied_dsn: str, postgres_dsn: str, table: str
) -> None:
    with psycopg.connect(proxied_dsn) as bystander, psycopg.connect(proxied_dsn) as connection:
        proxy.cut_commit(when, b"insert into " + table.encode())
        bystander.execute("select 1")
        bystander.commit()
        assert not proxy.cut_done.is_set()
        connection.execute(f"insert into {table} values ('x')".encode())
        with pytest.raises(psycopg.OperationalError):
            connection.commit()
        assert proxy.cut_done.wait(5)
        bystander.execute("select 1")
    assert proxy.cuts == 1
    assert row_count(postgres_dsn, table) == rows


@pytest.mark.parametrize(("when", "rows"), [("before", 0), ("after", 1)])
def test_a_marker_and_a_commit_in_one_piece_are_cut(
    when: When, rows: int, proxy: TcpProxy, proxied_dsn: str, postgres_dsn: str, table: str
) -> None:
    with psycopg.connect(proxied_dsn, autocommit=True) as connection:
        proxy.cut_commit(when, b"insert into")
        with pytest.raises(psycopg.OperationalError):
            connection.execute(f"begin; insert into {table} values ('x'); COMMIT".encode())
    assert proxy.cut_done.wait(5)
    assert proxy.cuts == 1
    assert row_count(postgres_dsn, table) == rows


def test_a_cut_happens_once(proxy: TcpProxy, proxied_dsn: str, postgres_dsn: str, table: str) -> None:
    insert = f"insert into {table} values ('x')".encode()
    proxy.cut_commit("before", insert)
    with psycopg.connect(proxied_dsn) as connection:
        connection.execute(insert)
        with pytest.raises(psycopg.OperationalError):
            connection.commit()
    with psycopg.connect(proxied_dsn) as connection:
        connection.execute(insert)
    assert row_count(postgres_dsn, table) == 1


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_marker_and_commit_are_seen_across_pieces(size: int) -> None:
    text = b"commit; insert into rows; Commit"
    watch = CommitWatch(Cut("before", b"insert into rows"))
    seen = [watch.sees_commit(text[start : start + size]) for start in range(0, len(text), size)]
    assert seen.index(True) == len(seen) - 1


def test_a_frozen_proxy_holds_back_until_it_thaws(proxy: TcpProxy, proxied_dsn: str) -> None:
    answers: list[object] = []

    def ask(connection: psycopg.Connection[tuple[object, ...]]) -> None:
        answers.append(connection.execute("select 1").fetchone())

    with psycopg.connect(proxied_dsn, autocommit=True) as connection:
        proxy.freeze()
        asking = threading.Thread(target=ask, args=(connection,))
        asking.start()
        asking.join(0.3)
        assert asking.is_alive()
        assert answers == []
        proxy.thaw()
        asking.join(5)
        assert answers == [(1,)]


def test_a_frozen_proxy_accepts_and_says_nothing(proxy: TcpProxy, proxied_dsn: str) -> None:
    proxy.freeze()
    with pytest.raises(psycopg.errors.ConnectionTimeout):
        psycopg.connect(proxied_dsn, connect_timeout=2)
    assert proxy.accepted == 1
    proxy.thaw()
    psycopg.connect(proxied_dsn).close()


def test_a_refusing_proxy_ends_what_is_there_and_comes_back(proxy: TcpProxy, proxied_dsn: str) -> None:
    with psycopg.connect(proxied_dsn) as connection:
        assert proxy.connections == 1
        proxy.refuse()
        assert proxy.connections == 0
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
        with pytest.raises(psycopg.OperationalError, match="refused"):
            psycopg.connect(proxied_dsn)
    proxy.pass_through()
    psycopg.connect(proxied_dsn).close()


def test_a_reset_ends_the_connections_that_exist(proxy: TcpProxy, proxied_dsn: str) -> None:
    with psycopg.connect(proxied_dsn) as connection:
        proxy.reset_all()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
    psycopg.connect(proxied_dsn).close()


def test_connections_beyond_the_bound_are_reset(postgres_dsn: str) -> None:
    target = urlsplit(postgres_dsn)
    with TcpProxy(target.hostname or "127.0.0.1", target.port or 5432, connections_max=1) as proxy:
        dsn = psycopg.conninfo.make_conninfo(postgres_dsn, host="127.0.0.1", port=proxy.port)
        with psycopg.connect(dsn):
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(dsn)
            assert proxy.connections == 1


def test_held_answers_come_late_and_what_was_asked_is_done_meanwhile(
    proxy: TcpProxy, proxied_dsn: str, postgres_dsn: str, table: str
) -> None:
    with psycopg.connect(proxied_dsn, autocommit=True) as connection:
        proxy.hold_answers()
        insert = threading.Thread(target=connection.execute, args=(f"insert into {table} values ('x')".encode(),))
        insert.start()
        eventually(lambda: row_count(postgres_dsn, table) == 1)
        assert insert.is_alive()
        proxy.pass_through()
        insert.join(5)
        assert not insert.is_alive()
        assert connection.execute("select 1").fetchone() == (1,)


def test_held_requests_arrive_late_even_if_their_sender_has_gone(
    proxy: TcpProxy, proxied_dsn: str, postgres_dsn: str, table: str
) -> None:
    connection = psycopg.connect(proxied_dsn, autocommit=True)
    proxy.hold_requests()
    connection.pgconn.send_query(f"insert into {table} values ('x')".encode())
    connection.pgconn.flush()
    connection.close()
    assert row_count(postgres_dsn, table) == 0
    proxy.pass_through()
    eventually(lambda: row_count(postgres_dsn, table) == 1)


def test_answers_of_before_still_arrive_while_requests_are_held(
    proxy: TcpProxy, proxied_dsn: str, postgres_dsn: str, table: str
) -> None:
    with psycopg.connect(proxied_dsn, autocommit=True) as connection:
        statement = f"insert into {table} values ('x'); select pg_sleep(0.5)"
        asking = threading.Thread(target=connection.execute, args=(statement.encode(),))
        asking.start()
        with psycopg.connect(postgres_dsn) as bystander:
            eventually(lambda: _is_under_way(bystander, statement))
        proxy.hold_requests()
        asking.join(5)
        assert not asking.is_alive()
        proxy.pass_through()


def _is_under_way(connection: psycopg.Connection[tuple[object, ...]], statement: str) -> bool:
    with connection.transaction():
        return bool(connection.execute("select 1 from pg_stat_activity where query = %s", (statement,)).fetchall())


def test_dropped_answers_never_come_and_cost_the_connection(
    proxy: TcpProxy, proxied_dsn: str, postgres_dsn: str, table: str
) -> None:
    with psycopg.connect(proxied_dsn) as bystander, closing(psycopg.connect(proxied_dsn)) as connection:
        proxy.drop_answers()
        connection.pgconn.send_query(f"insert into {table} values ('x')".encode())
        connection.pgconn.flush()
        eventually(lambda: row_count(postgres_dsn, table) == 1)
        assert proxy.answers_dropped.wait(PATIENCE_SECONDS)  # it comes after what it tells of
        assert proxy.connections == 2
        proxy.pass_through()
        eventually(lambda: proxy.connections == 1)
        assert bystander.execute("select 1").fetchone() == (1,)


def test_a_slow_proxy_holds_each_piece_for_a_while(proxy: TcpProxy, proxied_dsn: str) -> None:
    with psycopg.connect(proxied_dsn, autocommit=True) as connection:
        proxy.slow_down(seconds=0.2)
        began_at = time.monotonic()
        connection.execute("select 1")
        assert time.monotonic() - began_at >= 0.4  # there and back
        proxy.pass_through()


def test_a_throttled_proxy_lets_so_many_bytes_through(proxy: TcpProxy, proxied_dsn: str) -> None:
    with psycopg.connect(proxied_dsn, autocommit=True) as connection:
        proxy.slow_down(bytes_per_second=20_000)
        began_at = time.monotonic()
        connection.execute("select repeat('x', 10000)")
        assert time.monotonic() - began_at >= 0.5
        proxy.reset_all()  # at once, though it is slow
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")


def test_a_cut_that_was_disarmed_does_not_happen(
    proxy: TcpProxy, proxied_dsn: str, postgres_dsn: str, table: str
) -> None:
    proxy.cut_commit("before", b"insert into")
    proxy.disarm()
    with psycopg.connect(proxied_dsn) as connection:
        connection.execute(f"insert into {table} values ('x')".encode())
    assert (proxy.cuts, row_count(postgres_dsn, table)) == (0, 1)
