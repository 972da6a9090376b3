-- CLOCK_SELECT
select utc_timestamp(6)

-- RUN_INSERT
insert into `durable_stack_job_runs` (
  id, job_name, status, payload, scheduled_for_utc, attempt, max_attempts, created_at_utc, requeued_from,
  slot_utc, recurring_job_name, trace_context
)
values (
  %(id)s, %(job_name)s, 'pending', %(payload)s, coalesce(%(scheduled_for)s, utc_timestamp(6)), 0, %(max_attempts)s, utc_timestamp(6), %(requeued_from)s,
  %(slot)s, %(recurring_job_name)s, %(trace_context)s
)
on duplicate key update id = id

-- EXPIRED_LOOK
select utc_timestamp(6),
       case when exists (
         select 1
         from `durable_stack_job_runs`
         where status = 'leased'
           and lease_until_utc <= utc_timestamp(6)
       ) then 1 else 0 end

-- RUNS_EXPIRED_SELECT
select id, job_name, attempt, max_attempts, lease_owner, lease_token, started_at_utc, cancel_requested_at_utc
from `durable_stack_job_runs` force index (primary)
where id in %(ids)s
  and status = 'leased'
  and lease_until_utc <= utc_timestamp(6)
order by id
for update skip locked

-- RUN_EXPIRED_UPDATE
update `durable_stack_job_runs` force index (primary)
set status = %(status)s,
    lease_owner = null,
    lease_token = null,
    lease_until_utc = null,
    completed_at_utc = case when %(terminal)s = 1 then utc_timestamp(6) end,
    error_type = %(error_type)s,
    error_message = %(error_message)s,
    error_detail = null
where id = %(id)s

-- RUNS_DUE_SELECT
select id, job_name, payload, scheduled_for_utc, attempt, max_attempts, created_at_utc, slot_utc, trace_context, crash_count,
       timestampdiff(microsecond, now(6), sysdate(6)) / 1e6
from `durable_stack_job_runs`
where status = 'pending'
  and scheduled_for_utc <= utc_timestamp(6)
  and job_name in %(job_names)s
order by scheduled_for_utc, id
limit %(limit)s
for update skip locked

-- RUNS_DUE_FROM_MARK_SELECT
select id, job_name, payload, scheduled_for_utc, attempt, max_attempts, created_at_utc, slot_utc, trace_context, crash_count,
       timestampdiff(microsecond, now(6), sysdate(6)) / 1e6
from `durable_stack_job_runs`
where status = 'pending'
  and scheduled_for_utc <= utc_timestamp(6)
  and (scheduled_for_utc > %(mark_scheduled_for)s or scheduled_for_utc = %(mark_scheduled_for)s and id >= %(mark_id)s)
  and job_name in %(job_names)s
order by scheduled_for_utc, id
limit %(limit)s
for update skip locked

-- RUNS_LEASE
update `durable_stack_job_runs` force index (primary)
set status = 'leased',
    attempt = attempt + 1,
    lease_owner = %(worker_name)s,
    worker_id = %(worker_id)s,
    lease_token = %(lease_token)s,
    lease_until_utc = utc_timestamp(6) + interval %(seconds)s * 1000000 microsecond,
    lease_seconds = %(seconds)s,
    started_at_utc = utc_timestamp(6)
where id in %(ids)s

-- RUNS_OF_CLAIM_SELECT
select id, attempt, lease_owner
from `durable_stack_job_runs`
where status = 'leased'
  and lease_token = %(lease_token)s
order by id

-- LEASES_SELECT_FOR_UPDATE
select id, status, lease_token, last_token, started_at_utc, cancel_requested_at_utc
from `durable_stack_job_runs` force index (primary)
where id in %(ids)s
order by id
for update

-- LEASES_EXTEND
update `durable_stack_job_runs` force index (primary)
set lease_until_utc = utc_timestamp(6) + interval %(seconds)s * 1000000 microsecond
where id in %(ids)s

-- REQUESTS_SELECT
select id, lease_token, cancel_requested_at_utc, stack_requested_at_utc, stack_taken_at_utc
from `durable_stack_job_runs`
where id in %(ids)s
  and status = 'leased'
  and (cancel_requested_at_utc is not null or (stack_requested_at_utc is not null and stack_taken_at_utc is null))

