"""All options of DurableStack in one frozen value that was checked when it was built."""

import functools
import logging
import os
import platform
import sys
from collections.abc import Mapping
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import msgspec
from msgspec import Struct, field
from msgspec.structs import force_setattr

from durablestack.errors import OptionsError

from .choices import CrashedRunPolicy, EventLoop, GuardKind, JobActivation, StartMethod, StorageProvider, TraceRelation
from .databases import ConnectionTarget, parse_connection_string, password_as_written
from .groups import (
    EventingOptions,
    JobRegistrationOptions,
    MonitoringOptions,
    MySqlOptions,
    PostgresOptions,
    RecurringOptions,
    RetentionOptions,
    SqliteOptions,
    SqlServerOptions,
)
from .kinds import (
    Amount,
    ApplicationName,
    ConcurrentRuns,
    Count,
    Duration,
    LeaseSeconds,
    PositiveSeconds,
    Ratio,
    ResettingSeconds,
    Seconds,
    Size,
    TablePrefix,
    WorkerName,
)
from .reading import canonical, settle
from .secret import MASK, Secret
from .sources import environment_mapping, file_in, file_mapping, json_mapping, merged, naming, nested, tell_overruled

log = logging.getLogger("durablestack.options")

_DEFAULT_START_METHOD = StartMethod.FORKSERVER if sys.platform == "linux" else StartMethod.SPAWN


def default_worker_name() -> str:
    """`{HOSTNAME, or the machine's name}-{process id}`."""
    machine = os.environ.get("HOSTNAME") or platform.node() or "localhost"
    printable = "".join(character for character in machine if character.isprintable())
    return f"{printable[:180]}-{os.getpid()}"


def _not_given() -> StorageProvider:
    """Stands for "not chosen" until `__post_init__`, so that a chosen `in_memory` can contradict a `database_url`."""
    return cast(StorageProvider, msgspec.UNSET)


class DurableStackOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every option, its default, and its unit as the last word of its name.

    However it is built, it is checked: what cannot be meant raises `OptionsError`, which names the option, the value
    (never a secret's) and what is allowed. Where the documents say that `<= 0` resets an option, a warning is logged.

    Keywords take the fields' types; secrets and the words of `choices` may also be text, groups a mapping, durations
    a `timedelta` or a `TimeSpan` text. For type checkers, and for the documents' own spellings, there is `load`.
    """

    aliases: ClassVar[dict[str, str]] = {
        "poll_interval": "poll_interval_seconds",
        "lease_duration": "lease_duration_seconds",
        "claim_batch_size": "batch_size",
    }

    # where runs are kept
    storage_provider: StorageProvider = field(default_factory=_not_given)
    """Default `in_memory`, or what `database_url` chooses."""
    database_url: Secret | None = None
    """Chooses the provider, and is its connection string: `postgresql://`, `mysql://`, `mssql://`, `sqlite:///`."""
    postgres: PostgresOptions = field(default_factory=PostgresOptions)
    sql_server: SqlServerOptions = field(default_factory=SqlServerOptions)
    sqlite: SqliteOptions = field(default_factory=SqliteOptions)
    my_sql: MySqlOptions = field(default_factory=MySqlOptions)
    database_table_prefix: TablePrefix | None = None
    auto_migrate: bool = True
    operation_timeout_seconds: PositiveSeconds = 10.0
    """How long one database operation may take."""

    application_name: ApplicationName | None = None
    """Who declares schedules, so that no other application on the same tables disables them. Default: the names of
    the application's modules."""

    # claiming
    worker_name: WorkerName = field(default_factory=default_worker_name)
    poll_interval_seconds: ResettingSeconds = 5.0
    poll_jitter_enabled: bool = True
    poll_jitter_ratio: Ratio = 0.2
    wake_on_enqueue: bool = True
    """Whether an enqueue by another process is heard of at once, on PostgreSQL and SQLite; if not, at the next poll."""
    batch_size: Count = 50
    max_concurrent_runs: ConcurrentRuns = 5
    window_max: Count = 100
    """While runs are short, a child is given up to so many at once, to be done one after the other. 1: always one."""
    lease_duration_seconds: LeaseSeconds = 30.0

    # runs and retries
    retry_delay: Duration = timedelta(seconds=5)
    retry_max_delay: Duration = timedelta(hours=1)
    retry_jitter_enabled: bool = False
    retry_jitter_ratio: Ratio = 0.2
    timeout_seconds: PositiveSeconds | None = None
    """How long a run may take, unless its job says otherwise. `None`: as long as it wants."""
    cpu_seconds: PositiveSeconds | None = None
    """How much CPU time a run may use, the processes that it starts included. `None`: as much as it wants."""
    memory_limit: Size | None = None
    """How much memory, in bytes, the processes of a run may hold resident together; sampled several times a second."""
    address_space_limit: Size | None = None
    """The address space, in bytes, that a child has during a run: past it, it is refused more (`RLIMIT_AS`)."""
    crash_limit: Count = 5
    """A run that has ended its process so often has failed, even if attempts remain."""
    job_activation: JobActivation = JobActivation.SCOPED_PER_EXECUTION
    trace_relation: TraceRelation = TraceRelation.LINK
    payload_bytes_max: Count = 1_048_576
    captured_output_bytes_max: Amount = 16_384
    """How much is kept of what a run writes to stdout and stderr."""

    # processes
    event_loop: EventLoop = EventLoop.ASYNCIO
    """What drives `python -m durablestack.supervisor`; an embedded supervisor has the loop of its application."""
    start_method: StartMethod = _DEFAULT_START_METHOD
    guard: GuardKind = GuardKind.PROCESS
    """Who ends children whose supervisor is killed, frozen or stuck. Where there are no pidfds it is `child`."""
    fresh_process_per_run: bool = False
    """Whether each run gets a child that no other has been in, unless its job says otherwise."""
    runs_per_child_max: Count | None = None
    """After so many runs a child is replaced. `None`: never for that reason."""
    child_memory_max: Size | None = None
    """A child that holds more memory than this, in bytes, after a run is replaced."""
    crashed_run_policy: CrashedRunPolicy = CrashedRunPolicy.RECORD
    cancel_grace_seconds: Seconds = 2.0
    """From asking a run to stop, to SIGTERM."""
    terminate_grace_seconds: Seconds = 1.0
    """From SIGTERM to SIGKILL."""
    restart_limit: Amount = 10
    """More deaths of children than this within `restart_period_seconds`, and the worker counts as degraded: it says
    so, and goes on with growing delays."""
    restart_period_seconds: PositiveSeconds = 60.0
    startup_timeout_seconds: PositiveSeconds = 60.0
    shutdown_drain_timeout_seconds: Seconds = 10.0

    recurring: RecurringOptions = field(default_factory=RecurringOptions)
    retention: RetentionOptions = field(default_factory=RetentionOptions)
    job_registration: JobRegistrationOptions = field(default_factory=JobRegistrationOptions)
    eventing: EventingOptions = field(default_factory=EventingOptions)
    monitoring: MonitoringOptions = field(default_factory=MonitoringOptions)

    def __post_init__(self) -> None:
        settle(self)
        self._choose_provider()
        self._check_connection()
        if self.start_method is StartMethod.FORKSERVER and sys.platform == "win32":
            raise OptionsError("start_method = 'forkserver' does not exist on Windows; it takes spawn")

    @classmethod
    def load(cls, *, file: str | Path | None = None, environ: Mapping[str, str] | None = None, **keywords: Any) -> Self:
        """From a file, then the environment, then keywords: the later source wins, option by option.

        Without `file`, `durablestack.toml`, else `[tool.durablestack]` of `pyproject.toml`, in the current folder;
        neither needs to be there. `environ` is `os.environ` unless given. Keywords in any of the documents'
        spellings. A source that chooses a database displaces the choice of the sources before it. Keywords are what
        code says: a variable that has no effect beside them is warned of.
        """
        *lower, variables, code = cls._layers(_file_named(file), environ, keywords)
        found = functools.reduce(merged, [*lower, variables, code])
        tell_overruled(variables, found)
        return cls(**found)

    @classmethod
    def from_command_line(cls, *, file: str | Path | None = None, **arguments: Any) -> Self:
        """As `load`, for arguments of a command line, which are meant to go before the environment."""
        return cls(**functools.reduce(merged, cls._layers(_file_named(file), None, arguments)))

    @classmethod
    def _layers(
        cls, path: Path | None, environ: Mapping[str, str] | None, keywords: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """The sources, the weakest first; without a file there is no first."""
        layers: list[dict[str, Any]] = []
        if path is not None:
            with naming(str(path)):
                layers.append(canonical(cls, file_mapping(path)))
        with naming("environment"):
            variables = environment_mapping(os.environ if environ is None else environ, cls.__struct_fields__)
            layers.append(canonical(cls, variables, lenient=True))
        return [*layers, canonical(cls, keywords)]

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """From names in any of the documents' spellings; groups are mappings."""
        return cls(**canonical(cls, mapping))

    @classmethod
    def from_json(cls, document: str | Path | bytes) -> Self:
        """From a path or from the bytes of JSON: `{"DurableStack": {…}}` among other things, or the object itself."""
        source = "JSON" if isinstance(document, bytes) else str(document)
        with naming(source):
            return cls.from_mapping(json_mapping(document) if isinstance(document, bytes) else _read(document))

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
        """From `durablestack.toml` (its top level, or `[durablestack]`) or from `pyproject.toml`'s table."""
        with naming(str(path)):
            return cls.from_mapping(file_mapping(Path(path)))

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Self:
        """From `DURABLESTACK__BATCH_SIZE`, `DURABLESTACK__RETENTION__ENABLED` and their like."""
        with naming("environment"):
            variables = environment_mapping(os.environ if environ is None else environ, cls.__struct_fields__)
            return cls(**canonical(cls, variables, lenient=True))

    def replace(self, *, file: str | Path | None = None, **keywords: Any) -> Self:
        """These options with others over them, as `load` puts keywords over a file.

        With a `file`, what it says goes over these options, then the environment, then `keywords`.
        """
        layers = [canonical(type(self), keywords)]
        if file is not None:
            layers = self._layers(Path(file), None, keywords)
        return type(self)(**functools.reduce(merged, [nested(self), *layers]))

    @property
    def effective_provider(self) -> StorageProvider:
        """The provider in use; the same as `storage_provider`, which `database_url` has decided by now."""
        return self.storage_provider

    @property
    def run_retention_seconds(self) -> float:
        """How long ended runs are kept: as set, else an hour in memory and a day in a database."""
        if self.retention.run_retention_seconds is not None:
            return self.retention.run_retention_seconds
        return 3600.0 if self.storage_provider is StorageProvider.IN_MEMORY else 86400.0

    def connection_target(self) -> ConnectionTarget | None:
        """The database to connect to; `None` in memory."""
        if self.storage_provider is StorageProvider.IN_MEMORY:
            return None
        if self.database_url:
            return parse_connection_string(self.database_url, option="database_url")
        option = f"{self.storage_provider}.connection_string"
        return parse_connection_string(
            self._connection_strings()[self.storage_provider], provider=self.storage_provider, option=option
        )

    def secrets(self) -> tuple[Secret, ...]:
        """Every secret among the options, the password inside a connection string too; for `redact`."""
        target = self.connection_target()
        shown = Secret(target.describe() if target is not None else "")  # which holds none, and may be all there is
        strings = [text for text in (self.database_url, *self._connection_strings().values()) if text and text != shown]
        in_target = () if target is None else (target.password, *target.secret_parameters())
        candidates = (*strings, *map(password_as_written, strings), *in_target, self.eventing.client_secret)
        return tuple(secret for secret in candidates if secret)

    def describe(self) -> dict[str, Any]:
        """The effective values as plain data, durations in seconds, secrets masked, and `database` for people."""
        target = self.connection_target()
        described = cast(dict[str, Any], _plain(nested(self)))
        described["retention"]["run_retention_seconds"] = self.run_retention_seconds
        return {"database": target.describe() if target else "in memory", **described}

    def _connection_strings(self) -> dict[StorageProvider, Secret]:
        return {
            StorageProvider.POSTGRES: self.postgres.connection_string,
            StorageProvider.SQL_SERVER: self.sql_server.connection_string,
            StorageProvider.SQLITE: self.sqlite.connection_string,
            StorageProvider.MY_SQL: self.my_sql.connection_string,
        }

    def _choose_provider(self) -> None:
        chosen = cast(StorageProvider | msgspec.UnsetType, self.storage_provider)
        if self.database_url is not None:
            by_url = parse_connection_string(self.database_url, option="database_url").provider
            if chosen not in (msgspec.UNSET, by_url):
                raise OptionsError(
                    f"database_url is a URL of {by_url}, but storage_provider is {chosen}; give only one"
                )
            force_setattr(self, "storage_provider", by_url)
        elif chosen is msgspec.UNSET:
            force_setattr(self, "storage_provider", StorageProvider.IN_MEMORY)
            for provider in (provider for provider, text in self._connection_strings().items() if text):
                log.warning("%s.connection_string is given, but no storage_provider: runs are kept in memory", provider)

    def _check_connection(self) -> None:
        for provider, text in self._connection_strings().items():
            if self.database_url and text not in (self.database_url, Secret("")):
                raise OptionsError(f"database_url and {provider}.connection_string are both given; give one of them")
            if provider is self.storage_provider and not text and not self.database_url:
                raise OptionsError(
                    f"storage_provider is {provider}, but {provider}.connection_string is empty;"
                    " set it, or set database_url"
                )
        self.connection_target()  # raises where it cannot be read, now and not at the first query


def _read(path: str | Path) -> Mapping[str, Any]:
    try:
        return json_mapping(Path(path).read_bytes())
    except OSError as error:
        raise OptionsError(f"cannot be read: {error.strerror}") from None


def _plain(value: object) -> object:
    match value:
        case dict():
            return {name: _plain(inner) for name, inner in value.items()}
        case Secret():
            return MASK if value else ""
        case timedelta():
            return value.total_seconds()
        case Enum():
            return value.value
        case _:
            return value


def _file_named(file: str | Path | None) -> Path | None:
    return Path(file) if file is not None else file_in(Path.cwd())
