"""The words of SQLite, by the standard library's driver."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec

from .dialect import Dialect, naive_utc


def _to_sqlite(value: Any) -> Any:
    match value:
        case UUID():
            return str(value)
        case datetime():
            return naive_utc(value).isoformat(" ", "microseconds")
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
    timestamp="text",
    migration_lock="select 1",  # begin immediate holds the only lock there is
    to_database=_to_sqlite,
    to_uuid=lambda value: None if value is None else UUID(value),
    to_datetime=lambda value: None if value is None else datetime.fromisoformat(value).replace(tzinfo=UTC),
    facts={
        "version": "select sqlite_version()",
        "journal_mode": "pragma journal_mode",
        "synchronous": "pragma synchronous",
    },
)
