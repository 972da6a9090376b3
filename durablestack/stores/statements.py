"""Every statement, once. Dialects render them: `tests/stores/rendered/` shows the result for each database.

Words in braces are the dialect's, `:names` are parameters. Names begin with the noun.
"""

from __future__ import annotations

RUN_COLUMNS = (
    "id, job_name, status, payload, scheduled_for_utc, attempt, max_attempts, created_at_utc, started_at_utc, "
    "completed_at_utc, lease_owner, lease_token, lease_until_utc, cancel_requested_at_utc, error_type, "
    "error_message, error_detail, stdout_tail, stderr_tail, requeued_from, slot_utc, trace_context, crash_count"
)
DUE_COLUMNS = (
    "id, job_name, payload, scheduled_for_utc, attempt, max_attempts, created_at_utc, slot_utc, trace_context, "
    "crash_count"
)
ATTEMPT_COLUMNS = (
    "run_id, attempt, worker_name, started_at_utc, ended_at_utc, outcome, "
    "error_type, error_message, error_detail, signal, exit_code, ended_by, peak_memory_bytes, user_cpu_seconds, "
    "system_cpu_seconds"
)

JOB_COLUMNS = (
    "job_name, cron_expression, every_seconds, time_zone, enabled, allow_concurrent_runs, payload, max_attempts, "
    "next_run_at_utc, last_slot_utc, application, seen_at_utc, orphaned_at_utc, error_message, created_at_utc, "
    "updated_at_utc"
)

WORKER_COLUMNS = "id, name, boot_id, pid_namespace, user_id, pid, process_started, marker"

CLOCK_SELECT = "select {now}"

RUN_INSERT = """
insert into {runs} (
  id, job_name, status, payload, scheduled_for_utc, attempt, max_attempts, created_at_utc, requeued_from,
  slot_utc, recurring_job_name, trace_context
)
values (
  :id, :job_name, 'pending', :payload, coalesce(:scheduled_for, {now}), 0, :max_attempts, {now}, :requeued_from,
  :slot, :recurring_job_name, :trace_context
)
{or_ignore}
"""

# --- claim

EXPIRED_LOOK = """
select {now},
       case when exists (
         select 1
         from {runs} {skip_locked_hint}
         where status = 'leased'
           and lease_until_utc <= {now}
       ) then 1 else 0 end
"""

RUNS_EXPIRED_SELECT = """
select id, job_name, attempt, max_attempts, lease_owner, lease_token, started_at_utc, cancel_requested_at_utc
from {runs} {skip_locked_hint}
where status = 'leased'
  and lease_until_utc <= {now}
order by id
{limit}
{skip_locked}
"""

RUN_EXPIRED_UPDATE = """
update {runs}
set status = :status,
    lease_owner = null,
    lease_token = null,
    lease_until_utc = null,
    completed_at_utc = case when :terminal = 1 then {now} end,
    error_type = :error_type,
    error_message = :error_message,
    error_detail = null
where id = :id
"""

RUNS_DUE_SELECT = f"""
select {DUE_COLUMNS},
       {{statement_seconds}}
from {{runs}} {{skip_locked_hint}}
where status = 'pending'
  and scheduled_for_utc <= {{now}}
  and job_name {{in_job_names}}
order by scheduled_for_utc, id
{{limit}}
{{skip_locked}}
"""

RUNS_DUE_FROM_MARK_SELECT = RUNS_DUE_SELECT.replace(
    "  and job_name",
    "  and (scheduled_for_utc > :mark_scheduled_for or scheduled_for_utc = :mark_scheduled_for and id >= :mark_id)\n"
    "  and job_name",
)

RUNS_LEASE = """
update {runs}
set status = 'leased',
    attempt = attempt + 1,
    lease_owner = :worker_name,
    worker_id = :worker_id,
    lease_token = :lease_token,
    lease_until_utc = {now_plus_seconds},
    lease_seconds = :seconds,
    started_at_utc = {now}
where id {in_ids}
"""

RUNS_OF_CLAIM_SELECT = """
select id, attempt, lease_owner
from {runs}
where status = 'leased'
  and lease_token = :lease_token
order by id
"""

