"""Options from JSON, TOML, the environment and keywords, and which of them wins."""

from datetime import timedelta
from pathlib import Path

import pytest

from durablestack.errors import OptionsError
from durablestack.options import (
    CatchUpPolicy,
    DurableStackOptions,
    EventingOptions,
    JobActivation,
    JobRegistrationOptions,
    PostgresOptions,
    RecurringOptions,
    RetentionOptions,
    Secret,
    SqliteSynchronous,
    StorageProvider,
)

EXAMPLE = Path(__file__).parent / "documents_example.json"


def test_the_documents_example_loads_unchanged() -> None:
    assert DurableStackOptions.from_json(EXAMPLE) == DurableStackOptions(
        storage_provider=StorageProvider.POSTGRES,
        worker_name="orders-api-1",
        database_table_prefix="prod_",
        poll_interval_seconds=5.0,
        batch_size=50,
        lease_duration_seconds=30.0,
        retry_delay=timedelta(seconds=5),
        retry_max_delay=timedelta(hours=1),
        poll_jitter_enabled=True,
        poll_jitter_ratio=0.2,
        retry_jitter_enabled=False,
        retry_jitter_ratio=0.2,
        job_activation=JobActivation.SCOPED_PER_EXECUTION,
        postgres=PostgresOptions(
            connection_string=Secret(
                "Host=localhost;Port=5432;Database=durable_stack;Username=postgres;Password=postgres"
            )
        ),
        recurring=RecurringOptions(),
        retention=RetentionOptions(
            enabled=True, run_retention_seconds=86400.0, sweep_interval_seconds=300.0, delete_batch_size=1000
        ),
        job_registration=JobRegistrationOptions(auto_discover_jobs_from_assembly=True),
        eventing=EventingOptions(
            tenant_id="tenant_...",
            client_secret=Secret("secret_..."),
            ingestion_api_base_url="https://api.durablestack.com",
            ingestion_path="/v1/events/batch",
            ingestion_max_batch_size=100,
            ingestion_max_request_body_bytes=1_000_000,
            ingestion_max_retry_attempts=5,
            ingestion_flush_interval_seconds=5.0,
            include_error_detail=False,
            max_error_detail_length=4096,
        ),
    )


@pytest.mark.parametrize(
    "document",
    [
        b'{"BatchSize": 7}',
        b'{"DurableStack": {"batch_size": 7}}',
        b'{"Logging": {"LogLevel": 1}, "durablestack": {"batchsize": 7}}',
        b'\xef\xbb\xbf{"DurableStack": {"BatchSize": 7}}',
    ],
)
def test_json_may_hold_the_section_among_others_or_be_it(document: bytes) -> None:
    assert DurableStackOptions.from_json(document).batch_size == 7


def test_an_empty_section_means_defaults() -> None:
    assert DurableStackOptions.from_json(b'{"DurableStack": {}, "Logging": {}}').batch_size == 50


