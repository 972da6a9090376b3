-- CLOCK_SELECT
select strftime('%Y-%m-%d %H:%M:%f000', 'now')

-- RUN_INSERT
insert into "durable_stack_job_runs" (
  id, job_name, status, payload, scheduled_for_utc, attempt, max_attempts, created_at_utc, requeued_from,
  slot_utc, recurring_job_name, trace_context
)
values (
  :id, :job_name, 'pending', :payload, coalesce(:scheduled_for, strftime('%Y-%m-%d %H:%M:%f000', 'now')), 0, :max_attempts, strftime('%Y-%m-%d %H:%M:%f000', 'now'), :requeued_from,
  :slot, :recurring_job_name, :trace_context
)
on conflict (id) do nothing

-- EXPIRED_LOOK
select strftime('%Y-%m-%d %H:%M:%f000', 'now'),
       case when exists (
         select 1
         from "durable_stack_job_runs"
         where status = 'leased'
           and lease_until_utc <= strftime('%Y-%m-%d %H:%M:%f000', 'now')
       ) then 1 else 0 end

-- RUNS_EXPIRED_SELECT
select id, job_name, attempt, max_attempts, lease_owner, lease_token, started_at_utc, cancel_requested_at_utc
from "durable_stack_job_runs"
where status = 'leased'
  and lease_until_utc <= strftime('%Y-%m-%d %H:%M:%f000', 'now')
order by id
limit :limit

-- RUN_EXPIRED_UPDATE
update "durable_stack_job_runs"
set status = :status,
    lease_owner = null,
    lease_token = null,
    lease_until_utc = null,
    completed_at_utc = case when :terminal = 1 then strftime('%Y-%m-%d %H:%M:%f000', 'now') end,
    error_type = :error_type,
    error_message = :error_message,
    error_detail = null
where id = :id

-- RUNS_DUE_SELECT
select id, job_name, payload, scheduled_for_utc, attempt, max_attempts, created_at_utc, slot_utc, trace_context, crash_count,
       0.0
from "durable_stack_job_runs"
where status = 'pending'
  and scheduled_for_utc <= strftime('%Y-%m-%d %H:%M:%f000', 'now')
  and job_name in (select value from json_each(:job_names))
order by scheduled_for_utc, id
limit :limit

-- RUNS_DUE_FROM_MARK_SELECT
select id, job_name, payload, scheduled_for_utc, attempt, max_attempts, created_at_utc, slot_utc, trace_context, crash_count,
       0.0
from "durable_stack_job_runs"
where status = 'pending'
  and scheduled_for_utc <= strftime('%Y-%m-%d %H:%M:%f000', 'now')
  and (scheduled_for_utc > :mark_scheduled_for or scheduled_for_utc = :mark_scheduled_for and id >= :mark_id)
  and job_name in (select value from json_each(:job_names))
order by scheduled_for_utc, id
limit :limit

-- RUNS_LEASE
update "durable_stack_job_runs"
set status = 'leased',
    attempt = attempt + 1,
    lease_owner = :worker_name,
    worker_id = :worker_id,
    lease_token = :lease_token,
    lease_until_utc = strftime('%Y-%m-%d %H:%M:%f000', 'now', :seconds || ' seconds'),
    lease_seconds = :seconds,
    started_at_utc = strftime('%Y-%m-%d %H:%M:%f000', 'now')
where id in (select value from json_each(:ids))

-- RUNS_OF_CLAIM_SELECT
select id, attempt, lease_owner
from "durable_stack_job_runs"
where status = 'leased'
  and lease_token = :lease_token
order by id

-- LEASES_SELECT_FOR_UPDATE
select id, status, lease_token, last_token, started_at_utc, cancel_requested_at_utc
from "durable_stack_job_runs"
where id in (select value from json_each(:ids))
order by id

-- LEASES_EXTEND
update "durable_stack_job_runs"
set lease_until_utc = strftime('%Y-%m-%d %H:%M:%f000', 'now', :seconds || ' seconds')
where id in (select value from json_each(:ids))

