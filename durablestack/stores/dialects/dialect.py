"""What is different from one database to the next: nothing but words and conversions."""

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
        in_uuid_list: the same for a list of UUIDs, where that is different.
        for_update, skip_locked: at the end of a select: wait for the rows, or pass over those locked.
        lock_hint, skip_locked_hint: the same, after the table's name.
        limit: at the end of an ordered select: at most `:limit` rows.
        statement_seconds: for how long the statement has been at it, when it comes to a row; 0 where nobody minds.
        or_ignore: at the end of an insert: leave a row alone whose `{key}` is there already.
        quote: how a name is written.
        reserved: names of our columns that are words of its own and have to be quoted.
        parameter: how the driver writes the parameter `{name}`.
        overrides: statements that this database says in its own way, by name.
        own: statements that only this database has, by name.
        tells_leased: `RUNS_LEASE` returns the ids of what it leased, since that may be less than what was selected.
        from_uuid: a UUID as it stands in rows that were read, to be compared with it.
        facts: queries about its version and settings, for people who look for a fault; the last column is the answer.
        hint: says `:text` to whoever listens on `:channel`, once the transaction is committed.
        writers_max: so many transactions that write make each other no slower.
        begin_plans: reads that are to stop early need `begin` too, since it says how to plan them.
        oldest_snapshot: who else may still read what has been changed since: holder, seconds, changes; or no row.
        timestamp: the type of a column that holds an instant.
        create_table: begins the creation of a table, unless it is there.
        migration_lock: waits until nobody else migrates, and answers 0 when that took too long; `{key}` is a number.
        migration_unlock: ends that, where the end of the transaction does not.
    """

    name: str
    migrations: str
    begin: str
    now: str
    now_plus_seconds: str
    now_minus_seconds: str
    in_list: str
    parameter: str
    timestamp: str
    migration_lock: str
    to_database: Callable[[Any], Any]
    to_uuid: Callable[[Any], UUID | None]
    from_uuid: Callable[[UUID], Any]
    to_datetime: Callable[[Any], datetime | None]
    in_uuid_list: str = ""
    quote: str = '"{}"'
    reserved: frozenset[str] = frozenset()
    for_update: str = ""
    skip_locked: str = ""
    lock_hint: str = ""
    skip_locked_hint: str = ""
    limit: str = "limit :limit"
    statement_seconds: str = "0.0"
    or_ignore: str = "on conflict ({key}) do nothing"
    create_table: str = "create table if not exists {}"
    migration_unlock: str = ""
    overrides: Mapping[str, str] = {}
    own: Mapping[str, str] = {}
    facts: Mapping[str, str] = {}
    tells_leased: bool = False
    begin_plans: bool = False
    writers_max: int = 2
    hint: str = ""
    oldest_snapshot: str = ""

    def quoted(self, identifier: str) -> str:
        """A name of a table or an index; the prefix in it was checked with the options, and is quoted all the same."""
        return self.quote.format(identifier)

    def render(self, name: str, template: str, prefix: str) -> str:
        """The statement called `name` as this database and its driver take it."""
        in_uuid_list = self.in_uuid_list or self.in_list
        words = {
            "runs": self.quoted(f"{prefix}durable_stack_job_runs"),
            "attempts": self.quoted(f"{prefix}durable_stack_job_run_attempts"),
            "jobs": self.quoted(f"{prefix}durable_stack_jobs"),
            "workers": self.quoted(f"{prefix}durable_stack_workers"),
            "migrations": self.quoted(f"{prefix}durable_stack_schema_migrations"),
            "now": self.now,
            "now_plus_seconds": self.now_plus_seconds,
            "now_minus_seconds": self.now_minus_seconds,
            "for_update": self.for_update,
            "skip_locked": self.skip_locked,
            "lock_hint": self.lock_hint,
            "skip_locked_hint": self.skip_locked_hint,
            "limit": self.limit,
            "statement_seconds": self.statement_seconds,
            "or_ignore": self.or_ignore.format(key="id"),
            "or_ignore_job": self.or_ignore.format(key="job_name"),
            "in_ids": in_uuid_list.format(name="ids"),
            "in_job_names": self.in_list.format(name="job_names"),
        }
        text = self.overrides.get(name, template).format_map(words)
        for word in self.reserved:
            text = re.sub(rf"(?<![:\w]){word}\b", self.quoted(word), text)
        lines = (line.rstrip() for line in text.strip().splitlines())
        return re.sub(r"(?<![:\w]):(\w+)", lambda found: self.parameter.format(name=found[1]), "\n".join(lines))

    def bind(self, parameters: Parameters) -> dict[str, Any]:
        return {name: self.to_database(value) for name, value in parameters.items()}


def naive_utc(value: datetime) -> datetime:
    """For columns without a time zone; what comes from such a column is in UTC already."""
    return value if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)


def from_naive_utc(value: Any) -> datetime | None:
    """`combine` takes a third of the time of `replace`, and there are some of these in each row."""
    return None if value is None else datetime.combine(value, value.time(), UTC)


def from_bytes(value: Any) -> UUID | None:
    """`convert` takes a quarter of the time of `UUID`."""
    if value is None:
        return None
    try:
        return msgspec.convert(bytes(value), UUID)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
