create table {prefix}durable_stack_jobs (
    job_name nvarchar(400) collate Latin1_General_100_BIN2 not null primary key,
    cron_expression nvarchar(256),
    every_seconds float,
    time_zone nvarchar(64) not null,
    enabled smallint not null,
    allow_concurrent_runs smallint not null,
    payload nvarchar(max),
    max_attempts int not null,
    next_run_at_utc datetime2(6),
    last_slot_utc datetime2(6),
    application nvarchar(400) not null,
    seen_at_utc datetime2(6) not null,
    orphaned_at_utc datetime2(6),
    error_message nvarchar(max),
    created_at_utc datetime2(6) not null,
    updated_at_utc datetime2(6) not null
);

create index {prefix}ix_durable_stack_jobs_next on {prefix}durable_stack_jobs (next_run_at_utc);

-- the slot of a schedule that a run was made for; the schedule's job, where a run counts as overlapping
alter table {prefix}durable_stack_job_runs add
    slot_utc datetime2(6),
    recurring_job_name nvarchar(400) collate Latin1_General_100_BIN2,
    trace_context nvarchar(max);

create unique index {prefix}ux_durable_stack_job_runs_slot on {prefix}durable_stack_job_runs (job_name, slot_utc)
    where slot_utc is not null;

create index {prefix}ix_durable_stack_job_runs_recurring on {prefix}durable_stack_job_runs (recurring_job_name, id)
    where recurring_job_name is not null and status in ('pending', 'leased');
