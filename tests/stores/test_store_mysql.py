"""What is particular about MySQL and MariaDB: sessions, indexes that locks follow, migrations without transactions."""

import signal
import ssl
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import pymysql
import pytest
from exam import JOB, Place, all_runs, claim, claimed, enqueue, enqueue_many, new_run, on_mysql, query, the_run
from msgspec.structs import replace
from pymysql.constants import FIELD_TYPE

from durablestack.errors import OptionsError, SchemaError, StoreError, StoreUnavailable
from durablestack.options import parse_connection_string
from durablestack.runs import RunStatus, Succeeded
from durablestack.stores.claims import lock_expired
from durablestack.stores.connections.mysql import PyMySql, check_version
from durablestack.stores.contract import Store
from durablestack.stores.dialects import MYSQL
from durablestack.stores.migrate import SCHEMA_VERSION, statements_of
from durablestack.stores.sql import SqlStore
from mariadb import MariaDbServer

FAR_FUTURE, DUE, TERMINAL, LEASED = 100_000, 40_000, 100_000, 500
PARAMETERS = {
    "job_names": [JOB, "another_job"],
    "limit": 50,
    "seconds": 86_400.0,
    "lease_token": None,
    "worker_id": None,
    "after": UUID(int=0),
}
STEPS = sum(len(statements_of(MYSQL, "", version)) for version in range(1, SCHEMA_VERSION + 1))

BACKLOG = """
insert into {runs} (
  id, job_name, status, scheduled_for_utc, attempt, max_attempts, created_at_utc, completed_at_utc, lease_token,
  lease_until_utc
)
with digits as (
  select 0 as d union all select 1 union all select 2 union all select 3 union all select 4 union all
  select 5 union all select 6 union all select 7 union all select 8 union all select 9
)
select unhex(replace(uuid(), '-', '')), '{job}', '{status}',
       utc_timestamp(6) + interval {seconds} + a.d + 10 * b.d + 100 * c.d + 1000 * d.d + 10000 * e.d second,
       0, 3, utc_timestamp(6), {completed}, {token}, {until}
from digits as a, digits as b, digits as c, digits as d, digits as e
limit {count}
"""


def connections(store: Store) -> Any:
    assert isinstance(store, SqlStore)
    return store._connections._ours()  # type: ignore[attr-defined]


def setting(store: Store, name: str) -> str:
    return str(query(store, f"show session variables where variable_name = '{name}'")[0][1])


# --- sessions