-- REQUESTS_SELECT
select id, lease_token, cancel_requested_at_utc, stack_requested_at_utc, stack_taken_at_utc
from "durable_stack_job_runs"
where id in (select value from json_each(:ids))
  and status = 'leased'
  and (cancel_requested_at_utc is not null or (stack_requested_at_utc is not null and stack_taken_at_utc is null))

-- RUNS_SUCCEED
update "durable_stack_job_runs"
set status = 'succeeded',
    completed_at_utc = strftime('%Y-%m-%d %H:%M:%f000', 'now'),
    last_token = lease_token,
    lease_owner = null,
    lease_token = null,
    lease_until_utc = null,
    error_type = null,
    error_message = null,
    error_detail = null,
    stdout_tail = null,
    stderr_tail = null
where id in (select value from json_each(:ids))

-- RUN_OUTPUT_UPDATE
update "durable_stack_job_runs"
set stdout_tail = :stdout_tail,
    stderr_tail = :stderr_tail
where id = :id

-- RUN_FAIL
update "durable_stack_job_runs"
set status = 'failed',
    completed_at_utc = strftime('%Y-%m-%d %H:%M:%f000', 'now'),
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

-- RUN_RETRY
update "durable_stack_job_runs"
set status = 'pending',
    scheduled_for_utc = strftime('%Y-%m-%d %H:%M:%f000', 'now', :seconds || ' seconds'),
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

-- RUN_CANCEL_LEASED
update "durable_stack_job_runs"
set status = 'cancelled',
    completed_at_utc = strftime('%Y-%m-%d %H:%M:%f000', 'now'),
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

-- RUNS_RELEASE
update "durable_stack_job_runs"
set status = 'pending',
    attempt = attempt - 1,
    scheduled_for_utc = case when scheduled_for_utc <= strftime('%Y-%m-%d %H:%M:%f000', 'now') then scheduled_for_utc else strftime('%Y-%m-%d %H:%M:%f000', 'now') end,
    last_token = lease_token,
    lease_owner = null,
    lease_token = null,
    lease_until_utc = null
where id in (select value from json_each(:ids))

-- ATTEMPT_INSERT
insert into "durable_stack_job_run_attempts" (
  run_id, attempt, worker_name, started_at_utc, ended_at_utc, outcome, error_type, error_message, error_detail, signal,
  exit_code, ended_by, peak_memory_bytes, user_cpu_seconds, system_cpu_seconds
)
values (
  :run_id, :attempt, :worker_name, :started_at, strftime('%Y-%m-%d %H:%M:%f000', 'now'), :outcome, :error_type, :error_message, :error_detail, :signal,
  :exit_code, :ended_by, :peak_memory_bytes, :user_cpu_seconds, :system_cpu_seconds
)

-- ATTEMPTS_FORGET
delete from "durable_stack_job_run_attempts"
where run_id = :run_id
  and attempt <= :attempt

-- RUN_SELECT_FOR_UPDATE
select status, job_name, payload, max_attempts, recurring_job_name
from "durable_stack_job_runs"
where id = :id

-- RUN_CANCEL_PENDING
update "durable_stack_job_runs"
set status = 'cancelled',
    completed_at_utc = strftime('%Y-%m-%d %H:%M:%f000', 'now'),
    cancel_requested_at_utc = strftime('%Y-%m-%d %H:%M:%f000', 'now'),
    error_type = null,
    error_message = :error_message,
    error_detail = null
where id = :id

-- RUN_REQUEST_CANCEL
update "durable_stack_job_runs"
set cancel_requested_at_utc = coalesce(cancel_requested_at_utc, strftime('%Y-%m-%d %H:%M:%f000', 'now'))
where id = :id

-- STACK_REQUEST
update "durable_stack_job_runs"
set stack_requested_at_utc = strftime('%Y-%m-%d %H:%M:%f000', 'now'),
    stack_taken_at_utc = null,
    stack = null
where id = :id

