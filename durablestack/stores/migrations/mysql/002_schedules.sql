create table if not exists {prefix}durable_stack_jobs (
    job_name varchar(200) not null primary key,
    cron_expression varchar(256),
    every_seconds double,
    time_zone varchar(64) not null,
    enabled smallint not null,
    allow_concurrent_runs smallint not null,
    payload longtext,
    max_attempts integer not null,
    next_run_at_utc datetime(6),
    last_slot_utc datetime(6),
    application varchar(200) not null,
    seen_at_utc datetime(6) not null,
    orphaned_at_utc datetime(6),
    error_message longtext,
    created_at_utc datetime(6) not null,
    updated_at_utc datetime(6) not null,
    index {prefix}ix_durable_stack_jobs_next (next_run_at_utc)
) engine = InnoDB
    default character set = utf8mb4
    collate = /*M! utf8mb4_nopad_bin */ /*!50720 utf8mb4_0900_bin */;

-- the slot of a schedule that a run was made for; the schedule's job, where a run counts as overlapping;
-- all in one statement, which is not repeated if it was done before
set @durable_stack_columns_there = (
    select count(*)
    from information_schema.columns
    where table_schema = database()
      and table_name = '{prefix}' 'durable_stack_job_runs'
      and column_name = 'slot_utc'
);

set @durable_stack_step = if(@durable_stack_columns_there, 'do 0', '
    alter table {prefix}durable_stack_job_runs
        add column slot_utc datetime(6),
        add column recurring_job_name varchar(200),
        add column trace_context longtext,
        add unique index {prefix}ux_durable_stack_job_runs_slot (job_name, slot_utc),
        add index {prefix}ix_durable_stack_job_runs_recurring (recurring_job_name, status)
');

prepare durable_stack_step from @durable_stack_step;

execute durable_stack_step;

deallocate prepare durable_stack_step;
