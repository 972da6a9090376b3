"""The words of PostgreSQL, by psycopg."""

from __future__ import annotations

from datetime import UTC

from .dialect import Dialect

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
    timestamp="timestamptz",
    migration_lock="select pg_advisory_xact_lock({key}), 1",
    for_update="for update",
    skip_locked="for update skip locked",
    to_database=lambda value: list(value) if isinstance(value, tuple | set | frozenset) else value,
    to_uuid=lambda value: value,
    to_datetime=lambda value: None if value is None else value.astimezone(UTC),
    facts={
        name: f"show {name}"
        for name in ("server_version", "server_version_num", "fsync", "full_page_writes", "synchronous_commit")
    },
)
