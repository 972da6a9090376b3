"""The groups of options, with the documents' names and defaults.

A group checks itself whenever it is built, and raises `OptionsError` for what cannot be meant. Text is accepted for
secrets and for the words of `choices`.
"""

import ipaddress
from typing import ClassVar
from urllib.parse import urlsplit

from msgspec import Struct, field
from msgspec.structs import force_setattr

from durablestack.errors import OptionsError

from .choices import CatchUpPolicy, ExistingJobBehavior, OrphanedJobBehavior, SqliteSynchronous
from .kinds import Amount, Count, Host, Port, ResettingCount, ResettingSeconds, Seconds
from .reading import settle
from .secret import Secret

NO_SECRET = Secret("")


class PostgresOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PostgreSQL, used when `storage_provider` is `postgres`."""

    section: ClassVar[str] = "postgres"

    connection_string: Secret = NO_SECRET
    """A URL, `Host=…;Database=…;Username=…;Password=…`, or libpq's `host=… dbname=…`."""

    def __post_init__(self) -> None:
        settle(self)


class SqlServerOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """SQL Server, used when `storage_provider` is `sql_server`."""

    section: ClassVar[str] = "sql_server"

    connection_string: Secret = NO_SECRET
    """A URL, or `Server=…;Database=…;User Id=…;Password=…`."""

    def __post_init__(self) -> None:
        settle(self)


class SqliteOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """SQLite, used when `storage_provider` is `sqlite`."""

    section: ClassVar[str] = "sqlite"

    connection_string: Secret = NO_SECRET
    """`Data Source=file.db`, or `sqlite:///file.db`. A relative path starts in the current folder of the process."""
    synchronous: SqliteSynchronous = SqliteSynchronous.FULL

    def __post_init__(self) -> None:
        settle(self)


class MySqlOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """MySQL and MariaDB, used when `storage_provider` is `my_sql`."""

    section: ClassVar[str] = "my_sql"

    connection_string: Secret = NO_SECRET
    """A URL, or `Server=…;Database=…;Uid=…;Pwd=…`."""

    def __post_init__(self) -> None:
        settle(self)


class RegistrationSyncOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How recurring jobs in code and in the database are reconciled at startup."""

    section: ClassVar[str] = "recurring.registration_sync"

    existing_job_behavior: ExistingJobBehavior = ExistingJobBehavior.KEEP_DATABASE
    orphaned_job_behavior: OrphanedJobBehavior = OrphanedJobBehavior.DISABLE

    def __post_init__(self) -> None:
        settle(self)


class RecurringOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Recurring jobs: missed slots, and registration."""

    section: ClassVar[str] = "recurring"

    catch_up_policy: CatchUpPolicy = CatchUpPolicy.SKIP_MISSED
    registration_sync: RegistrationSyncOptions = field(default_factory=RegistrationSyncOptions)

    def __post_init__(self) -> None:
        settle(self)


class RetentionOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long ended runs are kept."""

    section: ClassVar[str] = "retention"

    enabled: bool = True
    run_retention_seconds: Seconds | None = None
    """`None`: 3600 in memory, 86400 in a database; see `DurableStackOptions.run_retention_seconds`."""
    sweep_interval_seconds: ResettingSeconds = 300.0
    delete_batch_size: ResettingCount = 1000

    def __post_init__(self) -> None:
        settle(self)


class JobRegistrationOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which jobs are found by themselves."""

    section: ClassVar[str] = "job_registration"

    auto_discover_jobs_from_assembly: bool = True
    """The documents' name; in Python, the jobs of the application's package."""

    def __post_init__(self) -> None:
        settle(self)


class MonitoringOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a supervisor tells of itself over HTTP: whether it lives, whether it is ready, and what it counts."""

    section: ClassVar[str] = "monitoring"

    port: Port | None = None
    """`None`: no endpoint. 0: any free port, which is logged."""
    host: Host = "127.0.0.1"
    backlog_interval_seconds: ResettingSeconds = 15.0
    """How often due runs are counted while somebody measures."""

    def __post_init__(self) -> None:
        settle(self)


class EventingOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Events to the hosted observability. On when `tenant_id` and `client_secret` are both set."""

    section: ClassVar[str] = "eventing"
    aliases: ClassVar[dict[str, str]] = {"ingestion_flush_interval": "ingestion_flush_interval_seconds"}

    tenant_id: str | None = None
    client_secret: Secret | None = None
    ingestion_api_base_url: str = "https://api.durablestack.com"
    ingestion_path: str = "/v1/events/batch"
    ingestion_max_batch_size: Count = 100
    ingestion_max_request_body_bytes: Count = 1_000_000
    ingestion_max_retry_attempts: Amount = 5
    ingestion_flush_interval_seconds: ResettingSeconds = 5.0
    include_error_detail: bool = False
    max_error_detail_length: ResettingCount = 4096

    @property
    def ingestion_enabled(self) -> bool:
        return self.tenant_id is not None and self.client_secret is not None

    def __post_init__(self) -> None:
        settle(self)
        for credential in ("tenant_id", "client_secret"):  # an empty one is how templates say "not set"
            force_setattr(self, credential, getattr(self, credential) or None)
        self._check_credentials()
        self._check_address()

    def _check_credentials(self) -> None:
        if (self.tenant_id is None) != (self.client_secret is None):
            missing = "client_secret" if self.client_secret is None else "tenant_id"
            raise OptionsError(f"eventing.{missing} is missing: set both tenant_id and client_secret, or neither")

    def _check_address(self) -> None:
        if not _is_trustworthy(self.ingestion_api_base_url):
            raise OptionsError(
                "eventing.ingestion_api_base_url must be https://host, without user or password"
                " (http:// is accepted for a loopback address only)"
            )
        if not self.ingestion_path.startswith("/") or not self.ingestion_path.isprintable():
            raise OptionsError(f"eventing.ingestion_path = {self.ingestion_path!r} must begin with '/'")


def _is_trustworthy(url: str) -> bool:
    """Whether credentials may be sent there: encrypted, or not leaving this machine."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    if not host or "@" in parts.netloc or not url.isprintable() or parts.query or parts.fragment:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(host))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
