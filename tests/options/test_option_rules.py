"""What options are by default, what they refuse, and in which words."""

import copy
import logging
import os
import sys
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from durablestack.errors import OptionsError
from durablestack.options import (
    CatchUpPolicy,
    CrashedRunPolicy,
    DurableStackOptions,
    EventingOptions,
    EventLoop,
    ExistingJobBehavior,
    GuardKind,
    JobActivation,
    MonitoringOptions,
    OrphanedJobBehavior,
    PostgresOptions,
    RetentionOptions,
    Secret,
    SqliteSynchronous,
    StartMethod,
    StorageProvider,
    default_worker_name,
)

TARGET = "postgresql://me:hunter22@localhost:5432/orders"


def test_defaults_are_those_of_the_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTNAME", "orders")
    options = DurableStackOptions()

    assert options.storage_provider is options.effective_provider is StorageProvider.IN_MEMORY
    assert options.worker_name == f"orders-{os.getpid()}"
    assert options.database_table_prefix is None
    assert (options.poll_interval_seconds, options.poll_jitter_enabled, options.poll_jitter_ratio) == (5.0, True, 0.2)
    assert (options.batch_size, options.max_concurrent_runs, options.lease_duration_seconds) == (50, 5, 30.0)
    assert (options.retry_delay, options.retry_max_delay) == (timedelta(seconds=5), timedelta(hours=1))
    assert (options.retry_jitter_enabled, options.retry_jitter_ratio) == (False, 0.2)
    assert options.job_activation is JobActivation.SCOPED_PER_EXECUTION
    for group in (options.postgres, options.sql_server, options.sqlite, options.my_sql):
        assert group.connection_string == Secret("")
    assert options.sqlite.synchronous is SqliteSynchronous.FULL
    assert options.recurring.catch_up_policy is CatchUpPolicy.SKIP_MISSED
    assert options.recurring.registration_sync.existing_job_behavior is ExistingJobBehavior.KEEP_DATABASE
    assert options.recurring.registration_sync.orphaned_job_behavior is OrphanedJobBehavior.DISABLE
    assert options.retention == RetentionOptions(
        enabled=True, run_retention_seconds=None, sweep_interval_seconds=300.0, delete_batch_size=1000
    )
    assert options.job_registration.auto_discover_jobs_from_assembly is True
    assert options.eventing == EventingOptions(
        tenant_id=None,
        client_secret=None,
        ingestion_api_base_url="https://api.durablestack.com",
        ingestion_path="/v1/events/batch",
        ingestion_max_batch_size=100,
        ingestion_max_request_body_bytes=1_000_000,
        ingestion_max_retry_attempts=5,
        ingestion_flush_interval_seconds=5.0,
        include_error_detail=False,
        max_error_detail_length=4096,
    )


def test_defaults_of_our_own_options() -> None:
    options = DurableStackOptions()

    assert options.database_url is None
    assert options.auto_migrate is True
    assert (options.timeout_seconds, options.cpu_seconds) == (None, None)
    assert (options.memory_limit, options.address_space_limit, options.crash_limit) == (None, None, 5)
    assert (options.runs_per_child_max, options.child_memory_max, options.fresh_process_per_run) == (None, None, False)
    assert options.guard is GuardKind.PROCESS
    assert (options.cancel_grace_seconds, options.terminate_grace_seconds) == (2.0, 1.0)
    assert (options.shutdown_drain_timeout_seconds, options.startup_timeout_seconds) == (10.0, 60.0)
    assert options.event_loop is EventLoop.ASYNCIO
    assert options.start_method is (StartMethod.FORKSERVER if sys.platform == "linux" else StartMethod.SPAWN)
    assert options.crashed_run_policy is CrashedRunPolicy.RECORD
    assert (options.restart_limit, options.restart_period_seconds) == (10, 60.0)
    assert (options.payload_bytes_max, options.captured_output_bytes_max) == (1_048_576, 16_384)
    assert options.operation_timeout_seconds == 10.0
    assert options.window_max == 100
    assert options.monitoring == MonitoringOptions(port=None, host="127.0.0.1", backlog_interval_seconds=15.0)


def test_the_worker_name_falls_back_to_the_machine_and_is_always_a_valid_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOSTNAME", raising=False)
    assert default_worker_name().endswith(f"-{os.getpid()}")
    monkeypatch.setenv("HOSTNAME", "x\n" * 500)
    assert len(DurableStackOptions().worker_name) <= 200


