"""Options that are one of a few words. Values are snake_case; any casing, with or without underscores, is read."""

from enum import StrEnum


class StorageProvider(StrEnum):
    """Where runs are kept. The documents' `InMemory`, `Postgres`, `SqlServer`, `Sqlite`, `MySql`."""

    IN_MEMORY = "in_memory"
    POSTGRES = "postgres"
    SQL_SERVER = "sql_server"
    SQLITE = "sqlite"
    MY_SQL = "my_sql"


class JobActivation(StrEnum):
    """Whether a run gets a fresh scope of services, or the root provider."""

    SCOPED_PER_EXECUTION = "scoped_per_execution"
    ROOT_PROVIDER = "root_provider"


class CatchUpPolicy(StrEnum):
    """What becomes of recurring slots that were missed while nothing ran."""

    SKIP_MISSED = "skip_missed"
    CATCH_UP = "catch_up"


class ExistingJobBehavior(StrEnum):
    """Which wins at startup when code and database differ about a recurring job."""

    KEEP_DATABASE = "keep_database"
    UPDATE_FROM_CODE = "update_from_code"


class OrphanedJobBehavior(StrEnum):
    """What becomes of a recurring job that the database knows and the code does not."""

    DISABLE = "disable"
    IGNORE = "ignore"


class SqliteSynchronous(StrEnum):
    """SQLite's `pragma synchronous`: `normal` is faster, and may lose the last commits with the power."""

    FULL = "full"
    NORMAL = "normal"


class StartMethod(StrEnum):
    """How a child process comes to be. Never `fork`: the supervisor has threads."""

    FORKSERVER = "forkserver"
    SPAWN = "spawn"


class EventLoop(StrEnum):
    """What drives the supervisor's own process."""

    ASYNCIO = "asyncio"
    UVLOOP = "uvloop"


class TraceRelation(StrEnum):
    """How the span of an execution refers to the one that enqueued the run, maybe days before: by a link, or as its
    child."""

    LINK = "link"
    PARENT = "parent"


class CrashedRunPolicy(StrEnum):
    """Whether a run whose child died is recorded as failed at once, or left to the expiry of its lease."""

    RECORD = "record"
    EXPIRE = "expire"


class GuardKind(StrEnum):
    """Who ends children whose supervisor cannot: a process of its own, or a thread in each child."""

    PROCESS = "process"
    CHILD = "child"