@pytest.mark.parametrize("document", [b"{", b"[]", b"5", b"\xff", b'{"DurableStack": 5}', b'{"BatchSize": "7"}'])
def test_json_that_holds_no_options_is_refused(document: bytes) -> None:
    with pytest.raises(OptionsError, match=r"^JSON: "):
        DurableStackOptions.from_json(document)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("durablestack.toml", "batch_size = 7\nretry_delay = 00:00:09\n[sqlite]\nsynchronous = 'normal'\n"),
        (
            "durablestack.toml",
            "[durablestack]\nbatch_size = 7\nretry_delay = '00:00:09'\n[durablestack.sqlite]\nsynchronous = 'NORMAL'\n",
        ),
        (
            "pyproject.toml",
            "[tool.durablestack]\nbatch-size = 7\nretry_delay = 9\nsqlite.synchronous = 'normal'\n",
        ),
    ],
)
def test_toml_is_read_wherever_it_may_stand(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    options = DurableStackOptions.from_toml(tmp_path / name)
    assert options.batch_size == 7
    assert options.retry_delay == timedelta(seconds=9)
    assert options.sqlite.synchronous is SqliteSynchronous.NORMAL


def test_a_broken_file_is_named_and_its_secrets_are_not(tmp_path: Path) -> None:
    file = tmp_path / "durablestack.toml"
    file.write_text("database_url = 'postgresql://me:hunter22@h/d\n")
    with pytest.raises(OptionsError, match=r"durablestack\.toml: not valid TOML") as refused:
        DurableStackOptions.from_toml(file)
    assert "hunter22" not in str(refused.value)
    with pytest.raises(OptionsError, match=r"missing\.toml: cannot be read"):
        DurableStackOptions.load(file=tmp_path / "missing.toml", environ={})


def test_the_environment_is_read_in_any_casing_and_as_text() -> None:
    options = DurableStackOptions.from_environment(
        {
            "DURABLESTACK__STORAGE_PROVIDER": "Postgres",
            "DURABLESTACK__POSTGRES__CONNECTION_STRING": "Host=localhost;Database=orders",
            "DURABLESTACK__BatchSize": " 7 ",
            "durablestack__poll_interval": "00:00:02",
            "DURABLESTACK__RETRYDELAY": "1.5",
            "DURABLESTACK__RETENTION__ENABLED": "false",
            "DurableStack__Retention__DeleteBatchSize": "10",
            "DURABLESTACK__RECURRING__REGISTRATIONSYNC__ORPHANEDJOBBEHAVIOR": "ignore",
            "DURABLESTACK__RECURRING__CATCH_UP_POLICY": "CatchUp",
            "DURABLESTACK__AUTO_MIGRATE": "Off",
            "DURABLESTACK__TIMEOUT_SECONDS": "",
            "DURABLESTACK_HOME": "somebody else's",
            "PATH": "/bin",
        }
    )
    assert options.storage_provider is StorageProvider.POSTGRES
    assert options.postgres.connection_string == Secret("Host=localhost;Database=orders")
    assert options.batch_size == 7
    assert options.poll_interval_seconds == 2.0
    assert options.retry_delay == timedelta(seconds=1.5)
    assert options.retention == RetentionOptions(enabled=False, delete_batch_size=10)
    assert options.recurring.registration_sync.orphaned_job_behavior == "ignore"
    assert options.recurring.catch_up_policy is CatchUpPolicy.CATCH_UP
    assert options.auto_migrate is False
    assert options.timeout_seconds is None


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({"DURABLESTACK__BATCH_SIZ": "7"}, "unknown option 'BATCH_SIZ'; did you mean batch_size?"),
        ({"DURABLESTACK__SQLITE_SYNCHRONOUS": "full"}, "did you mean sqlite.synchronous?"),
        ({"DURABLESTACK__BATCH_SIZE": "seven"}, "batch_size"),
        ({"DURABLESTACK__POLL_INTERVAL_SECONDS": "nan"}, "poll_interval_seconds"),
        ({"DURABLESTACK__AUTO_MIGRATE": "maybe"}, "auto_migrate"),
        ({"DURABLESTACK__": "7"}, "DURABLESTACK__"),
        ({"DURABLESTACK__RETENTION": "7"}, "retention"),
        ({"DURABLESTACK__RETENTION": "7", "DURABLESTACK__RETENTION__ENABLED": "1"}, "DURABLESTACK__RETENTION__ENABLED"),
        ({"DURABLESTACK__BATCH_SIZE": "7", "durablestack__batchsize": "8"}, "batchsize"),
        ({"DURABLESTACK__BATCH_SIZE": "7", "DURABLESTACK__CLAIM_BATCH_SIZE": "8"}, "batch_size"),
    ],
)
def test_an_environment_that_cannot_be_meant_is_refused(environ: dict[str, str], name: str) -> None:
    with pytest.raises(OptionsError, match=r"^environment: ") as refused:
        DurableStackOptions.from_environment(environ)
    assert name in str(refused.value)


def test_keywords_win_over_the_environment_and_the_environment_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "durablestack.toml"
    file.write_text("batch_size = 1\nmax_concurrent_runs = 1\nPollInterval = 1\n[retention]\nenabled = false\n")
    options = DurableStackOptions.load(
        file=file,
        environ={"DURABLESTACK__MAX_CONCURRENT_RUNS": "2", "DURABLESTACK__POLL_INTERVAL_SECONDS": "2"},
        poll_interval_seconds=3,
        retention={"delete_batch_size": 3},
    )
    assert (options.batch_size, options.max_concurrent_runs, options.poll_interval_seconds) == (1, 2, 3.0)
    assert options.retention == RetentionOptions(enabled=False, delete_batch_size=3)


