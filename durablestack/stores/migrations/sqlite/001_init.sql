create table {prefix}durable_stack_job_runs (
    id text not null primary key,
    job_name text not null,
    status text not null check (status in ('pending', 'leased', 'succeeded', 'failed', 'cancelled')),
    payload text,
    scheduled_for_utc text not null,
    attempt integer not null,
    max_attempts integer not null,
    created_at_utc text not null,
    started_at_utc text,
    completed_at_utc text,
    lease_owner text,
    lease_token text,
    lease_until_utc text,
    lease_seconds real,
    last_token text,
    cancel_requested_at_utc text,
    error_type text,
    error_message text,
    error_detail text,
    stdout_tail text,
    stderr_tail text,
    requeued_from text,
    check (0 <= attempt and attempt <= max_attempts and max_attempts >= 1),
    check ((status = 'leased') = (lease_token is not null)),
    check ((status = 'leased') = (lease_until_utc is not null)),
    check ((status in ('succeeded', 'failed', 'cancelled')) = (completed_at_utc is not null))
);

create index {prefix}ix_durable_stack_job_runs_due on {prefix}durable_stack_job_runs (scheduled_for_utc, id)
    where status = 'pending';

create index {prefix}ix_durable_stack_job_runs_leased on {prefix}durable_stack_job_runs (id)
    where status = 'leased';

create index {prefix}ix_durable_stack_job_runs_failed on {prefix}durable_stack_job_runs (id)
    where status = 'failed';

create index {prefix}ix_durable_stack_job_runs_completed on {prefix}durable_stack_job_runs (completed_at_utc)
    where completed_at_utc is not null;

create table {prefix}durable_stack_job_run_attempts (
    run_id text not null,
    attempt integer not null,
    worker_name text,
    started_at_utc text,
    ended_at_utc text not null,
    outcome text not null,
    error_type text,
    error_message text,
    error_detail text,
    signal text
);

create index {prefix}ix_durable_stack_job_run_attempts_run on {prefix}durable_stack_job_run_attempts (run_id, attempt);