@pytest.mark.parametrize(
    ("option", "value", "default"),
    [
        ("poll_interval_seconds", 0, 5.0),
        ("lease_duration_seconds", -1, 30.0),
        ("retention.sweep_interval_seconds", 0, 300.0),
        ("retention.delete_batch_size", -5, 1000),
        ("eventing.ingestion_flush_interval_seconds", -0.5, 5.0),
        ("eventing.max_error_detail_length", 0, 4096),
        ("monitoring.backlog_interval_seconds", 0, 15.0),
    ],
)
def test_zero_or_less_resets_to_the_default_and_warns_once(
    option: str, value: float, default: float, caplog: pytest.LogCaptureFixture
) -> None:
    group, _, name = option.rpartition(".")
    given = {group: {name: value}} if group else {name: value}
    with caplog.at_level(logging.WARNING, "durablestack.options"):
        options = DurableStackOptions.from_mapping(given)

    assert getattr(getattr(options, group) if group else options, name) == default
    (warning,) = caplog.messages
    assert option in warning
    assert str(value) in warning
    assert str(default) in warning


@pytest.mark.parametrize(
    ("given", "size_bytes"),
    [
        (2**20, 2**20),
        ("1048576", 2**20),
        ("1048576 B", 2**20),
        ("512 MiB", 512 * 2**20),
        ("512m", 512 * 2**20),
        ("1.5GiB", 3 * 2**29),
        (" 2 GB ", 2 * 10**9),
        ("4000kb", 4_000_000),
        ("1 TiB", 2**40),
    ],
)
def test_a_size_is_bytes_or_a_text_with_a_unit_from_any_source(given: int | str, size_bytes: int) -> None:
    assert DurableStackOptions.load(environ={}, memory_limit=given).memory_limit == size_bytes
    variables = {"DURABLESTACK__MEMORY_LIMIT": str(given)}
    assert DurableStackOptions.from_environment(variables).memory_limit == size_bytes


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"batch_siz": 5}, ["batch_siz", "batch_size"]),
        ({"retention": {"enbled": True}}, ["retention", "enbled", "enabled"]),
        ({"batch_size": 0}, ["batch_size", "0", "from 1"]),
        ({"batch_size": True}, ["batch_size", "True", "whole number"]),
        ({"batch_size": "50"}, ["batch_size", "'50'", "whole number"]),
        ({"batch_size": 1.5}, ["batch_size", "1.5"]),
        ({"batch_size": 10**400}, ["batch_size"]),
        ({"max_concurrent_runs": 0}, ["max_concurrent_runs", "1 to 1000"]),
        ({"max_concurrent_runs": 1001}, ["max_concurrent_runs", "1001", "1 to 1000"]),
        ({"poll_jitter_enabled": 1}, ["poll_jitter_enabled", "true or false"]),
        ({"poll_jitter_ratio": 1.01}, ["poll_jitter_ratio", "1.01", "0 to 1"]),
        ({"retry_jitter_ratio": -0.1}, ["retry_jitter_ratio", "-0.1", "0 to 1"]),
        ({"poll_jitter_ratio": True}, ["poll_jitter_ratio", "True"]),
        ({"poll_jitter_ratio": float("nan")}, ["poll_jitter_ratio", "nan"]),
        ({"poll_interval_seconds": float("inf")}, ["poll_interval_seconds", "inf"]),
        ({"poll_interval_seconds": float("nan")}, ["poll_interval_seconds", "nan"]),
        ({"poll_interval_seconds": float("-inf")}, ["poll_interval_seconds", "-inf"]),
        ({"lease_duration_seconds": 0.5}, ["lease_duration_seconds", "0.5", "heartbeat"]),
        ({"retry_delay": timedelta(seconds=-1)}, ["retry_delay", "not negative"]),
        ({"retry_delay": "5 minutes"}, ["retry_delay", "5 minutes", "00:00:05"]),
        ({"retry_delay": "00:61:00"}, ["retry_delay"]),
        ({"retry_max_delay": 1e300}, ["retry_max_delay"]),
        ({"timeout_seconds": -1}, ["timeout_seconds", "-1"]),
        ({"cpu_seconds": 0}, ["cpu_seconds", "0", "more than 0"]),
        ({"crash_limit": 0}, ["crash_limit", "0", "from 1"]),
        ({"runs_per_child_max": 0}, ["runs_per_child_max", "from 1"]),
        ({"memory_limit": 1024}, ["memory_limit", "1024", "1 MiB or more"]),
        ({"memory_limit": 0}, ["memory_limit", "0", "1 MiB or more"]),
        ({"memory_limit": True}, ["memory_limit", "True"]),
        ({"memory_limit": 2.0**30}, ["memory_limit", "512 MiB"]),
        ({"memory_limit": "512 MIB!"}, ["memory_limit", "512 MIB!", "512 MiB"]),
        ({"address_space_limit": "1 EiB"}, ["address_space_limit", "1 EiB"]),
        ({"child_memory_max": "9" * 40}, ["child_memory_max"]),
        ({"guard": "dog"}, ["guard", "dog", "process", "child"]),
        ({"cancel_grace_seconds": -1}, ["cancel_grace_seconds", "-1"]),
        ({"shutdown_drain_timeout_seconds": -1}, ["shutdown_drain_timeout_seconds"]),
        ({"operation_timeout_seconds": 0}, ["operation_timeout_seconds"]),
        ({"database_table_prefix": "1st_"}, ["database_table_prefix", "1st_", "ASCII"]),
        ({"database_table_prefix": "größe"}, ["database_table_prefix", "ASCII"]),
        ({"database_table_prefix": "a" * 17}, ["database_table_prefix"]),
        ({"database_table_prefix": "prod_\n"}, ["database_table_prefix"]),
        ({"worker_name": ""}, ["worker_name", "200"]),
        ({"worker_name": "x" * 201}, ["worker_name", "200"]),
        ({"worker_name": "a\x1b[31m"}, ["worker_name", "control"]),
        ({"worker_name": None}, ["worker_name"]),
        ({"storage_provider": "Oracle"}, ["storage_provider", "Oracle", "postgres", "my_sql"]),
        ({"event_loop": "trio"}, ["event_loop", "trio", "asyncio", "uvloop"]),
        ({"start_method": "fork"}, ["start_method", "fork", "forkserver", "spawn"]),
        ({"storage_provider": "Postgres"}, ["postgres.connection_string", "empty", "database_url"]),
        ({"eventing": {"tenant_id": "t"}}, ["eventing.client_secret", "missing"]),
        ({"eventing": {"client_secret": "s"}}, ["eventing.tenant_id", "missing"]),
        ({"eventing": {"ingestion_api_base_url": "http://api.example.com"}}, ["ingestion_api_base_url", "https"]),
        ({"eventing": {"ingestion_api_base_url": "http://localhost.example.com"}}, ["ingestion_api_base_url"]),
        ({"eventing": {"ingestion_path": "@example.com/"}}, ["ingestion_path", "'/'"]),
        ({"monitoring": {"port": 65536}}, ["monitoring.port", "65536", "0 to 65535"]),
        ({"monitoring": {"port": -1}}, ["monitoring.port", "-1"]),
        ({"monitoring": {"host": ""}}, ["monitoring.host", "interface"]),
        ({"monitoring": {"host": "http://localhost"}}, ["monitoring.host", "interface"]),
        ({"retention": 5}, ["retention", "int"]),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(given: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(OptionsError) as refused:
        DurableStackOptions.load(environ={}, **given)
    for name in names:
        assert name in str(refused.value)


def test_plain_construction_is_checked_and_normalised_too() -> None:
    options = DurableStackOptions(
        storage_provider="Postgres",  # type: ignore[arg-type]
        postgres={"ConnectionString": TARGET},  # type: ignore[arg-type]
        lease_duration_seconds=timedelta(minutes=1),  # type: ignore[arg-type]
        retry_delay="00:00:07",  # type: ignore[arg-type]
    )
    assert options.storage_provider is StorageProvider.POSTGRES
    assert options.postgres == PostgresOptions(connection_string=Secret(TARGET))
    assert options.lease_duration_seconds == 60.0
    assert options.retry_delay == timedelta(seconds=7)
    with pytest.raises(OptionsError, match="batch_size"):
        DurableStackOptions(batch_size=0)
    with pytest.raises(OptionsError, match="batch_size"):
        msgspec.structs.replace(options, batch_size=-1)
    with pytest.raises(OptionsError, match=r"retention\.enabled"):
        RetentionOptions(enabled="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "url", ["https://api.example.com", "http://localhost:8080", "http://127.0.0.1", "http://[::1]"]
)
def test_events_are_sent_encrypted_or_stay_on_this_machine(url: str) -> None:
    assert EventingOptions(ingestion_api_base_url=url).ingestion_api_base_url == url


def test_ingestion_is_on_with_both_credentials_and_off_with_empty_ones() -> None:
    assert EventingOptions(tenant_id="t", client_secret=Secret("s")).ingestion_enabled
    assert not EventingOptions(tenant_id="", client_secret=Secret("")).ingestion_enabled


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (timedelta(milliseconds=1500), 1.5),
        (7, 7),
        (2.5, 2.5),
        ("00:00:05", 5),
        ("1:02:03", 3723),
        ("00:00:05.2500000", 5.25),
        ("2.01:00:00", 2 * 86400 + 3600),
    ],
)
def test_durations_are_read_in_every_documented_form(written: object, seconds: float) -> None:
    options = DurableStackOptions.from_mapping({"RetryDelay": written, "PollInterval": written})
    assert options.retry_delay == timedelta(seconds=seconds)
    assert options.poll_interval_seconds == seconds


