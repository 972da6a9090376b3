"""Where the jobs of one measurement are kept: a fresh database of each kind, and a look at how many are not done.

with open_place(kind, servers) as place:
    place.url           for the adapter
    place.count(query)  what a contender says of itself: how many of its jobs are not done
"""

from __future__ import annotations

import secrets
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import NamedTuple
from urllib.parse import urlsplit

import psycopg
import pymysql
from msgspec import Struct

from benchmarks.bench import Store
from benchmarks.peers.performance.redis import Redis


class Place(NamedTuple):
    url: str
    count: Callable[[str], int]
    """Of the rows, or the keys of Redis, that a query asks for; raises the driver's errors."""
    server_pid: int | None
    settle: Callable[[], object] = lambda: None
    """Bring about what a server does by itself within a minute or so, so that it does not do it while time is taken."""


class Servers(Struct, frozen=True):
    """Those that could be had; databases by their kind, which is MySQL for MariaDB too."""

    databases: dict[str, Store]
    redis: Redis | None

    def name_of(self, kind: str) -> str | None:
        """As tables have it; None, if there is none of that kind."""
        if kind == "Redis":
            return None if self.redis is None else f"Redis {self.redis.version}"
        return self.databases[kind].name if kind in self.databases else None


@contextmanager
def open_place(kind: str, servers: Servers) -> Iterator[Place]:
    """A database that nobody has used; gone in the end."""
    match kind:
        case "PostgreSQL":
            opened = _postgres(servers.databases[kind])
        case "MySQL":
            opened = _mysql(servers.databases[kind])
        case "SQLite":
            opened = _sqlite()
        case "Redis" if servers.redis is not None:
            opened = _redis(servers.redis)
        case _:
            raise ValueError(kind)
    with opened as place:
        yield place


@contextmanager
def _postgres(store: Store) -> Iterator[Place]:
    dsn = str(store.options["database_url"])
    name = f"peers_{secrets.token_hex(4)}"
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f'create database "{name}"')
        try:
            base = urlsplit(dsn)
            # asyncpg knows no more of libpq's words than these
            url = base._replace(path=f"/{name}", query="sslmode=disable").geturl()
            with psycopg.connect(url, autocommit=True) as looking:
                yield Place(
                    url,
                    count=lambda query: int(looking.execute(query).fetchone()[0]),  # type: ignore[index]
                    server_pid=store.server_pid,
                    settle=lambda: looking.execute("vacuum analyze") and looking.execute("checkpoint"),
                )
        finally:
            connection.execute(f'drop database "{name}" with (force)')


@contextmanager
def _mysql(store: Store) -> Iterator[Place]:
    base = urlsplit(str(store.options["database_url"]))
    name = f"peers_{secrets.token_hex(4)}"
    keywords = {
        "host": base.hostname,
        "port": base.port or 3306,
        "user": base.username,
        "password": base.password or "",
    }
    with closing(pymysql.connect(**keywords, autocommit=True)) as connection, connection.cursor() as cursor:
        cursor.execute(f"create database {name}")
        try:
            cursor.execute(f"use {name}")

            def count(query: str) -> int:
                cursor.execute(query)
                return int(cursor.fetchone()[0])

            yield Place(base._replace(path=f"/{name}").geturl(), count, store.server_pid)
        finally:
            cursor.execute(f"drop database {name}")


@contextmanager
def _sqlite() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="durablestack-peers-") as folder:
        path = f"{folder}/jobs.db"

        def count(query: str) -> int:
            with closing(sqlite3.connect(path, timeout=10.0)) as connection:
                return int(connection.execute(query).fetchone()[0])

        yield Place(f"sqlite:///{path}", count, None)


@contextmanager
def _redis(redis: Redis) -> Iterator[Place]:
    def count(commands: str) -> int:
        return sum(int(redis.ask(command.strip())) for command in commands.split(";"))

    redis.ask("flushall")
    try:
        yield Place(redis.url, count, redis.pid)
    finally:
        redis.ask("flushall")