@on_mysql
def test_a_session_is_strict_in_utc_and_does_not_wait_long(place: Place) -> None:
    store = place.open(timeout_seconds=7)
    with closing(place.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("select version()")
        assert ("max_statement_time" in setting_names(store)) == ("MariaDB" in cursor.fetchone()[0])
    assert setting(store, "time_zone") == "+00:00"
    assert "STRICT_TRANS_TABLES" in setting(store, "sql_mode")
    assert setting(store, "character_set_connection") == "utf8mb4"
    assert setting(store, "innodb_lock_wait_timeout") == setting(store, "lock_wait_timeout") == "7"
    assert setting(store, "autocommit") == "ON"
    store.close()


def setting_names(store: Store) -> set[str]:
    return {row[0] for row in query(store, "show session variables")}


def test_a_default_of_serializable_does_not_reach_our_transactions(
    own_mariadb: Callable[[], MariaDbServer],
) -> None:
    place = Place("mysql", own_mariadb().dsn, "")
    with closing(place.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("set global tx_isolation = 'SERIALIZABLE'")
        cursor.execute("set global time_zone = '+05:45', global sql_mode = ''")
    store = place.open()
    store.migrate()
    assert setting(store, "tx_isolation") == "READ-COMMITTED"
    ids = enqueue_many(store, 3)
    with connections(store).transaction() as tx:
        tx.fetch(store._sql["RUNS_DUE_SELECT"], MYSQL.bind({**PARAMETERS, "limit": 1}))  # type: ignore[attr-defined]
        assert [run.id for run in claim(store)] == ids[1:]
    with pytest.raises(StoreError, match="too long"):  # rather than cut short
        enqueue(store, job_name="x" * 201)
    store.close()


@pytest.mark.parametrize(
    ("version", "accepted"),
    [
        ("8.0.17", True),
        ("8.4.3-log", True),
        ("9.7.4", True),
        ("8.0.16", False),
        ("5.7.44-log", False),
        ("10.6.0-MariaDB", True),
        ("5.5.5-10.11.19-MariaDB-0+deb12u1", True),
        ("11.8.2-MariaDB-ubu2404", True),
        ("5.5.5-10.5.28-MariaDB", False),
        ("", False),
    ],
)
def test_a_server_that_is_too_old_is_told_in_one_sentence(version: str, accepted: bool) -> None:
    if accepted:
        return check_version("mysql://db/shop", version)
    with pytest.raises(StoreError, match=r"mysql://db/shop: .*MySQL 8\.0\.17 or MariaDB 10\.6, or later") as caught:
        check_version("mysql://db/shop", version)
    assert not isinstance(caught.value, StoreUnavailable | SchemaError)


@on_mysql
def test_a_connection_that_sat_idle_for_long_is_not_trusted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ((first,),) = query(store, "select connection_id()")
    assert query(store, "select connection_id()") == [(first,)]
    monkeypatch.setattr("durablestack.stores.connections.pooled._IDLE_SECONDS_MAX", 0.0)
    assert query(store, "select connection_id()") != [(first,)]


@on_mysql
def test_connections_are_as_many_as_were_asked_for_and_no_more(place: Place, store: Store) -> None:
    narrow = place.open(connections_max=1, timeout_seconds=0.3)
    with (
        connections(narrow).read(),
        pytest.raises(StoreUnavailable, match=r"all 1 connections were busy for 0\.3 s"),
    ):
        narrow.count_runs()
    assert narrow.count_runs() == store.count_runs()
    narrow.close()


@on_mysql
def test_a_row_counts_that_was_found_though_nothing_of_it_changed(store: Store) -> None:
    enqueue(store)
    with connections(store).transaction() as tx:
        cursor = tx._new_cursor()
        cursor.execute(MYSQL.render("", "update {runs} set status = 'pending'", store.prefix))  # type: ignore[attr-defined]
        assert cursor.rowcount == 1


@on_mysql
def test_a_payload_beyond_what_the_server_takes_is_refused_for_good(
    own_mariadb: Callable[[], MariaDbServer], place: Place
) -> None:
    own = replace_place(place, own_mariadb().dsn)
    with closing(own.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("set global max_allowed_packet = 1048576")
    store = own.open()
    store.migrate()
    with pytest.raises(StoreError):
        enqueue(store, payload="x" * 2_000_000)
    enqueue(store)
    assert len(all_runs(store)) == 1
    store.close()


def replace_place(place: Place, dsn: str) -> Place:
    return Place(place.provider, dsn, place.table_prefix)


@on_mysql
def test_many_rows_go_in_few_statements(store: Store) -> None:
    before = inserts_of(store)
    runs = [new_run(payload=f"%s {number} 'quoted' {'x' * 1000}") for number in range(1000)]
    store.enqueue([*runs, runs[0]])
    assert 1 < inserts_of(store) - before < 10
    assert {run.id: run.payload for run in all_runs(store).values()} == {run.id: run.payload for run in runs}


def inserts_of(store: Store) -> int:
    return int(query(store, "show session status where variable_name = 'Com_insert'")[0][1])


def test_a_server_that_crashed_is_served_again_when_it_is_back(own_mariadb: Callable[[], MariaDbServer]) -> None:
    server = own_mariadb()
    place = Place("mysql", server.dsn, "")
    with closing(place.connect()) as connection:  # ours write their log once a second, since none is to be kept
        connection.cursor().execute("set global innodb_flush_log_at_trx_commit = 1")
    store = place.open()
    store.migrate()
    lease = claim_of(store)
    server.stop(signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            store.record([Succeeded(lease)])
    server.start()
    assert store.record([Succeeded(lease)]) == {lease.run_id: RunStatus.SUCCEEDED}
    store.close()


def test_a_password_may_be_of_any_characters(own_mariadb: Callable[[], MariaDbServer]) -> None:
    server = own_mariadb()
    password = "p@ss:wörd/%?#';\\\""
    with closing(Place("mysql", server.dsn, "").connect()) as connection, connection.cursor() as cursor:
        cursor.execute("create user ada@'%%' identified by %s", [password])
        cursor.execute("grant all on durablestack.* to ada@'%'")
    store = Place("mysql", f"mysql://ada:{quote(password, safe='')}@127.0.0.1:{server.port}/durablestack", "").open()
    assert store.migrate() == list(range(1, SCHEMA_VERSION + 1))
    store.close()
    store = Place("mysql", f"mysql://ada:hunter22@127.0.0.1:{server.port}/durablestack", "").open()
    with pytest.raises(StoreUnavailable, match="ada") as caught:
        store.count_runs()
    assert "hunter22" not in str(caught.value)
    store.close()


# --- successes


@on_mysql
def test_successes_of_several_claims_are_written_in_one_statement(store: Store) -> None:
    enqueue_many(store, 6)
    leases = [run.lease for _ in range(3) for run in claim(store, batch_size=2)]
    before = locking_reads_and_updates_of(store)
    recorded = store.record([Succeeded(lease) for lease in reversed(leases)])
    assert recorded == dict.fromkeys([lease.run_id for lease in leases], RunStatus.SUCCEEDED)
    assert locking_reads_and_updates_of(store) == (before[0], before[1] + 1)
    assert {run.status for run in all_runs(store).values()} == {RunStatus.SUCCEEDED}


@on_mysql
def test_a_success_counts_with_the_lease_of_its_own_run_alone(store: Store) -> None:
    """Both runs and both tokens are shown, each with the other."""
    enqueue_many(store, 3)
    first, second, third = (claim(store, batch_size=1)[0].lease for _ in range(3))
    crossed = [replace(first, token=second.token), replace(second, token=first.token)]
    assert store.record([*map(Succeeded, crossed), Succeeded(third)]) == {third.run_id: RunStatus.SUCCEEDED}
    assert [the_run(store, lease.run_id).lease for lease in (first, second)] == [first, second]


def locking_reads_and_updates_of(store: Store) -> tuple[int, int]:
    counts = dict(query(store, "show session status where variable_name in ('Com_select', 'Com_update')"))
    return int(counts["Com_select"]), int(counts["Com_update"])


# --- what errors mean


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        (pymysql.err.OperationalError, number)
        for number in (1020, 1040, 1205, 1213, 1290, 1792, 1836, 1927, 1969, 2003, 2006, 2013, 3024)
    ]
    + [(pymysql.err.InterfaceError, 0), (pymysql.err.InternalError, 1180)],
)
def test_errors_that_may_pass_are_told_so(kind: type[Exception], number: int) -> None:
    driver = PyMySql(parse_connection_string("mysql://db/shop"))
    assert type(driver.translated("text", kind(number, "words"))) is StoreUnavailable
    assert driver.may_be_done(kind(number, "words")) == (number in (0, 1927, 1969, 2006, 2013, 3024))


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        (pymysql.err.OperationalError, 1142),
        (pymysql.err.OperationalError, 1153),
        (pymysql.err.OperationalError, 1366),
        (pymysql.err.OperationalError, 1665),
        (pymysql.err.OperationalError, 4025),
        (pymysql.err.ProgrammingError, 1064),
        (pymysql.err.DataError, 1406),
        (pymysql.err.IntegrityError, 1062),
    ],
)
def test_errors_that_will_come_again_are_told_so(kind: type[Exception], number: int) -> None:
    driver = PyMySql(parse_connection_string("mysql://db/shop"))
    assert type(driver.translated("text", kind(number, "words"))) is StoreError