-- RUNS_SUCCEED
update `durable_stack_job_runs` force index (primary)
set status = 'succeeded',
    completed_at_utc = utc_timestamp(6),
    last_token = lease_token,
    lease_owner = null,
    lease_token = null,
    lease_until_utc = null,
    error_type = null,
    error_message = null,
    error_detail = null,
    stdout_tail = null,
    stderr_tail = null
where id in %(ids)s

-- RUN_OUTPUT_UPDATE
update `durable_stack_job_runs` force index (primary)
set stdout_tail = %(stdout_tail)s,
    stderr_tail = %(stderr_tail)s
where id = %(id)s

-- RUN_FAIL
update `durable_stack_job_runs` force index (primary)
set status = 'failed',
    completed_at_utc = utc_timestamp(6),
    crash_count = crash_count + %(crashed)s,
    last_token = lease_token,
    lease_owner = null,
    lease_token = null,
    lease_until_utc = null,
    error_type = %(error_type)s,
    error_message = %(error_message)s,
    error_detail = %(error_detail)s,
    stdout_tail = %(stdout_tail)s,
    stderr_tail = %(stderr_tail)s
where id = %(id)s

-- RUN_RETRY
update `durable_stack_job_runs` force index (primary)
set status = 'pending',
    scheduled_for_utc = utc_timestamp(6) + interval %(seconds)s * 1000000 microsecond,
    crash_count = crash_count + %(crashed)s,
    last_token = lease_token,
    lease_owner = null,
    lease_token = null,
    lease_until_utc = null,
    error_type = %(error_type)s,
    error_message = %(error_message)s,
    error_detail = %(error_detail)s,
    stdout_tail = %(stdout_tail)s,
    stderr_tail = %(stderr_tail)s
where id = %(id)s

-- RUN_CANCEL_LEASED
update `durable_stack_job_runs` force index (primary)
set status = 'cancelled',
    completed_at_utc = utc_timestamp(6),
    crash_count = crash_count + %(crashed)s,
    last_token = lease_token,
    lease_owner = null,
    lease_token = null,
    lease_until_utc = null,
    error_type = null,
    error_message = %(error_message)s,
    error_detail = null,
    stdout_tail = %(stdout_tail)s,
    stderr_tail = %(stderr_tail)s
where id = %(id)s

-- RUNS_RELEASE
update `durable_stack_job_runs` force index (primary)
set status = 'pending',
    attempt = attempt - 1,
    scheduled_for_utc = case when scheduled_for_utc <= utc_timestamp(6) then scheduled_for_utc else utc_timestamp(6) end,
    last_token = lease_token,
    lease_owner = null,
    lease_token = null,
    lease_until_utc = null
where id in %(ids)s

-- ATTEMPT_INSERT
insert into `durable_stack_job_run_attempts` (
  run_id, attempt, worker_name, started_at_utc, ended_at_utc, outcome, error_type, error_message, error_detail, `signal`,
  exit_code, ended_by, peak_memory_bytes, user_cpu_seconds, system_cpu_seconds
)
values (
  %(run_id)s, %(attempt)s, %(worker_name)s, %(started_at)s, utc_timestamp(6), %(outcome)s, %(error_type)s, %(error_message)s, %(error_detail)s, %(signal)s,
  %(exit_code)s, %(ended_by)s, %(peak_memory_bytes)s, %(user_cpu_seconds)s, %(system_cpu_seconds)s
)

-- ATTEMPTS_FORGET
delete from `durable_stack_job_run_attempts`
where run_id = %(run_id)s
  and attempt <= %(attempt)s

-- RUN_SELECT_FOR_UPDATE
select status, job_name, payload, max_attempts, recurring_job_name
from `durable_stack_job_runs` force index (primary)
where id = %(id)s
for update

-- RUN_CANCEL_PENDING
update `durable_stack_job_runs` force index (primary)
set status = 'cancelled',
    completed_at_utc = utc_timestamp(6),
    cancel_requested_at_utc = utc_timestamp(6),
    error_type = null,
    error_message = %(error_message)s,
    error_detail = null
where id = %(id)s

-- RUN_REQUEST_CANCEL
update `durable_stack_job_runs` force index (primary)
set cancel_requested_at_utc = coalesce(cancel_requested_at_utc, utc_timestamp(6))
where id = %(id)s

-- STACK_REQUEST
update `durable_stack_job_runs` force index (primary)
set stack_requested_at_utc = utc_timestamp(6),
    stack_taken_at_utc = null,
    stack = null
where id = %(id)s

