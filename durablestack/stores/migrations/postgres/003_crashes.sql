-- lives of supervisors, so that the next one on the same machine sees which of them are over
create table {prefix}durable_stack_workers (
    id uuid primary key,
    name varchar(200) not null,
    boot_id varchar(64) not null,
    pid_namespace varchar(64) not null,
    user_id bigint not null,
    pid bigint not null,
    process_started bigint not null,
    marker varchar(200) not null,
    seen_at_utc timestamptz not null
);

-- how often a run has crashed; which worker holds it; where its code is
alter table {prefix}durable_stack_job_runs
    add column crash_count integer not null default 0,
    add column worker_id uuid,
    add column stack_requested_at_utc timestamptz,
    add column stack_taken_at_utc timestamptz,
    add column stack text;

-- how the process of an attempt ended, and what it used
alter table {prefix}durable_stack_job_run_attempts
    add column exit_code integer,
    add column ended_by varchar(16),
    add column peak_memory_bytes bigint,
    add column user_cpu_seconds double precision,
    add column system_cpu_seconds double precision;