# --- connection strings


def keywords(text: str) -> dict[str, Any]:
    return PyMySql(parse_connection_string(text))._keywords


def test_a_connection_string_becomes_what_the_driver_takes() -> None:
    said = keywords("mysql://me:p%40ss%C3%A9@db:3307/shop?ssl_ca=/ca.pem&ssl-mode=verify-full&charset=latin1")
    assert {name: said[name] for name in ("host", "port", "user", "password", "database")} == {
        "host": "db",
        "port": 3307,
        "user": "me",
        "password": "p@ssé".encode(),
        "database": "shop",
    }
    assert said["autocommit"] is True
    assert said["charset"] == "utf8mb4"
    assert (said["ssl_ca"], said["ssl_verify_cert"], said["ssl_verify_identity"]) == ("/ca.pem", True, True)


def test_tls_is_preferred_required_or_left_out_as_asked_for() -> None:
    assert not {"ssl", "ssl_disabled"} & keywords("mysql://db/shop").keys()
    assert keywords("mysql://db/shop?ssl_mode=none")["ssl_disabled"] is True
    assert keywords("mysql://db/shop?sslmode=Required")["ssl"].check_hostname is False
    assert keywords("mysql://db/shop?ssl_ca=/ca.pem")["ssl_verify_cert"] is True


