-- lives of supervisors, so that the next one on the same machine sees which of them are over
create table {prefix}durable_stack_workers (
    id binary(16) not null primary key,
    name nvarchar(400) not null,
    boot_id nvarchar(64) collate Latin1_General_100_BIN2 not null,
    pid_namespace nvarchar(64) not null,
    user_id bigint not null,
    pid bigint not null,
    process_started bigint not null,
    marker nvarchar(400) not null,
    seen_at_utc datetime2(6) not null
);

-- how often a run has crashed; which worker holds it; where its code is
alter table {prefix}durable_stack_job_runs add
    crash_count int not null default 0,
    worker_id binary(16),
    stack_requested_at_utc datetime2(6),
    stack_taken_at_utc datetime2(6),
    stack nvarchar(max);

-- how the process of an attempt ended, and what it used
alter table {prefix}durable_stack_job_run_attempts add
    exit_code int,
    ended_by nvarchar(16),
    peak_memory_bytes bigint,
    user_cpu_seconds float,
    system_cpu_seconds float;