-- STACK_WRITE
update "durable_stack_job_runs"
set stack_requested_at_utc = coalesce(stack_requested_at_utc, strftime('%Y-%m-%d %H:%M:%f000', 'now')),
    stack_taken_at_utc = strftime('%Y-%m-%d %H:%M:%f000', 'now'),
    stack = :stack
where id = :id

-- STACK_SELECT
select id, stack_requested_at_utc, stack_taken_at_utc, stack
from "durable_stack_job_runs"
where id = :id

-- WORKER_INSERT
insert into "durable_stack_workers" (
  id, name, boot_id, pid_namespace, user_id, pid, process_started, marker, seen_at_utc
)
values (
  :id, :name, :boot_id, :pid_namespace, :user_id, :pid, :process_started, :marker, strftime('%Y-%m-%d %H:%M:%f000', 'now')
)
on conflict (id) do nothing

-- WORKER_SEEN_UPDATE
update "durable_stack_workers"
set seen_at_utc = strftime('%Y-%m-%d %H:%M:%f000', 'now')
where id = :id

-- WORKERS_SELECT
select id, name, boot_id, pid_namespace, user_id, pid, process_started, marker
from "durable_stack_workers"
where boot_id = :boot_id
order by id

-- WORKERS_UNSEEN_SELECT
select id
from "durable_stack_workers"
where seen_at_utc <= strftime('%Y-%m-%d %H:%M:%f000', 'now', -:seconds || ' seconds')
order by id
limit :limit

-- WORKER_DELETE
delete from "durable_stack_workers"
where id = :id

-- RUNS_OF_WORKER_SELECT
select id, lease_token
from "durable_stack_job_runs"
where status = 'leased'
  and lease_until_utc > strftime('%Y-%m-%d %H:%M:%f000', 'now')
  and worker_id = :worker_id
  and lease_owner = (select name from "durable_stack_workers" where id = :worker_id)
order by id

-- LEASES_EXPIRE
update "durable_stack_job_runs"
set lease_until_utc = strftime('%Y-%m-%d %H:%M:%f000', 'now')
where id in (select value from json_each(:ids))

-- RUN_SELECT
select id, job_name, status, payload, scheduled_for_utc, attempt, max_attempts, created_at_utc, started_at_utc, completed_at_utc, lease_owner, lease_token, lease_until_utc, cancel_requested_at_utc, error_type, error_message, error_detail, stdout_tail, stderr_tail, requeued_from, slot_utc, trace_context, crash_count
from "durable_stack_job_runs"
where id = :id

-- RUNS_SELECT_RECENT
select id, job_name, status, payload, scheduled_for_utc, attempt, max_attempts, created_at_utc, started_at_utc, completed_at_utc, lease_owner, lease_token, lease_until_utc, cancel_requested_at_utc, error_type, error_message, error_detail, stdout_tail, stderr_tail, requeued_from, slot_utc, trace_context, crash_count
from "durable_stack_job_runs"
order by id desc
limit :limit

-- RUNS_SELECT_BY_STATUS
select id, job_name, status, payload, scheduled_for_utc, attempt, max_attempts, created_at_utc, started_at_utc, completed_at_utc, lease_owner, lease_token, lease_until_utc, cancel_requested_at_utc, error_type, error_message, error_detail, stdout_tail, stderr_tail, requeued_from, slot_utc, trace_context, crash_count
from "durable_stack_job_runs"
where status = :status
order by id desc
limit :limit

-- RUNS_SELECT_BY_JOB_NAME
select id, job_name, status, payload, scheduled_for_utc, attempt, max_attempts, created_at_utc, started_at_utc, completed_at_utc, lease_owner, lease_token, lease_until_utc, cancel_requested_at_utc, error_type, error_message, error_detail, stdout_tail, stderr_tail, requeued_from, slot_utc, trace_context, crash_count
from "durable_stack_job_runs"
where job_name = :job_name
order by id desc
limit :limit