# --- hold

LEASES_SELECT_FOR_UPDATE = """
select id, status, lease_token, last_token, started_at_utc, cancel_requested_at_utc
from {runs} {lock_hint}
where id {in_ids}
order by id
{for_update}
"""

LEASES_EXTEND = """
update {runs}
set lease_until_utc = {now_plus_seconds}
where id {in_ids}
"""

REQUESTS_SELECT = """
select id, lease_token, cancel_requested_at_utc, stack_requested_at_utc, stack_taken_at_utc
from {runs}
where id {in_ids}
  and status = 'leased'
  and (cancel_requested_at_utc is not null or (stack_requested_at_utc is not null and stack_taken_at_utc is null))
"""

# --- record

RUNS_SUCCEED = """
update {runs}
set status = 'succeeded',
    completed_at_utc = {now},
    last_token = lease_token,
    lease_owner = null,
    lease_token = null,
    lease_until_utc = null,
    error_type = null,
    error_message = null,
    error_detail = null,
    stdout_tail = null,
    stderr_tail = null
where id {in_ids}
"""

RUN_OUTPUT_UPDATE = """
update {runs}
set stdout_tail = :stdout_tail,
    stderr_tail = :stderr_tail
where id = :id
"""

RUN_FAIL = """
update {runs}
set status = 'failed',
    completed_at_utc = {now},
    crash_count = crash_count + :crashed,
    last_token = lease_token,
    lease_owner = null,
    lease_token = null,
    lease_until_utc = null,
    error_type = :error_type,
    error_message = :error_message,
    error_detail = :error_detail,
    stdout_tail = :stdout_tail,
    stderr_tail = :stderr_tail
where id = :id
"""

RUN_RETRY = """
update {runs}
set status = 'pending',
    scheduled_for_utc = {now_plus_seconds},
    crash_count = crash_count + :crashed,
    last_token = lease_token,
    lease_owner = null,
    lease_token = null,
    lease_until_utc = null,
    error_type = :error_type,
    error_message = :error_message,
    error_detail = :error_detail,
    stdout_tail = :stdout_tail,
    stderr_tail = :stderr_tail
where id = :id
"""

RUN_CANCEL_LEASED = """
update {runs}
set status = 'cancelled',
    completed_at_utc = {now},
    crash_count = crash_count + :crashed,
    last_token = lease_token,
    lease_owner = null,
    lease_token = null,
    lease_until_utc = null,
    error_type = null,
    error_message = :error_message,
    error_detail = null,
    stdout_tail = :stdout_tail,
    stderr_tail = :stderr_tail
where id = :id
"""

RUNS_RELEASE = """
update {runs}
set status = 'pending',
    attempt = attempt - 1,
    scheduled_for_utc = case when scheduled_for_utc <= {now} then scheduled_for_utc else {now} end,
    last_token = lease_token,
    lease_owner = null,
    lease_token = null,
    lease_until_utc = null
where id {in_ids}
"""

ATTEMPT_INSERT = """
insert into {attempts} (
  run_id, attempt, worker_name, started_at_utc, ended_at_utc, outcome, error_type, error_message, error_detail, signal,
  exit_code, ended_by, peak_memory_bytes, user_cpu_seconds, system_cpu_seconds
)
values (
  :run_id, :attempt, :worker_name, :started_at, {now}, :outcome, :error_type, :error_message, :error_detail, :signal,
  :exit_code, :ended_by, :peak_memory_bytes, :user_cpu_seconds, :system_cpu_seconds
)
"""

ATTEMPTS_FORGET = """
delete from {attempts}
where run_id = :run_id
  and attempt <= :attempt
"""

# --- cancel, requeue

RUN_SELECT_FOR_UPDATE = """
select status, job_name, payload, max_attempts, recurring_job_name
from {runs} {lock_hint}
where id = :id
{for_update}
"""

RUN_CANCEL_PENDING = """
update {runs}
set status = 'cancelled',
    completed_at_utc = {now},
    cancel_requested_at_utc = {now},
    error_type = null,
    error_message = :error_message,
    error_detail = null
where id = :id
"""