-- STACK_WRITE
update `durable_stack_job_runs` force index (primary)
set stack_requested_at_utc = coalesce(stack_requested_at_utc, utc_timestamp(6)),
    stack_taken_at_utc = utc_timestamp(6),
    stack = %(stack)s
where id = %(id)s

-- STACK_SELECT
select id, stack_requested_at_utc, stack_taken_at_utc, stack
from `durable_stack_job_runs`
where id = %(id)s

-- WORKER_INSERT
insert into `durable_stack_workers` (
  id, name, boot_id, pid_namespace, user_id, pid, process_started, marker, seen_at_utc
)
values (
  %(id)s, %(name)s, %(boot_id)s, %(pid_namespace)s, %(user_id)s, %(pid)s, %(process_started)s, %(marker)s, utc_timestamp(6)
)
on duplicate key update id = id

-- WORKER_SEEN_UPDATE
update `durable_stack_workers` force index (primary)
set seen_at_utc = utc_timestamp(6)
where id = %(id)s

-- WORKERS_SELECT
select id, name, boot_id, pid_namespace, user_id, pid, process_started, marker
from `durable_stack_workers`
where boot_id = %(boot_id)s
order by id

-- WORKERS_UNSEEN_SELECT
select id
from `durable_stack_workers`
where seen_at_utc <= utc_timestamp(6) - interval %(seconds)s * 1000000 microsecond
order by id
limit %(limit)s

-- WORKER_DELETE
delete from `durable_stack_workers`
where id = %(id)s

-- RUNS_OF_WORKER_SELECT
select id, lease_token
from `durable_stack_job_runs`
where status = 'leased'
  and lease_until_utc > utc_timestamp(6)
  and worker_id = %(worker_id)s
  and lease_owner = (select name from `durable_stack_workers` where id = %(worker_id)s)
order by id

-- LEASES_EXPIRE
update `durable_stack_job_runs` force index (primary)
set lease_until_utc = utc_timestamp(6)
where id in %(ids)s

-- RUN_SELECT
select id, job_name, status, payload, scheduled_for_utc, attempt, max_attempts, created_at_utc, started_at_utc, completed_at_utc, lease_owner, lease_token, lease_until_utc, cancel_requested_at_utc, error_type, error_message, error_detail, stdout_tail, stderr_tail, requeued_from, slot_utc, trace_context, crash_count
from `durable_stack_job_runs`
where id = %(id)s

-- RUNS_SELECT_RECENT
select id, job_name, status, payload, scheduled_for_utc, attempt, max_attempts, created_at_utc, started_at_utc, completed_at_utc, lease_owner, lease_token, lease_until_utc, cancel_requested_at_utc, error_type, error_message, error_detail, stdout_tail, stderr_tail, requeued_from, slot_utc, trace_context, crash_count
from `durable_stack_job_runs`
order by id desc
limit %(limit)s

-- RUNS_SELECT_BY_STATUS
select id, job_name, status, payload, scheduled_for_utc, attempt, max_attempts, created_at_utc, started_at_utc, completed_at_utc, lease_owner, lease_token, lease_until_utc, cancel_requested_at_utc, error_type, error_message, error_detail, stdout_tail, stderr_tail, requeued_from, slot_utc, trace_context, crash_count
from `durable_stack_job_runs`
where status = %(status)s
order by id desc
limit %(limit)s

-- RUNS_SELECT_BY_JOB_NAME
select id, job_name, status, payload, scheduled_for_utc, attempt, max_attempts, created_at_utc, started_at_utc, completed_at_utc, lease_owner, lease_token, lease_until_utc, cancel_requested_at_utc, error_type, error_message, error_detail, stdout_tail, stderr_tail, requeued_from, slot_utc, trace_context, crash_count
from `durable_stack_job_runs`
where job_name = %(job_name)s
order by id desc
limit %(limit)s

-- RUNS_SELECT_BY_STATUS_AND_JOB_NAME
select id, job_name, status, payload, scheduled_for_utc, attempt, max_attempts, created_at_utc, started_at_utc, completed_at_utc, lease_owner, lease_token, lease_until_utc, cancel_requested_at_utc, error_type, error_message, error_detail, stdout_tail, stderr_tail, requeued_from, slot_utc, trace_context, crash_count
from `durable_stack_job_runs`
where status = %(status)s
  and job_name = %(job_name)s
order by id desc
limit %(limit)s

