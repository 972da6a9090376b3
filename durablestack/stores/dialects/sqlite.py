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


_INSTANT_LENGTH = len("2026-01-31 23:59:59.123456")


def _to_datetime(value: Any) -> datetime | None:
    """An instant, which is in UTC; as we write it, it is read at once, since `replace` takes several times as long."""
    if value is None:
        return None
    if len(value) == _INSTANT_LENGTH:
        return datetime.fromisoformat(f"{value}+00:00")
    return datetime.fromisoformat(value).replace(tzinfo=UTC)


SQLITE = Dialect(
    name="sqlite",
    migrations="sqlite",
    begin="begin immediate",
    writers_max=1,
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
    from_uuid=str,
    to_datetime=_to_datetime,
    facts={
        "version": "select sqlite_version()",
        "journal_mode": "pragma journal_mode",
        "synchronous": "pragma synchronous",
    },
)
