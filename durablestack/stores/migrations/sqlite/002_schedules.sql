create table {prefix}durable_stack_jobs (
    job_name text not null primary key,
    cron_expression text,
    every_seconds real,
    time_zone text not null,
    enabled integer not null,
    allow_concurrent_runs integer not null,
    payload text,
    max_attempts integer not null,
    next_run_at_utc text,
    last_slot_utc text,
    application text not null,
    seen_at_utc text not null,
    orphaned_at_utc text,
    error_message text,
    created_at_utc text not null,
    updated_at_utc text not null
);

create index {prefix}ix_durable_stack_jobs_next on {prefix}durable_stack_jobs (next_run_at_utc);

-- the slot of a schedule that a run was made for; the schedule's job, where a run counts as overlapping
alter table {prefix}durable_stack_job_runs add column slot_utc text;

alter table {prefix}durable_stack_job_runs add column recurring_job_name text;

alter table {prefix}durable_stack_job_runs add column trace_context text;

create unique index {prefix}ux_durable_stack_job_runs_slot on {prefix}durable_stack_job_runs (job_name, slot_utc)
    where slot_utc is not null;

create index {prefix}ix_durable_stack_job_runs_recurring on {prefix}durable_stack_job_runs (recurring_job_name, id)
    where recurring_job_name is not null and status in ('pending', 'leased');