RUN_REQUEST_CANCEL = """
update {runs}
set cancel_requested_at_utc = coalesce(cancel_requested_at_utc, {now})
where id = :id
"""

# --- stacks

STACK_REQUEST = """
update {runs}
set stack_requested_at_utc = {now},
    stack_taken_at_utc = null,
    stack = null
where id = :id
"""

STACK_WRITE = """
update {runs}
set stack_requested_at_utc = coalesce(stack_requested_at_utc, {now}),
    stack_taken_at_utc = {now},
    stack = :stack
where id = :id
"""

STACK_SELECT = "select id, stack_requested_at_utc, stack_taken_at_utc, stack\nfrom {runs}\nwhere id = :id"

# --- workers

WORKER_INSERT = """
insert into {workers} (
  id, name, boot_id, pid_namespace, user_id, pid, process_started, marker, seen_at_utc
)
values (
  :id, :name, :boot_id, :pid_namespace, :user_id, :pid, :process_started, :marker, {now}
)
{or_ignore}
"""

WORKER_SEEN_UPDATE = """
update {workers}
set seen_at_utc = {now}
where id = :id
"""

WORKERS_SELECT = f"select {WORKER_COLUMNS}\nfrom {{workers}}\nwhere boot_id = :boot_id\norder by id"

WORKERS_UNSEEN_SELECT = """
select id
from {workers}
where seen_at_utc <= {now_minus_seconds}
order by id
{limit}
"""

WORKER_DELETE = "delete from {workers}\nwhere id = :id"

# An older version of this library claims without a word of the worker, which then is the one of an earlier claim:
# the name of the worker has to be that of the lease too.
RUNS_OF_WORKER_SELECT = """
select id, lease_token
from {runs}
where status = 'leased'
  and lease_until_utc > {now}
  and worker_id = :worker_id
  and lease_owner = (select name from {workers} where id = :worker_id)
order by id
"""

LEASES_EXPIRE = """
update {runs}
set lease_until_utc = {now}
where id {in_ids}
"""

# --- read

RUN_SELECT = f"select {RUN_COLUMNS}\nfrom {{runs}}\nwhere id = :id"

RUNS_SELECT_RECENT = f"select {RUN_COLUMNS}\nfrom {{runs}}\norder by id desc\n{{limit}}"

RUNS_SELECT_BY_STATUS = f"select {RUN_COLUMNS}\nfrom {{runs}}\nwhere status = :status\norder by id desc\n{{limit}}"

RUNS_SELECT_BY_JOB_NAME = (
    f"select {RUN_COLUMNS}\nfrom {{runs}}\nwhere job_name = :job_name\norder by id desc\n{{limit}}"
)

RUNS_SELECT_BY_STATUS_AND_JOB_NAME = (
    f"select {RUN_COLUMNS}\nfrom {{runs}}\n"
    "where status = :status\n  and job_name = :job_name\norder by id desc\n{limit}"
)

RUNS_SELECT_DUE_FIRST = (
    f"select {RUN_COLUMNS}\nfrom {{runs}}\nwhere status = 'pending'\norder by scheduled_for_utc, id\n{{limit}}"
)

RUNS_COUNT_BY_STATUS = "select status, count(*)\nfrom {runs}\ngroup by status"

BACKLOG_SELECT = """
select count(*), min(scheduled_for_utc), {now}
from (
  select scheduled_for_utc
  from {runs}
  where status = 'pending'
    and scheduled_for_utc <= {now}
    and job_name {in_job_names}
  order by scheduled_for_utc, id
  {limit}
) as due
"""

ATTEMPTS_SELECT = f"select {ATTEMPT_COLUMNS}\nfrom {{attempts}}\nwhere run_id = :run_id\norder by attempt, ended_at_utc"

# --- prune

RUNS_PRUNABLE_SELECT = """
select id
from {runs} {skip_locked_hint}
where completed_at_utc <= {now_minus_seconds}
order by completed_at_utc
{limit}
{skip_locked}
"""

ATTEMPTS_DELETE = "delete from {attempts}\nwhere run_id {in_ids}"

RUNS_DELETE = "delete from {runs}\nwhere id {in_ids}"

