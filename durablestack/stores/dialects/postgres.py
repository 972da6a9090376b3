"""The words of PostgreSQL, by psycopg."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec

from ..statements import (
    DUE_COLUMNS,
    RUN_INSERT,
    RUNS_DUE_FROM_MARK_SELECT,
    RUNS_DUE_SELECT,
    RUNS_LEASE,
    RUNS_SUCCEED,
)
from .dialect import Dialect


def _to_postgres(value: Any) -> Any:
    if not isinstance(value, (list, tuple, set, frozenset)):
        return value
    # as text: the driver is slow at arrays
    if value and type(next(iter(value))) is UUID:
        return "{" + msgspec.json.encode(value)[1:-1].decode() + "}"  # which is written as in JSON
    return "{" + ",".join([_element(each) for each in value]) + "}"


def _element(value: UUID | str | datetime | None) -> str:
    match value:
        case None:
            return "NULL"
        case UUID():
            return value.hex
        case datetime():
            return f'"{value.isoformat()}"'
        case _:
            return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


_DUE_FROM_MARK = RUNS_DUE_FROM_MARK_SELECT.replace(
    # which begins at its place in the index, where `or` would be asked of each entry
    "(scheduled_for_utc > :mark_scheduled_for or scheduled_for_utc = :mark_scheduled_for and id >= :mark_id)",
    "(scheduled_for_utc, id) >= (:mark_scheduled_for, :mark_id)",
)


def _claim(due: str) -> str:
    """Lock, decide and lease in one statement. Those passed over come last, without the name of their job."""
    columns = DUE_COLUMNS.replace(" ", "").split(",")
    passed_over = ", ".join("null" if column == "job_name" else column for column in columns)
    lease = RUNS_LEASE.strip().replace("attempt = attempt + 1", "attempt = run.attempt + 1")
    return f"""
with due as materialized ({due.replace("{statement_seconds}", "{statement_seconds} as statement_seconds")}),
counted as (
  select *, count(*) filter (where cannot_wait) over (rows unbounded preceding) as to_begin
  from (select *, attempt + 1 >= max_attempts or job_name <> all(:may_wait) as cannot_wait from due) as due
),
leased as (
{lease.replace("update {runs}", "update {runs} as run").replace("where id {in_ids}", "from counted")}
where run.id = counted.id
  and (not cannot_wait or to_begin <= :begin_max)
returning counted.*
)
select {DUE_COLUMNS}, statement_seconds
from leased
union all
select {passed_over}, statement_seconds
from counted
where cannot_wait
  and to_begin > :begin_max
"""


# What is the same for all runs is said once. Arrays that are shorter than the ids go on as null.
_RUNS_INSERT = """
insert into {runs} (
  id, job_name, status, payload, scheduled_for_utc, attempt, max_attempts, created_at_utc, requeued_from,
  slot_utc, recurring_job_name, trace_context
)
select id, :job_name, 'pending', payload, coalesce(scheduled_for, {now}), 0, :max_attempts, {now}, requeued_from,
       slot, :recurring_job_name, :trace_context
