"""The options of a worker and of a client: their names, defaults and rules, and where they are read from.

    file < environment < keywords ──> canonical names ──> DurableStackOptions ──> ConnectionTarget
           (sources)                     (reading)        (options, groups)         (databases)

The later source wins; whatever the source, the value checks itself when it is built.
"""

from .choices import (
    CatchUpPolicy,
    CrashedRunPolicy,
    EventLoop,
    ExistingJobBehavior,
    GuardKind,
    JobActivation,
    OrphanedJobBehavior,
    SqliteSynchronous,
    StartMethod,
    StorageProvider,
    TraceRelation,
)
from .databases import ConnectionTarget, parse_connection_string
from .groups import (
    EventingOptions,
    JobRegistrationOptions,
    MonitoringOptions,
    MySqlOptions,
    PostgresOptions,
    RecurringOptions,
    RegistrationSyncOptions,
    RetentionOptions,
    SqliteOptions,
    SqlServerOptions,
)
from .options import DurableStackOptions, default_worker_name
from .secret import MASK, Secret, mask_secrets, redact, without_known
from .sizes import SIZE_ALLOWED, size_in_bytes

__all__ = [
    "MASK",
    "SIZE_ALLOWED",
    "CatchUpPolicy",
    "ConnectionTarget",
    "CrashedRunPolicy",
    "DurableStackOptions",
    "EventLoop",
    "EventingOptions",
    "ExistingJobBehavior",
    "GuardKind",
    "JobActivation",
    "JobRegistrationOptions",
    "MonitoringOptions",
    "MySqlOptions",
    "OrphanedJobBehavior",
    "PostgresOptions",
    "RecurringOptions",
    "RegistrationSyncOptions",
    "RetentionOptions",
    "Secret",
    "SqlServerOptions",
    "SqliteOptions",
    "SqliteSynchronous",
    "StartMethod",
    "StorageProvider",
    "TraceRelation",
    "default_worker_name",
    "mask_secrets",
    "parse_connection_string",
    "redact",
    "size_in_bytes",
    "without_known",
]
