-- names have twice the room that their 200 characters need: SQL Server counts an emoji as two

create table {prefix}durable_stack_job_runs (
    id binary(16) not null primary key,
    job_name nvarchar(400) collate Latin1_General_100_BIN2 not null,
    status nvarchar(16) collate Latin1_General_100_BIN2 not null
        check (status in ('pending', 'leased', 'succeeded', 'failed', 'cancelled')),
    payload nvarchar(max),
    scheduled_for_utc datetime2(6) not null,
    attempt int not null,
    max_attempts int not null,
    created_at_utc datetime2(6) not null,
    started_at_utc datetime2(6),
    completed_at_utc datetime2(6),
    lease_owner nvarchar(400),
    lease_token binary(16),
    lease_until_utc datetime2(6),
    lease_seconds float,
    last_token binary(16),
    cancel_requested_at_utc datetime2(6),
    error_type nvarchar(400),
    error_message nvarchar(max),
    error_detail nvarchar(max),
    stdout_tail nvarchar(max),
    stderr_tail nvarchar(max),
    requeued_from binary(16),
    check (0 <= attempt and attempt <= max_attempts and max_attempts >= 1),
    check (
        (status = 'leased' and lease_token is not null and lease_until_utc is not null)
        or (status <> 'leased' and lease_token is null and lease_until_utc is null)
    ),
    check (
        (status in ('succeeded', 'failed', 'cancelled') and completed_at_utc is not null)
        or (status not in ('succeeded', 'failed', 'cancelled') and completed_at_utc is null)
    )
);

-- row locks stay row locks: who holds many would otherwise lock the whole table
alter table {prefix}durable_stack_job_runs set (lock_escalation = disable);

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
    run_id binary(16) not null,
    attempt int not null,
    worker_name nvarchar(400),
    started_at_utc datetime2(6),
    ended_at_utc datetime2(6) not null,
    outcome nvarchar(16) not null,
    error_type nvarchar(400),
    error_message nvarchar(max),
    error_detail nvarchar(max),
    signal nvarchar(32),
    -- the rows of a run lie together, and are deleted by this key
    primary key (run_id, attempt, ended_at_utc)
);

alter table {prefix}durable_stack_job_run_attempts set (lock_escalation = disable);
