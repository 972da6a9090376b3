"""What is different from one database to the next: a value per database, and nothing but words and conversions.

The algorithm is everywhere the same: lock candidates, decide in Python, write by key, in one transaction.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct

Parameters = Mapping[str, Any]


class Dialect(Struct, frozen=True, kw_only=True):
    """The words of one database. Statements name them in braces; parameters are written `:name`.

    Attributes:
        begin: opens a transaction that may lock rows; `{timeout_ms}` bounds each statement of it.
        now: the current instant, usable in an index condition.
        now_plus_seconds, now_minus_seconds: the instant `:seconds` from now, or ago.
        in_list: what follows a column to ask whether it is among the parameter `{name}`, a list.
        for_update, skip_locked: at the end of a select: wait for the rows, or pass over those locked.
        lock_hint, skip_locked_hint: the same, after the table's name.
        limit: at the end of an ordered select: at most `:limit` rows.
        or_ignore: at the end of an insert: leave a row alone whose key is there already.
        quote: how the name of a table is written.
        parameter: how the driver writes the parameter `{name}`.
        overrides: statements that this database says in its own way, by name.
        facts: queries of one value each, about its version and settings, for people who look for a fault.
    """

    name: str
    migrations: str
    begin: str
    now: str
    now_plus_seconds: str
    now_minus_seconds: str
    in_list: str
    parameter: str
    to_database: Callable[[Any], Any]
    to_uuid: Callable[[Any], UUID | None]
    to_datetime: Callable[[Any], datetime | None]
    quote: str = '"{}"'
    for_update: str = ""
    skip_locked: str = ""
    lock_hint: str = ""
    skip_locked_hint: str = ""
    limit: str = "limit :limit"
    or_ignore: str = "on conflict (id) do nothing"
    overrides: Mapping[str, str] = {}
    facts: Mapping[str, str] = {}

    def quoted(self, identifier: str) -> str:
        """A name of a table or an index; the prefix in it was checked with the options, and is quoted all the same."""
        return self.quote.format(identifier)

    def render(self, name: str, template: str, prefix: str) -> str:
        """The statement called `name` as this database and its driver take it."""
        words = {
            "runs": self.quoted(f"{prefix}durable_stack_job_runs"),
            "attempts": self.quoted(f"{prefix}durable_stack_job_run_attempts"),
            "migrations": self.quoted(f"{prefix}durable_stack_schema_migrations"),
            "now": self.now,
            "now_plus_seconds": self.now_plus_seconds,
            "now_minus_seconds": self.now_minus_seconds,
            "for_update": self.for_update,
            "skip_locked": self.skip_locked,
            "lock_hint": self.lock_hint,
            "skip_locked_hint": self.skip_locked_hint,
            "limit": self.limit,
            "or_ignore": self.or_ignore,
            "in_ids": self.in_list.format(name="ids"),
            "in_job_names": self.in_list.format(name="job_names"),
        }
        text = self.overrides.get(name, template).format_map(words)
        lines = (line.rstrip() for line in text.strip().splitlines())
        return re.sub(r"(?<![:\w]):(\w+)", lambda found: self.parameter.format(name=found[1]), "\n".join(lines))

    def bind(self, parameters: Parameters) -> dict[str, Any]:
        return {name: self.to_database(value) for name, value in parameters.items()}


def _same(value: Any) -> Any:
    return value


POSTGRES = Dialect(
    name="postgres",
    migrations="postgres",
    # without statistics the planner expects few rows and sorts them: after a bulk enqueue, the whole backlog per claim
    begin=(
        "begin isolation level read committed; "
        "select set_config('statement_timeout', '{timeout_ms}', true), "
        "set_config('lock_timeout', '{timeout_ms}', true), "
        "set_config('idle_in_transaction_session_timeout', '15000', true), "
        "set_config('enable_bitmapscan', 'off', true)"
    ),
    # clock_timestamp(), since now() is the start of the transaction, which may have waited for a lock;
    # as a subquery, since a volatile function is no index condition
    now="(select clock_timestamp())",
    now_plus_seconds="(select clock_timestamp()) + make_interval(secs => :seconds)",
    now_minus_seconds="(select clock_timestamp()) - make_interval(secs => :seconds)",
    in_list="= any(:{name})",
    parameter="%({name})s",
    for_update="for update",
    skip_locked="for update skip locked",
    to_database=lambda value: list(value) if isinstance(value, tuple | set | frozenset) else value,
    to_uuid=_same,
    to_datetime=lambda value: None if value is None else value.astimezone(UTC),
    facts={
        name: f"show {name}"
        for name in ("server_version", "server_version_num", "fsync", "full_page_writes", "synchronous_commit")
    },
)


def _to_sqlite(value: Any) -> Any:
    match value:
        case UUID():
            return str(value)
        case datetime():
            return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")
        case list() | tuple() | set() | frozenset():
            return msgspec.json.encode([str(item) for item in value]).decode()
        case _:
            return value


SQLITE = Dialect(
    name="sqlite",
    migrations="sqlite",
    begin="begin immediate",
    # text that sorts as time does; SQLite knows milliseconds, Python writes microseconds
    now="strftime('%Y-%m-%d %H:%M:%f000', 'now')",
    now_plus_seconds="strftime('%Y-%m-%d %H:%M:%f000', 'now', :seconds || ' seconds')",
    now_minus_seconds="strftime('%Y-%m-%d %H:%M:%f000', 'now', -:seconds || ' seconds')",
    in_list="in (select value from json_each(:{name}))",
    parameter=":{name}",
    to_database=_to_sqlite,
    to_uuid=lambda value: None if value is None else UUID(value),
    to_datetime=lambda value: None if value is None else datetime.fromisoformat(value).replace(tzinfo=UTC),
    facts={
        "version": "select sqlite_version()",
        "journal_mode": "pragma journal_mode",
        "synchronous": "pragma synchronous",
    },
)