# --- schedules

JOB_INSERT = """
insert into {jobs} (
  job_name, cron_expression, every_seconds, time_zone, enabled, allow_concurrent_runs, payload, max_attempts,
  next_run_at_utc, last_slot_utc, application, seen_at_utc, orphaned_at_utc, error_message, created_at_utc,
  updated_at_utc
)
values (
  :job_name, :cron_expression, :every_seconds, :time_zone, :enabled, :allow_concurrent_runs, :payload, :max_attempts,
  :next_run_at, :last_slot, :application, :seen_at, :orphaned_at, :error_message, {now},
  {now}
)
{or_ignore_job}
"""

JOB_UPDATE = """
update {jobs}
set cron_expression = :cron_expression,
    every_seconds = :every_seconds,
    time_zone = :time_zone,
    enabled = :enabled,
    allow_concurrent_runs = :allow_concurrent_runs,
    payload = :payload,
    max_attempts = :max_attempts,
    next_run_at_utc = :next_run_at,
    last_slot_utc = :last_slot,
    application = :application,
    seen_at_utc = :seen_at,
    orphaned_at_utc = :orphaned_at,
    error_message = :error_message,
    updated_at_utc = {now}
where job_name = :job_name
"""

JOB_MATERIALIZED_UPDATE = """
update {jobs}
set next_run_at_utc = :next_run_at,
    last_slot_utc = :last_slot,
    error_message = null
where job_name = :job_name
"""

JOBS_UNSEEN_SELECT_FOR_UPDATE = """
select job_name
from {jobs} {lock_hint}
where job_name {in_job_names}
  and seen_at_utc <= {now_minus_seconds}
order by job_name
{for_update}
"""

JOBS_SEEN_UPDATE = """
update {jobs}
set seen_at_utc = {now}
where job_name {in_job_names}
"""

JOBS_SELECT = f"select {JOB_COLUMNS}\nfrom {{jobs}}\norder by job_name"

JOBS_SELECT_NEXT = f"""
select {JOB_COLUMNS}
from {{jobs}}
where next_run_at_utc <= {{now_plus_seconds}}
  and enabled = 1
  and job_name {{in_job_names}}
order by next_run_at_utc, job_name
"""

JOB_SELECT = f"select {JOB_COLUMNS}\nfrom {{jobs}}\nwhere job_name = :job_name"

JOB_SELECT_FOR_UPDATE = f"""
select {JOB_COLUMNS}
from {{jobs}} {{lock_hint}}
where job_name = :job_name
{{for_update}}
"""

JOB_SELECT_SKIP_LOCKED = f"""
select {JOB_COLUMNS}
from {{jobs}} {{skip_locked_hint}}
where job_name = :job_name
{{skip_locked}}
"""

RUNS_ACTIVE_SELECT = """
select id
from {runs}
where recurring_job_name = :job_name
  and status in ('pending', 'leased')
order by id
{limit}
"""

RUN_OF_SLOT_SELECT = """
select id
from {runs}
where job_name = :job_name
  and slot_utc = :slot
"""

# --- schema

MIGRATIONS_SELECT = "select version, compatible_from\nfrom {migrations}\norder by version"

MIGRATION_INSERT = """
insert into {migrations} (version, compatible_from, applied_at_utc)
values (:version, :compatible_from, {now})
"""

RUNS_PROBE = f"""
select {RUN_COLUMNS}, last_token, lease_seconds, recurring_job_name,
       worker_id, stack_requested_at_utc, stack_taken_at_utc, stack
from {{runs}}
where 1 = 0
"""

JOBS_PROBE = f"select {JOB_COLUMNS}\nfrom {{jobs}}\nwhere 1 = 0"

ATTEMPTS_PROBE = f"select {ATTEMPT_COLUMNS}\nfrom {{attempts}}\nwhere 1 = 0"

WORKERS_PROBE = f"select {WORKER_COLUMNS}, seen_at_utc\nfrom {{workers}}\nwhere 1 = 0"

TEMPLATES = {name: text for name, text in globals().items() if name.isupper() and not name.endswith("COLUMNS")}
