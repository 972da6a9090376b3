create table {prefix}durable_stack_job_runs (
    id uuid primary key,
    job_name varchar(200) not null,
    status varchar(16) not null check (status in ('pending', 'leased', 'succeeded', 'failed', 'cancelled')),
    payload text,
    scheduled_for_utc timestamptz not null,
    attempt integer not null,
    max_attempts integer not null,
    created_at_utc timestamptz not null,
    started_at_utc timestamptz,
    completed_at_utc timestamptz,
    lease_owner varchar(200),
    lease_token uuid,
    lease_until_utc timestamptz,
    lease_seconds double precision,
    last_token uuid,
    cancel_requested_at_utc timestamptz,
    error_type varchar(200),
    error_message text,
    error_detail text,
    stdout_tail text,
    stderr_tail text,
    requeued_from uuid,
    check (0 <= attempt and attempt <= max_attempts and max_attempts >= 1),
    check ((status = 'leased') = (lease_token is not null)),
    check ((status = 'leased') = (lease_until_utc is not null)),
    check ((status in ('succeeded', 'failed', 'cancelled')) = (completed_at_utc is not null))
) with (
    -- room in each page for the next version of a row: a renewed lease then touches no index
    fillfactor = 75,
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 1,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.02
);

-- no index may hold a lease column, or every heartbeat would write to it
create index {prefix}ix_durable_stack_job_runs_due on {prefix}durable_stack_job_runs (scheduled_for_utc, id)
    where status = 'pending';

create index {prefix}ix_durable_stack_job_runs_leased on {prefix}durable_stack_job_runs (id)
    where status = 'leased';

create index {prefix}ix_durable_stack_job_runs_failed on {prefix}durable_stack_job_runs (id)
    where status = 'failed';

create index {prefix}ix_durable_stack_job_runs_completed on {prefix}durable_stack_job_runs (completed_at_utc)
    where completed_at_utc is not null;

create table {prefix}durable_stack_job_run_attempts (
    run_id uuid not null,
    attempt integer not null,
    worker_name varchar(200),
    started_at_utc timestamptz,
    ended_at_utc timestamptz not null,
    outcome varchar(16) not null,
    error_type varchar(200),
    error_message text,
    error_detail text,
    signal varchar(32)
);

create index {prefix}ix_durable_stack_job_run_attempts_run on {prefix}durable_stack_job_run_attempts (run_id, attempt);
