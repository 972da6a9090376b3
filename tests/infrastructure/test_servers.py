"""The servers of the tests are what the tests believe them to be."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pymysql
import pytest

from mariadb import MariaDbServer, mariadb_binaries
from servers import PORT_FIRST, PORT_LAST, PostgresServer, postgres_binaries

DIES_WITHOUT_A_WORD = """
import os, signal, sys
if sys.argv[2] == "mariadb":
    from mariadb import start_mariadb as start
else:
    from servers import start_postgres as start
server = start()
print(server.folder, flush=True)
os.kill(os.getpid(), getattr(signal, sys.argv[1]))
"""


def scalar(dsn: str, query: str) -> object:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def test_the_shared_postgres_answers(postgres_dsn: str) -> None:
    assert scalar(postgres_dsn, "select 1") == 1


def test_a_restart_keeps_the_port_and_the_data(own_postgres: Callable[[], PostgresServer]) -> None:
    server = own_postgres()
    dsn = server.dsn
    with psycopg.connect(dsn) as connection:
        connection.execute("create table kept (number integer)")
        connection.execute("insert into kept values (1)")
    server.stop("fast")
    with pytest.raises(psycopg.OperationalError):
        scalar(dsn, "select 1")
    server.start()
    assert scalar(dsn, "select count(*) from kept") == 1
    server.stop("immediate")
    server.start()
    assert server.dsn == dsn
    assert scalar(dsn, "select count(*) from kept") == 1


def test_a_server_of_our_own_has_our_settings(own_postgres: Callable[[], PostgresServer]) -> None:
    server = own_postgres()
    assert scalar(server.dsn, "show fsync") == "off"
    assert scalar(server.dsn, "show max_connections") == "300"
    assert scalar(server.dsn, "show listen_addresses") == "127.0.0.1"
    assert PORT_FIRST <= server.port <= PORT_LAST


def test_close_removes_the_folder_and_the_processes(own_postgres: Callable[[], PostgresServer]) -> None:
    server = own_postgres()
    folder = server.folder
    pids = server.pids
    assert len(pids) == 2
    server.close()
    assert not folder.exists()
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGKILL"])
def test_a_server_does_not_outlive_the_process_that_started_it(signal_name: str, kind: str) -> None:
    if not (list(postgres_binaries()) if kind == "postgres" else all(mariadb_binaries())):
        pytest.skip(f"{kind} of our own: no binaries")
    died = subprocess.run(
        [sys.executable, "-c", DIES_WITHOUT_A_WORD, signal_name, kind],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        check=False,
        timeout=60,
    )
    assert died.returncode == -getattr(signal, signal_name)
    folder = Path(died.stdout.decode().strip())
    deadline = time.monotonic() + 20
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not folder.exists()


# --- MariaDB


def mariadb_scalar(server: MariaDbServer, *statements: str) -> object:
    """The one value of the last statement."""
    connection = pymysql.connect(host="127.0.0.1", port=server.port, user="durablestack", database="durablestack")
    with connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        connection.commit()
        return cursor.fetchone()[0]


def test_a_mariadb_restarts_with_its_port_and_its_data(own_mariadb: Callable[[], MariaDbServer]) -> None:
    server = own_mariadb()
    dsn = server.dsn
    assert mariadb_scalar(server, "select @@innodb_flush_log_at_trx_commit") == 0
    mariadb_scalar(server, "create table kept (number integer)", "insert into kept values (7)", "select 1")
    for first_signal in (signal.SIGTERM, signal.SIGKILL):
        server.stop(first_signal)
        with pytest.raises(pymysql.OperationalError):
            mariadb_scalar(server, "select 1")
        server.start()
        assert server.dsn == dsn
        assert mariadb_scalar(server, "select number from kept") == 7


def test_a_closed_mariadb_leaves_neither_folder_nor_process(own_mariadb: Callable[[], MariaDbServer]) -> None:
    server = own_mariadb()
    folder, pids = server.folder, server.pids
    assert len(pids) == 2
    server.close()
    assert not folder.exists()
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