@pytest.mark.parametrize("spelling", ["MySql", "mysql", "my_sql", "MYSQL"])
def test_words_are_read_in_the_documents_spelling_and_in_ours(spelling: str) -> None:
    options = DurableStackOptions.load(
        environ={}, StorageProvider=spelling, MySql={"ConnectionString": "Server=localhost;Database=x"}
    )
    assert options.storage_provider is StorageProvider.MY_SQL


def test_an_alias_stands_for_its_option() -> None:
    options = DurableStackOptions.from_mapping(
        {"ClaimBatchSize": 7, "LeaseDuration": "00:01:00", "Eventing": {"IngestionFlushInterval": 9}}
    )
    assert options.batch_size == 7
    assert options.lease_duration_seconds == 60.0
    assert options.eventing.ingestion_flush_interval_seconds == 9.0


def test_an_alias_and_its_option_must_agree() -> None:
    assert DurableStackOptions.from_mapping({"PollInterval": "00:00:07", "PollIntervalSeconds": 7})
    with pytest.raises(OptionsError, match="poll_interval_seconds is given twice"):
        DurableStackOptions.from_mapping({"PollInterval": "00:00:07", "PollIntervalSeconds": 8})


def test_a_database_url_chooses_the_provider_and_is_its_connection_string() -> None:
    options = DurableStackOptions(database_url=Secret(TARGET))

    assert options.storage_provider is options.effective_provider is StorageProvider.POSTGRES
    target = options.connection_target()
    assert target is not None
    assert (target.host, target.database) == ("localhost", "orders")
    assert msgspec.structs.replace(options, batch_size=3).storage_provider is StorageProvider.POSTGRES


