create table {prefix}durable_stack_jobs (
    job_name varchar(200) primary key,
    cron_expression varchar(256),
    every_seconds double precision,
    time_zone varchar(64) not null,
    enabled smallint not null,
    allow_concurrent_runs smallint not null,
    payload text,
    max_attempts integer not null,
    next_run_at_utc timestamptz,
    last_slot_utc timestamptz,
    application varchar(200) not null,
    seen_at_utc timestamptz not null,
    orphaned_at_utc timestamptz,
    error_message text,
    created_at_utc timestamptz not null,
    updated_at_utc timestamptz not null,
    -- an instant that Python does not know would spoil every result that it is part of
    check (
        coalesce(isfinite(next_run_at_utc), true) and coalesce(isfinite(last_slot_utc), true)
        and isfinite(seen_at_utc) and coalesce(isfinite(orphaned_at_utc), true)
    )
);

create index {prefix}ix_durable_stack_jobs_next on {prefix}durable_stack_jobs (next_run_at_utc);

-- the slot of a schedule that a run was made for; the schedule's job, where a run counts as overlapping
alter table {prefix}durable_stack_job_runs
    add column slot_utc timestamptz,
    add column recurring_job_name varchar(200),
    add column trace_context text,
    add check (isfinite(scheduled_for_utc) and coalesce(isfinite(slot_utc), true));

create unique index {prefix}ux_durable_stack_job_runs_slot on {prefix}durable_stack_job_runs (job_name, slot_utc)
    where slot_utc is not null;

create index {prefix}ix_durable_stack_job_runs_recurring on {prefix}durable_stack_job_runs (recurring_job_name, id)
    where recurring_job_name is not null and status in ('pending', 'leased');