-- RUNS_SELECT_BY_STATUS_AND_JOB_NAME
select id, job_name, status, payload, scheduled_for_utc, attempt, max_attempts, created_at_utc, started_at_utc, completed_at_utc, lease_owner, lease_token, lease_until_utc, cancel_requested_at_utc, error_type, error_message, error_detail, stdout_tail, stderr_tail, requeued_from, slot_utc, trace_context, crash_count
from "durable_stack_job_runs"
where status = :status
  and job_name = :job_name
order by id desc
limit :limit

-- RUNS_SELECT_DUE_FIRST
select id, job_name, status, payload, scheduled_for_utc, attempt, max_attempts, created_at_utc, started_at_utc, completed_at_utc, lease_owner, lease_token, lease_until_utc, cancel_requested_at_utc, error_type, error_message, error_detail, stdout_tail, stderr_tail, requeued_from, slot_utc, trace_context, crash_count
from "durable_stack_job_runs"
where status = 'pending'
order by scheduled_for_utc, id
limit :limit

-- RUNS_COUNT_BY_STATUS
select status, count(*)
from "durable_stack_job_runs"
group by status

-- BACKLOG_SELECT
select count(*), min(scheduled_for_utc), strftime('%Y-%m-%d %H:%M:%f000', 'now')
from (
  select scheduled_for_utc
  from "durable_stack_job_runs"
  where status = 'pending'
    and scheduled_for_utc <= strftime('%Y-%m-%d %H:%M:%f000', 'now')
    and job_name in (select value from json_each(:job_names))
  order by scheduled_for_utc, id
  limit :limit
) as due

-- ATTEMPTS_SELECT
select run_id, attempt, worker_name, started_at_utc, ended_at_utc, outcome, error_type, error_message, error_detail, signal, exit_code, ended_by, peak_memory_bytes, user_cpu_seconds, system_cpu_seconds
from "durable_stack_job_run_attempts"
where run_id = :run_id
order by attempt, ended_at_utc

-- RUNS_PRUNABLE_SELECT
select id
from "durable_stack_job_runs"
where completed_at_utc <= strftime('%Y-%m-%d %H:%M:%f000', 'now', -:seconds || ' seconds')
order by completed_at_utc
limit :limit

-- ATTEMPTS_DELETE
delete from "durable_stack_job_run_attempts"
where run_id in (select value from json_each(:ids))

-- RUNS_DELETE
delete from "durable_stack_job_runs"
where id in (select value from json_each(:ids))

-- JOB_INSERT
insert into "durable_stack_jobs" (
  job_name, cron_expression, every_seconds, time_zone, enabled, allow_concurrent_runs, payload, max_attempts,
  next_run_at_utc, last_slot_utc, application, seen_at_utc, orphaned_at_utc, error_message, created_at_utc,
  updated_at_utc
)
values (
  :job_name, :cron_expression, :every_seconds, :time_zone, :enabled, :allow_concurrent_runs, :payload, :max_attempts,
  :next_run_at, :last_slot, :application, :seen_at, :orphaned_at, :error_message, strftime('%Y-%m-%d %H:%M:%f000', 'now'),
  strftime('%Y-%m-%d %H:%M:%f000', 'now')
)
on conflict (job_name) do nothing

-- JOB_UPDATE
update "durable_stack_jobs"
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
    updated_at_utc = strftime('%Y-%m-%d %H:%M:%f000', 'now')
where job_name = :job_name

-- JOB_MATERIALIZED_UPDATE
update "durable_stack_jobs"
set next_run_at_utc = :next_run_at,
    last_slot_utc = :last_slot,
    error_message = null
where job_name = :job_name

-- JOBS_UNSEEN_SELECT_FOR_UPDATE
select job_name
from "durable_stack_jobs"
where job_name in (select value from json_each(:job_names))
  and seen_at_utc <= strftime('%Y-%m-%d %H:%M:%f000', 'now', -:seconds || ' seconds')
order by job_name

-- JOBS_SEEN_UPDATE
update "durable_stack_jobs"
set seen_at_utc = strftime('%Y-%m-%d %H:%M:%f000', 'now')
where job_name in (select value from json_each(:job_names))

