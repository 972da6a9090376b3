-- lives of supervisors, so that the next one on the same machine sees which of them are over
create table if not exists {prefix}durable_stack_workers (
    id binary(16) not null primary key,
    name varchar(200) not null,
    boot_id varchar(64) not null,
    pid_namespace varchar(64) not null,
    user_id bigint not null,
    pid bigint not null,
    process_started bigint not null,
    marker varchar(200) not null,
    seen_at_utc datetime(6) not null
) engine = InnoDB
    default character set = utf8mb4
    collate = /*M! utf8mb4_nopad_bin */ /*!50720 utf8mb4_0900_bin */;

-- how often a run has crashed; which worker holds it; where its code is
-- all in one statement, which is not repeated if it was done before
set @durable_stack_columns_there = (
    select count(*)
    from information_schema.columns
    where table_schema = database()
      and table_name = '{prefix}' 'durable_stack_job_runs'
      and column_name = 'crash_count'
);

set @durable_stack_step = if(@durable_stack_columns_there, 'do 0', '
    alter table {prefix}durable_stack_job_runs
        add column crash_count integer not null default 0,
        add column worker_id binary(16),
        add column stack_requested_at_utc datetime(6),
        add column stack_taken_at_utc datetime(6),
        add column stack longtext
');

prepare durable_stack_step from @durable_stack_step;

execute durable_stack_step;

deallocate prepare durable_stack_step;

-- how the process of an attempt ended, and what it used
set @durable_stack_columns_there = (
    select count(*)
    from information_schema.columns
    where table_schema = database()
      and table_name = '{prefix}' 'durable_stack_job_run_attempts'
      and column_name = 'exit_code'
);

set @durable_stack_step = if(@durable_stack_columns_there, 'do 0', '
    alter table {prefix}durable_stack_job_run_attempts
        add column exit_code integer,
        add column ended_by varchar(16),
        add column peak_memory_bytes bigint,
        add column user_cpu_seconds double,
        add column system_cpu_seconds double
');

prepare durable_stack_step from @durable_stack_step;

execute durable_stack_step;

deallocate prepare durable_stack_step;