from unnest(:ids::uuid[], :payloads::text[], :scheduled_fors::timestamptz[], :requeued_froms::uuid[],
            :slots::timestamptz[])
  as shown (id, payload, scheduled_for, requeued_from, slot)
{or_ignore}
"""

# What is the same for all runs is said last. What is there already ends it.
_RUNS_COPY = """
copy {runs} (
  id, payload, job_name, status, scheduled_for_utc, attempt, max_attempts, created_at_utc, recurring_job_name,
  trace_context
)
from stdin (format binary)
"""

# In the order of the leases shown, which is that of the ids: each is looked up by its key. To ask for the status too
# would offer the planner the index of what is leased, which it would rather read whole, once per lease.
_SUCCEED_SHOWN = (
    RUNS_SUCCEED.replace("update {runs}", "update {runs} as run")
    .replace("stdout_tail = null", "stdout_tail = shown.stdout_tail")
    .replace("stderr_tail = null", "stderr_tail = shown.stderr_tail")
    .replace(
        "where id {in_ids}",
        "from unnest(:ids::uuid[], :tokens::uuid[], :stdout_tails::text[], :stderr_tails::text[])\n"
        "  as shown (id, token, stdout_tail, stderr_tail)\n"
        "where run.id = shown.id\n"
        "  and run.lease_token = shown.token\n"
        "returning 1",
    )
)
_SUCCEED_SHOWN = f"with done as ({_SUCCEED_SHOWN})\nselect count(*)\nfrom done"

# a write that is under way counts as well: it may still be undone, and what began after it be read
_OLDEST_SNAPSHOT = """
select holder, seconds, changes
from (
  select 'the transaction of pid ' || pid || coalesce(' (' || nullif(application_name, '') || ')', ''),
         extract(epoch from clock_timestamp() - xact_start),
         greatest(age(backend_xmin), age(backend_xid))
  from pg_stat_activity
  where pid <> pg_backend_pid()
    and (datname is null or datname = current_database())
    and backend_type <> 'autovacuum worker'
  union all
  select 'the prepared transaction ' || gid, extract(epoch from clock_timestamp() - prepared), age(transaction)
  from pg_prepared_xacts
  where database = current_database()
  union all
  select 'the replication slot ' || slot_name, null, age(xmin)
  from pg_replication_slots
) as holders (holder, seconds, changes)
where changes is not null
order by changes desc, seconds desc nulls last
limit 1
"""

# a full queue of notifications would fail the commit: it fills where somebody listens, and never reads
_HINT = "select pg_notify(:channel, :text) where pg_notification_queue_usage() < 0.5"

POSTGRES = Dialect(
    name="postgres",
    migrations="postgres",
    # Without statistics the planner expects few rows and sorts them: after a bulk enqueue, the whole backlog per claim.
    # And of a small table it would rather read all rows than some by their keys, though it has grown since.
    begin=(
        "begin isolation level read committed; "
        "select set_config('statement_timeout', '{timeout_ms}', true), "
        "set_config('lock_timeout', '{timeout_ms}', true), "
        "set_config('idle_in_transaction_session_timeout', '15000', true), "
        "set_config('enable_bitmapscan', 'off', true), "
        "set_config('enable_seqscan', 'off', true), "
        "set_config('enable_hashjoin', 'off', true), "
        "set_config('enable_mergejoin', 'off', true), "
        "set_config('plan_cache_mode', 'force_generic_plan', true)"
    ),
    # clock_timestamp(), since now() is the start of the transaction, which may have waited for a lock;
    # as a subquery, since a volatile function is no index condition
    now="(select clock_timestamp())",
    now_plus_seconds="(select clock_timestamp()) + make_interval(secs => :seconds)",
    now_minus_seconds="(select clock_timestamp()) - make_interval(secs => :seconds)",
    in_list="= any(:{name})",
    statement_seconds="date_part('epoch', clock_timestamp() - statement_timestamp())",
    parameter="%({name})s",
    timestamp="timestamptz",
    begin_plans=True,
    migration_lock="select pg_advisory_xact_lock({key}), 1",
    for_update="for update",
    skip_locked="for update skip locked",
    to_database=_to_postgres,
    to_uuid=lambda value: value,
    from_uuid=lambda uuid: uuid,
    to_datetime=lambda value: value if value is None or value.tzinfo is UTC else value.astimezone(UTC),
    hint=_HINT,
    overrides={"RUNS_DUE_FROM_MARK_SELECT": _DUE_FROM_MARK},
    own={
        "RUNS_CLAIM": _claim(RUNS_DUE_SELECT),
        "RUNS_CLAIM_FROM_MARK": _claim(_DUE_FROM_MARK),
        "RUNS_SUCCEED_SHOWN": _SUCCEED_SHOWN,
        "RUN_INSERT_HINTED": f"with stored as ({RUN_INSERT})\n{_HINT}",
        "RUNS_INSERT": _RUNS_INSERT,
        "RUNS_COPY": _RUNS_COPY,
    },
    oldest_snapshot=_OLDEST_SNAPSHOT,
    facts={
        name: f"show {name}"
        for name in ("server_version", "server_version_num", "fsync", "full_page_writes", "synchronous_commit")
    },
)