@pytest.mark.parametrize(
    "other",
    [
        {"storage_provider": "in_memory"},
        {"storage_provider": "sqlite"},
        {"postgres": {"connection_string": "Host=elsewhere;Database=x"}},
        {"sqlite": {"connection_string": "Data Source=x.db"}},
    ],
)
def test_a_database_url_must_not_be_contradicted(other: dict[str, Any]) -> None:
    with pytest.raises(OptionsError, match="database_url") as refused:
        DurableStackOptions.load(environ={}, database_url=TARGET, **other)
    assert "hunter22" not in str(refused.value)


def test_a_connection_string_without_a_provider_warns_that_nothing_will_be_durable(
    caplog: pytest.LogCaptureFixture,
) -> None:
    DurableStackOptions(postgres=PostgresOptions(connection_string=Secret(TARGET)))
    assert "runs are kept in memory" in caplog.text
    assert "hunter22" not in caplog.text


def test_runs_are_kept_an_hour_in_memory_and_a_day_in_a_database() -> None:
    assert DurableStackOptions().run_retention_seconds == 3600
    assert DurableStackOptions(database_url=Secret(TARGET)).run_retention_seconds == 86400
    assert DurableStackOptions(retention=RetentionOptions(run_retention_seconds=7)).run_retention_seconds == 7


def test_describe_tells_effective_values_and_no_secret() -> None:
    options = DurableStackOptions.load(
        environ={}, database_url=TARGET, eventing={"tenant_id": "t", "client_secret": "shh-shh"}
    )
    described = options.describe()

    assert described["database"] == "postgresql://localhost:5432/orders"
    assert described["storage_provider"] == "postgres"
    assert described["retry_delay"] == 5.0
    assert described["retention"]["run_retention_seconds"] == 86400.0
    everything = f"{msgspec.json.encode(described)!r} {described} {options} {options!r} {options.connection_target()!r}"
    assert "hunter22" not in everything
    assert "shh-shh" not in everything


def test_secrets_are_those_to_redact_the_password_inside_a_url_too() -> None:
    options = DurableStackOptions.load(
        environ={}, database_url=TARGET, eventing={"tenant_id": "t", "client_secret": "shh-shh"}
    )
    assert set(options.secrets()) == {Secret(TARGET), Secret("hunter22"), Secret("shh-shh")}
    assert DurableStackOptions().secrets() == ()


def test_options_are_frozen_and_can_be_copied() -> None:
    options = DurableStackOptions(database_url=Secret(TARGET))
    with pytest.raises(AttributeError):
        options.batch_size = 3  # type: ignore[misc]
    assert copy.deepcopy(options) == options


@pytest.mark.parametrize("option", ["database_url", "postgres", "sqlite", "eventing"])
def test_a_misplaced_secret_is_not_repeated_in_the_error(option: str) -> None:
    values: list[Any] = ["hunter22", ["hunter22"], {"hunter": "hunter22"}, "x://me:hunter22@h/d"]
    for value in values:
        with pytest.raises(OptionsError) as refused:
            DurableStackOptions.load(environ={}, **{option: value})
        assert "hunter22" not in str(refused.value)
        assert refused.value.__cause__ is None