-- RUNS_SELECT_DUE_FIRST
select id, job_name, status, payload, scheduled_for_utc, attempt, max_attempts, created_at_utc, started_at_utc, completed_at_utc, lease_owner, lease_token, lease_until_utc, cancel_requested_at_utc, error_type, error_message, error_detail, stdout_tail, stderr_tail, requeued_from, slot_utc, trace_context, crash_count
from `durable_stack_job_runs`
where status = 'pending'
order by scheduled_for_utc, id
limit %(limit)s

-- RUNS_COUNT_BY_STATUS
select status, count(*)
from `durable_stack_job_runs`
group by status

-- BACKLOG_SELECT
select count(*), min(scheduled_for_utc), utc_timestamp(6)
from (
  select scheduled_for_utc
  from `durable_stack_job_runs`
  where status = 'pending'
    and scheduled_for_utc <= utc_timestamp(6)
    and job_name in %(job_names)s
  order by scheduled_for_utc, id
  limit %(limit)s
) as due

-- ATTEMPTS_SELECT
select run_id, attempt, worker_name, started_at_utc, ended_at_utc, outcome, error_type, error_message, error_detail, `signal`, exit_code, ended_by, peak_memory_bytes, user_cpu_seconds, system_cpu_seconds
from `durable_stack_job_run_attempts`
where run_id = %(run_id)s
order by attempt, ended_at_utc

-- RUNS_PRUNABLE_SELECT
select id
from `durable_stack_job_runs`
where completed_at_utc <= utc_timestamp(6) - interval %(seconds)s * 1000000 microsecond
order by completed_at_utc
limit %(limit)s
for update skip locked

-- ATTEMPTS_DELETE
delete attempt
from `durable_stack_job_runs` as run force index (primary)
straight_join `durable_stack_job_run_attempts` as attempt force index (primary) on attempt.run_id = run.id
where run.id in %(ids)s
  and run.completed_at_utc is not null

-- RUNS_DELETE
delete run
from `durable_stack_job_runs` as run force index (primary)
where run.id in %(ids)s
  and run.completed_at_utc is not null

-- JOB_INSERT
insert into `durable_stack_jobs` (
  job_name, cron_expression, every_seconds, time_zone, enabled, allow_concurrent_runs, payload, max_attempts,
  next_run_at_utc, last_slot_utc, application, seen_at_utc, orphaned_at_utc, error_message, created_at_utc,
  updated_at_utc
)
values (
  %(job_name)s, %(cron_expression)s, %(every_seconds)s, %(time_zone)s, %(enabled)s, %(allow_concurrent_runs)s, %(payload)s, %(max_attempts)s,
  %(next_run_at)s, %(last_slot)s, %(application)s, %(seen_at)s, %(orphaned_at)s, %(error_message)s, utc_timestamp(6),
  utc_timestamp(6)
)
on duplicate key update job_name = job_name

-- JOB_UPDATE
update `durable_stack_jobs` force index (primary)
set cron_expression = %(cron_expression)s,
    every_seconds = %(every_seconds)s,
    time_zone = %(time_zone)s,
    enabled = %(enabled)s,
    allow_concurrent_runs = %(allow_concurrent_runs)s,
    payload = %(payload)s,
    max_attempts = %(max_attempts)s,
    next_run_at_utc = %(next_run_at)s,
    last_slot_utc = %(last_slot)s,
    application = %(application)s,
    seen_at_utc = %(seen_at)s,
    orphaned_at_utc = %(orphaned_at)s,
    error_message = %(error_message)s,
    updated_at_utc = utc_timestamp(6)
where job_name = %(job_name)s

-- JOB_MATERIALIZED_UPDATE
update `durable_stack_jobs` force index (primary)
set next_run_at_utc = %(next_run_at)s,
    last_slot_utc = %(last_slot)s,
    error_message = null
where job_name = %(job_name)s

-- JOBS_UNSEEN_SELECT_FOR_UPDATE
select job_name
from `durable_stack_jobs` force index (primary)
where job_name in %(job_names)s
  and seen_at_utc <= utc_timestamp(6) - interval %(seconds)s * 1000000 microsecond
order by job_name
for update

-- JOBS_SEEN_UPDATE
update `durable_stack_jobs` force index (primary)
set seen_at_utc = utc_timestamp(6)
where job_name in %(job_names)s

-- JOBS_SELECT
select job_name, cron_expression, every_seconds, time_zone, enabled, allow_concurrent_runs, payload, max_attempts, next_run_at_utc, last_slot_utc, application, seen_at_utc, orphaned_at_utc, error_message, created_at_utc, updated_at_utc
from `durable_stack_jobs`
order by job_name