-- JOBS_SELECT
select job_name, cron_expression, every_seconds, time_zone, enabled, allow_concurrent_runs, payload, max_attempts, next_run_at_utc, last_slot_utc, application, seen_at_utc, orphaned_at_utc, error_message, created_at_utc, updated_at_utc
from "durable_stack_jobs"
order by job_name

-- JOBS_SELECT_NEXT
select job_name, cron_expression, every_seconds, time_zone, enabled, allow_concurrent_runs, payload, max_attempts, next_run_at_utc, last_slot_utc, application, seen_at_utc, orphaned_at_utc, error_message, created_at_utc, updated_at_utc
from "durable_stack_jobs"
where next_run_at_utc <= strftime('%Y-%m-%d %H:%M:%f000', 'now', :seconds || ' seconds')
  and enabled = 1
  and job_name in (select value from json_each(:job_names))
order by next_run_at_utc, job_name

-- JOB_SELECT
select job_name, cron_expression, every_seconds, time_zone, enabled, allow_concurrent_runs, payload, max_attempts, next_run_at_utc, last_slot_utc, application, seen_at_utc, orphaned_at_utc, error_message, created_at_utc, updated_at_utc
from "durable_stack_jobs"
where job_name = :job_name

-- JOB_SELECT_FOR_UPDATE
select job_name, cron_expression, every_seconds, time_zone, enabled, allow_concurrent_runs, payload, max_attempts, next_run_at_utc, last_slot_utc, application, seen_at_utc, orphaned_at_utc, error_message, created_at_utc, updated_at_utc
from "durable_stack_jobs"
where job_name = :job_name

-- JOB_SELECT_SKIP_LOCKED
select job_name, cron_expression, every_seconds, time_zone, enabled, allow_concurrent_runs, payload, max_attempts, next_run_at_utc, last_slot_utc, application, seen_at_utc, orphaned_at_utc, error_message, created_at_utc, updated_at_utc
from "durable_stack_jobs"
where job_name = :job_name

-- RUNS_ACTIVE_SELECT
select id
from "durable_stack_job_runs"
where recurring_job_name = :job_name
  and status in ('pending', 'leased')
order by id
limit :limit

-- RUN_OF_SLOT_SELECT
select id
from "durable_stack_job_runs"
where job_name = :job_name
  and slot_utc = :slot

-- MIGRATIONS_SELECT
select version, compatible_from
from "durable_stack_schema_migrations"
order by version

-- MIGRATION_INSERT
insert into "durable_stack_schema_migrations" (version, compatible_from, applied_at_utc)
values (:version, :compatible_from, strftime('%Y-%m-%d %H:%M:%f000', 'now'))

-- RUNS_PROBE
select id, job_name, status, payload, scheduled_for_utc, attempt, max_attempts, created_at_utc, started_at_utc, completed_at_utc, lease_owner, lease_token, lease_until_utc, cancel_requested_at_utc, error_type, error_message, error_detail, stdout_tail, stderr_tail, requeued_from, slot_utc, trace_context, crash_count, last_token, lease_seconds, recurring_job_name,
       worker_id, stack_requested_at_utc, stack_taken_at_utc, stack
from "durable_stack_job_runs"
where 1 = 0

-- JOBS_PROBE
select job_name, cron_expression, every_seconds, time_zone, enabled, allow_concurrent_runs, payload, max_attempts, next_run_at_utc, last_slot_utc, application, seen_at_utc, orphaned_at_utc, error_message, created_at_utc, updated_at_utc
from "durable_stack_jobs"
where 1 = 0

-- ATTEMPTS_PROBE
select run_id, attempt, worker_name, started_at_utc, ended_at_utc, outcome, error_type, error_message, error_detail, signal, exit_code, ended_by, peak_memory_bytes, user_cpu_seconds, system_cpu_seconds
from "durable_stack_job_run_attempts"
where 1 = 0

-- WORKERS_PROBE
select id, name, boot_id, pid_namespace, user_id, pid, process_started, marker, seen_at_utc
from "durable_stack_workers"
where 1 = 0