def test_load_finds_the_file_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert DurableStackOptions.load(environ={}).batch_size == 50
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert DurableStackOptions.load(environ={}).batch_size == 50
    (tmp_path / "pyproject.toml").write_text("[tool.durablestack]\nbatch_size = 7\n")
    assert DurableStackOptions.load(environ={}).batch_size == 7
    (tmp_path / "durablestack.toml").write_text("batch_size = 8\n")
    assert DurableStackOptions.load(environ={}).batch_size == 8


def test_a_json_file_can_be_loaded_too() -> None:
    assert DurableStackOptions.load(file=EXAMPLE, environ={}, batch_size=3).database_table_prefix == "prod_"


def test_a_source_that_chooses_a_database_displaces_the_choice_below_it(tmp_path: Path) -> None:
    file = tmp_path / "durablestack.toml"
    file.write_text(
        "storage_provider = 'sqlite'\nsqlite.connection_string = 'Data Source=dev.db'\nsqlite.synchronous = 'normal'\n"
    )
    url = {"DURABLESTACK__DATABASE_URL": "postgresql://localhost/orders"}

    options = DurableStackOptions.load(file=file, environ=url)
    assert options.storage_provider is StorageProvider.POSTGRES
    assert options.sqlite.synchronous is SqliteSynchronous.NORMAL
    in_memory = DurableStackOptions.load(file=file, environ=url, storage_provider="in_memory")
    assert in_memory.connection_target() is None


def test_replace_puts_keywords_over_options_as_load_does_over_a_file() -> None:
    options = DurableStackOptions.load(environ={}, database_url="sqlite:///dev.db", retention={"enabled": False})

    changed = options.replace(BatchSize=7, retention={"delete_batch_size": 3})
    assert (changed.batch_size, changed.database_url) == (7, Secret("sqlite:///dev.db"))
    assert changed.retention == RetentionOptions(enabled=False, delete_batch_size=3)
    assert options.replace(database_url="mysql://db/orders").storage_provider is StorageProvider.MY_SQL
    assert options.replace(storage_provider="sqlite") == options
    assert options.replace(storage_provider="InMemory").connection_target() is None
    with pytest.raises(OptionsError, match="database_url is a URL of sqlite, but storage_provider is postgres"):
        options.replace(storage_provider="postgres")
    with pytest.raises(OptionsError, match="did you mean batch_size"):
        options.replace(batch_siz=7)


def test_a_variable_with_one_underscore_too_few_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    options = DurableStackOptions.from_environment({"DURABLESTACK_BATCH_SIZE": "7", "DURABLESTACK_APP": "shop"})
    assert options.batch_size == 50
    assert [record.getMessage() for record in caplog.records] == [
        "the variable DURABLESTACK_BATCH_SIZE is not read: options have two underscores after DURABLESTACK"
    ]


def test_a_variable_that_code_leaves_without_effect_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    environ = {
        "DURABLESTACK__DATABASE_URL": "postgresql://user:hush@db/shop",
        "DURABLESTACK__BATCH_SIZE": "7",
        "DURABLESTACK__LEASE_DURATION": "40",
        "DURABLESTACK__RETENTION__ENABLED": "no",
    }
    options = DurableStackOptions.load(
        environ=environ, database_url="sqlite:///dev.db", batch_size=7, retention={"enabled": True}
    )
    assert (options.lease_duration_seconds, options.retention.enabled) == (40, True)
    assert sorted(record.getMessage() for record in caplog.records) == [
        "DURABLESTACK__DATABASE_URL has no effect: the application's code goes before it",
        "DURABLESTACK__RETENTION__ENABLED has no effect: the application's code goes before it",
    ]


def test_of_a_command_line_that_goes_before_the_environment_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DURABLESTACK__STORAGE_PROVIDER", "postgres")
    options = DurableStackOptions.from_command_line(database_url="sqlite:///dev.db")
    assert options.storage_provider is StorageProvider.SQLITE
    assert not caplog.records


def test_toml_that_cannot_be_read_is_told_with_its_place_and_without_its_text(tmp_path: Path) -> None:
    file = tmp_path / "durablestack.toml"
    file.write_text('batch_size = 1\npassword = "hush\n')
    with pytest.raises(OptionsError, match=r"durablestack.toml: not valid TOML \(at line 2, column \d+\)$"):
        DurableStackOptions.from_toml(file)