-- JOBS_SELECT_NEXT
select job_name, cron_expression, every_seconds, time_zone, enabled, allow_concurrent_runs, payload, max_attempts, next_run_at_utc, last_slot_utc, application, seen_at_utc, orphaned_at_utc, error_message, created_at_utc, updated_at_utc
from `durable_stack_jobs`
where next_run_at_utc <= utc_timestamp(6) + interval %(seconds)s * 1000000 microsecond
  and enabled = 1
  and job_name in %(job_names)s
order by next_run_at_utc, job_name

-- JOB_SELECT
select job_name, cron_expression, every_seconds, time_zone, enabled, allow_concurrent_runs, payload, max_attempts, next_run_at_utc, last_slot_utc, application, seen_at_utc, orphaned_at_utc, error_message, created_at_utc, updated_at_utc
from `durable_stack_jobs`
where job_name = %(job_name)s

-- JOB_SELECT_FOR_UPDATE
select job_name, cron_expression, every_seconds, time_zone, enabled, allow_concurrent_runs, payload, max_attempts, next_run_at_utc, last_slot_utc, application, seen_at_utc, orphaned_at_utc, error_message, created_at_utc, updated_at_utc
from `durable_stack_jobs` force index (primary)
where job_name = %(job_name)s
for update

-- JOB_SELECT_SKIP_LOCKED
select job_name, cron_expression, every_seconds, time_zone, enabled, allow_concurrent_runs, payload, max_attempts, next_run_at_utc, last_slot_utc, application, seen_at_utc, orphaned_at_utc, error_message, created_at_utc, updated_at_utc
from `durable_stack_jobs`
where job_name = %(job_name)s
for update skip locked

-- RUNS_ACTIVE_SELECT
select id
from `durable_stack_job_runs`
where recurring_job_name = %(job_name)s
  and status in ('pending', 'leased')
order by status, id
limit %(limit)s

-- RUN_OF_SLOT_SELECT
select id
from `durable_stack_job_runs`
where job_name = %(job_name)s
  and slot_utc = %(slot)s

-- MIGRATIONS_SELECT
select version, compatible_from
from `durable_stack_schema_migrations`
order by version

-- MIGRATION_INSERT
insert into `durable_stack_schema_migrations` (version, compatible_from, applied_at_utc)
values (%(version)s, %(compatible_from)s, utc_timestamp(6))

-- RUNS_PROBE
select id, job_name, status, payload, scheduled_for_utc, attempt, max_attempts, created_at_utc, started_at_utc, completed_at_utc, lease_owner, lease_token, lease_until_utc, cancel_requested_at_utc, error_type, error_message, error_detail, stdout_tail, stderr_tail, requeued_from, slot_utc, trace_context, crash_count, last_token, lease_seconds, recurring_job_name,
       worker_id, stack_requested_at_utc, stack_taken_at_utc, stack
from `durable_stack_job_runs`
where 1 = 0

-- JOBS_PROBE
select job_name, cron_expression, every_seconds, time_zone, enabled, allow_concurrent_runs, payload, max_attempts, next_run_at_utc, last_slot_utc, application, seen_at_utc, orphaned_at_utc, error_message, created_at_utc, updated_at_utc
from `durable_stack_jobs`
where 1 = 0

-- ATTEMPTS_PROBE
select run_id, attempt, worker_name, started_at_utc, ended_at_utc, outcome, error_type, error_message, error_detail, `signal`, exit_code, ended_by, peak_memory_bytes, user_cpu_seconds, system_cpu_seconds
from `durable_stack_job_run_attempts`
where 1 = 0

-- WORKERS_PROBE
select id, name, boot_id, pid_namespace, user_id, pid, process_started, marker, seen_at_utc
from `durable_stack_workers`
where 1 = 0

-- RUNS_SUCCEED_BY_LEASE
update `durable_stack_job_runs` force index (primary)
set status = 'succeeded',
    completed_at_utc = utc_timestamp(6),
    last_token = lease_token,
    lease_owner = null,
    lease_token = null,
    lease_until_utc = null,
    error_type = null,
    error_message = null,
    error_detail = null,
    stdout_tail = null,
    stderr_tail = null
where id in %(ids)s
  and (id, lease_token) in %(leases)s

-- EXPIRED_IDS_SELECT
select id
from `durable_stack_job_runs`
where status = 'leased'
  and id > %(after)s
  and lease_until_utc <= utc_timestamp(6)
order by id
limit %(limit)s