def test_attempts_to_connect_share_what_is_costly_to_make(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    create = ssl.create_default_context
    monkeypatch.setattr(ssl, "create_default_context", lambda **options: made.append(options) or create(**options))
    driver = PyMySql(parse_connection_string("mysql://me@127.0.0.1:1/shop"))
    for _ in range(3):
        with pytest.raises(pymysql.err.OperationalError):
            driver.connect(1.0)
    assert len(made) == 1


def test_an_instant_is_one_of_utc_or_is_left_as_it_stands() -> None:
    decode = keywords("mysql://db/shop")["conv"][FIELD_TYPE.DATETIME]
    assert decode("2026-02-28 23:59:59.000001") == datetime(2026, 2, 28, 23, 59, 59, 1, UTC)
    assert decode("2026-02-28 23:59:59") == datetime(2026, 2, 28, 23, 59, 59, tzinfo=UTC)
    for text in ("0000-00-00 00:00:00.000000", "2026-02-31 00:00:00.000000"):
        assert decode(text) == text


@pytest.mark.parametrize("text", ["mysql://db/shop?colour=red", "mysql://db/shop?ssl_mode=maybe"])
def test_what_the_driver_does_not_know_is_refused_by_name(text: str) -> None:
    with pytest.raises(OptionsError, match=r"colour|ssl_mode"):
        keywords(text)


def test_a_missing_driver_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymysql", None)
    with pytest.raises(OptionsError, match=r"pip install 'durablestack\[mysql\]'"):
        keywords("mysql://db/shop")


@on_mysql
def test_text_that_nobody_cleaned_is_refused_for_good(store: Store) -> None:
    with pytest.raises(StoreError, match="not cleaned") as caught:
        enqueue(store, payload="surrogate \ud800")
    assert not isinstance(caught.value, StoreUnavailable)
    assert all_runs(store) == {}


# --- migrations


@on_mysql
@pytest.mark.parametrize("done", range(1, STEPS))
def test_a_migration_that_was_cut_short_is_finished_by_the_next(place: Place, done: int) -> None:
    store = place.open()
    steps = [
        (version, step)
        for version in range(1, SCHEMA_VERSION + 1)
        for step in statements_of(MYSQL, place.table_prefix, version)
    ]
    with connections(store).read() as tx:
        for _, step in steps[:done]:
            tx.run(step, {})
    assert store.migrate() == list(range(1, SCHEMA_VERSION + 1))
    store.verify_schema()
    lease = claim_of(store)
    assert store.record([Succeeded(lease)]) == {lease.run_id: RunStatus.SUCCEEDED}
    store.close()


def claim_of(store: Store) -> Any:
    enqueue(store)
    (run,) = claim(store)
    return run.lease


@on_mysql
def test_the_lock_of_a_migration_is_given_back(place: Place) -> None:
    stores = [place.open(connections_max=1, timeout_seconds=2) for _ in range(2)]
    assert stores[0].migrate() == list(range(1, SCHEMA_VERSION + 1))
    with connections(stores[1]).transaction() as tx:
        key = MYSQL.migration_lock.partition("'")[2].partition("'")[0]
        assert tx.fetch(f"select get_lock('{key}', 0)", {}) == [(1,)]
    for store in stores:
        store.close()


# --- plans


def fill(store: Store) -> None:
    for status, seconds, completed, count in (
        ("pending", 10_000_000, "null", FAR_FUTURE),
        ("pending", -10_000_000, "null", DUE),
        ("succeeded", -20_000_000, "utc_timestamp(6) - interval a.d + 10 * b.d + 100 * c.d second", TERMINAL),
        ("leased", -100, "null", LEASED),
    ):
        leased = status == "leased"
        statement = BACKLOG.format(
            runs="{runs}",
            job=JOB,
            status=status,
            seconds=seconds,
            completed=completed,
            count=count,
            token="unhex(replace(uuid(), '-', ''))" if leased else "null",
            until="utc_timestamp(6) + interval 1 hour" if leased else "null",
        )
        with connections(store).transaction() as tx:
            tx.run(MYSQL.render("", statement, store.prefix), {})  # type: ignore[attr-defined]


def check_plans(store: Store) -> None:
    """By the index that was made for it, in its order: no sort, no scan."""
    assert isinstance(store, SqlStore)
    for name, index in (
        ("RUNS_DUE_SELECT", "due"),
        ("EXPIRED_IDS_SELECT", "status"),
        ("RUNS_OF_CLAIM_SELECT", "status"),
        ("RUNS_OF_WORKER_SELECT", "status"),
        ("RUNS_PRUNABLE_SELECT", "completed"),
        ("RUNS_SELECT_DUE_FIRST", "due"),
    ):
        plan, *_ = explained(store, name, PARAMETERS)
        assert plan["type"] in ("range", "ref"), name
        assert plan["key"] == f"{store.prefix}ix_durable_stack_job_runs_{index}", name
        assert "filesort" not in plan["Extra"], name


def explained(store: Store, name: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    assert isinstance(store, SqlStore)
    with connections(store).read() as tx:
        cursor = tx._new_cursor()
        cursor.execute(f"explain {store._sql[name]}", MYSQL.bind(parameters))
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def rows_read(store: Store, name: str, parameters: Mapping[str, Any]) -> int:
    """How many rows and entries of indexes the server has taken into its hand for one statement."""
    assert isinstance(store, SqlStore)
    with connections(store).read() as tx:
        tx.run("flush status", {})
        tx.run("start transaction", {})
        tx.run(store._sql[name], MYSQL.bind(parameters))
        rows = tx.fetch("show session status like 'handler_read%%'", {})
        tx.run("rollback", {})
    return sum(int(count) for _, count in rows)


def check_rows_read(store: Store) -> None:
    (mark,) = query(store, "select scheduled_for_utc, id from {runs} where status = 'pending' order by id limit 1")
    ids = [id for (id,) in query(store, "select id from {runs} where status = 'leased' order by id limit 50")]
    parameters = {
        **PARAMETERS,
        "mark_scheduled_for": mark[0],
        "mark_id": mark[1],
        "ids": ids,
        "worker_name": "w",
        "job_name": JOB,
        "slot": mark[0],
        "lease_token": ids[0],
        "leases": [(id, id) for id in ids],
    }
    batch = int(PARAMETERS["limit"])
    for name, rows_max in (
        ("RUNS_DUE_SELECT", batch),
        ("RUNS_DUE_FROM_MARK_SELECT", batch),
        ("EXPIRED_LOOK", LEASED),
        ("EXPIRED_IDS_SELECT", LEASED),
        ("RUNS_EXPIRED_SELECT", batch),
        ("LEASES_SELECT_FOR_UPDATE", batch),
        ("RUNS_LEASE", batch),
        ("LEASES_EXTEND", batch),
        ("REQUESTS_SELECT", batch),
        ("RUNS_SUCCEED", batch),
        ("RUNS_SUCCEED_BY_LEASE", batch),
        ("BACKLOG_SELECT", 2 * batch),  # and once more to count them
        ("RUNS_PRUNABLE_SELECT", batch),
        ("RUNS_DELETE", 2 * batch),
        ("ATTEMPTS_DELETE", 2 * batch),
        ("RUN_OF_SLOT_SELECT", 1),
    ):
        assert rows_read(store, name, parameters) <= 2 * rows_max + 20, name


@on_mysql
def test_a_claim_reads_indexes_in_their_order_whatever_the_backlog(place: Place) -> None:
    store = place.open(timeout_seconds=60)
    assert isinstance(store, SqlStore)
    store.migrate()
    fill(store)
    check_plans(store)
    query(store, "analyze table {runs}")
    check_plans(store)
    check_rows_read(store)
    assert len(claimed(store, batch_size=50).runs) == 50
    store.close()


@on_mysql
def test_a_claim_locks_the_rows_that_it_takes_and_no_others(store: Store) -> None:
    """InnoDB locks what a locking read reads: with the wrong index, all that is due."""
    assert isinstance(store, SqlStore)
    enqueue_many(store, 200)
    claim(store, batch_size=20)
    count = "select count(*) from (select id from {runs} where status = 'pending' for update skip locked) as free"
    with store._transaction() as tx:
        lock_expired(tx)
        tx.fetch("RUNS_DUE_SELECT", job_names=[JOB], limit=10)
        with connections(store).transaction() as other:
            assert other.fetch(MYSQL.render("", count, store.prefix), {}) == [(200 - 20 - 10,)]


@on_mysql
def test_writes_by_key_do_not_read_the_rows_beside_them(store: Store) -> None:
    """Of a small table the optimizer would read all rows, and wait for those that others hold."""
    assert isinstance(store, SqlStore)
    ids = enqueue_many(store, 6)
    parameters = {
        "ids": ids[1:],
        "leases": [(id, uuid4()) for id in ids[1:]],
        "worker_name": "w",
        "worker_id": None,
        "lease_token": uuid4(),
        "seconds": 30.0,
    }
    for name, kind in (
        ("RUNS_EXPIRED_SELECT", "range"),
        ("LEASES_SELECT_FOR_UPDATE", "range"),
        ("RUNS_LEASE", "range"),
        ("LEASES_EXTEND", "range"),
        ("LEASES_EXPIRE", "range"),
        ("RUNS_SUCCEED", "range"),
        ("RUNS_SUCCEED_BY_LEASE", "range"),
        ("RUNS_RELEASE", "range"),
        ("RUNS_DELETE", "range"),
        ("ATTEMPTS_DELETE", "ref"),
    ):
        *named, written = explained(store, name, parameters)
        assert (written["type"], written["key"]) == (kind, "PRIMARY"), name
        # of two tables, what is read of the first one is locked too
        assert [(each["type"], each["key"]) for each in named] == [("range", "PRIMARY")] * len(named), name


@on_mysql
def test_the_same_run_is_stored_once_though_its_first_insert_has_not_ended(place: Place, store: Store) -> None:
    run = new_run(payload="1")
    with closing(place.connect()) as connection:
        store.enqueue([run], connection)
        impatient = place.open(timeout_seconds=1)
        with pytest.raises(StoreUnavailable):
            impatient.enqueue([run])
        connection.commit()
        impatient.enqueue([replace(run, payload="2")])
        impatient.close()
    assert [each.payload for each in all_runs(store).values()] == ["1"]
