-- lives of supervisors, so that the next one on the same machine sees which of them are over
create table {prefix}durable_stack_workers (
    id text not null primary key,
    name text not null,
    boot_id text not null,
    pid_namespace text not null,
    user_id integer not null,
    pid integer not null,
    process_started integer not null,
    marker text not null,
    seen_at_utc text not null
);

-- how often a run has crashed; which worker holds it; where its code is
alter table {prefix}durable_stack_job_runs add column crash_count integer not null default 0;

alter table {prefix}durable_stack_job_runs add column worker_id text;

alter table {prefix}durable_stack_job_runs add column stack_requested_at_utc text;

alter table {prefix}durable_stack_job_runs add column stack_taken_at_utc text;

alter table {prefix}durable_stack_job_runs add column stack text;

-- how the process of an attempt ended, and what it used
alter table {prefix}durable_stack_job_run_attempts add column exit_code integer;

alter table {prefix}durable_stack_job_run_attempts add column ended_by text;

alter table {prefix}durable_stack_job_run_attempts add column peak_memory_bytes integer;

alter table {prefix}durable_stack_job_run_attempts add column user_cpu_seconds real;

alter table {prefix}durable_stack_job_run_attempts add column system_cpu_seconds real;
