-- Each statement of these files commits by itself, so that each can be run again.
-- The comments at the collations are read by MariaDB alone, or by MySQL alone: each has its own name for text that
-- is compared exactly, blanks at the end included.

create table if not exists {prefix}durable_stack_job_runs (
    id binary(16) not null primary key,
    job_name varchar(200) not null,
    status varchar(16) not null check (status in ('pending', 'leased', 'succeeded', 'failed', 'cancelled')),
    payload longtext,
    scheduled_for_utc datetime(6) not null,
    attempt integer not null,
    max_attempts integer not null,
    created_at_utc datetime(6) not null,
    started_at_utc datetime(6),
    completed_at_utc datetime(6),
    lease_owner varchar(200),
    lease_token binary(16),
    lease_until_utc datetime(6),
    lease_seconds double,
    last_token binary(16),
    cancel_requested_at_utc datetime(6),
    error_type varchar(200),
    error_message longtext,
    error_detail longtext,
    stdout_tail longtext,
    stderr_tail longtext,
    requeued_from binary(16),
    check (0 <= attempt and attempt <= max_attempts and max_attempts >= 1),
    check ((status = 'leased') = (lease_token is not null)),
    check ((status = 'leased') = (lease_until_utc is not null)),
    check ((status in ('succeeded', 'failed', 'cancelled')) = (completed_at_utc is not null)),
    -- a locking read locks all that it scans, so that each has an index in its own order;
    -- no index may hold a lease column, or every heartbeat would write to it
    index {prefix}ix_durable_stack_job_runs_due (status, scheduled_for_utc, id),
    index {prefix}ix_durable_stack_job_runs_status (status, id),
    index {prefix}ix_durable_stack_job_runs_completed (completed_at_utc)
) engine = InnoDB
    default character set = utf8mb4
    collate = /*M! utf8mb4_nopad_bin */ /*!50720 utf8mb4_0900_bin */;

create table if not exists {prefix}durable_stack_job_run_attempts (
    run_id binary(16) not null,
    attempt integer not null,
    worker_name varchar(200),
    started_at_utc datetime(6),
    ended_at_utc datetime(6) not null,
    outcome varchar(16) not null,
    error_type varchar(200),
    error_message longtext,
    error_detail longtext,
    `signal` varchar(32),
    -- the rows of a run lie together, and are deleted by this key
    primary key (run_id, attempt, ended_at_utc)
) engine = InnoDB
    default character set = utf8mb4
    collate = /*M! utf8mb4_nopad_bin */ /*!50720 utf8mb4_0900_bin */;
