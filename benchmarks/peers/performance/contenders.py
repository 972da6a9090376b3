"""Who is compared: packages in pinned versions, each with its settings, and where its jobs are kept.

What the settings are, and from which page of the package's documentation, stands in its adapter.
"""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from benchmarks.peers.environments import interpreter_for

ADAPTERS = Path(__file__).parent / "adapters"


class Package(Struct, frozen=True):
    """What is installed, and which adapter drives it; without pins it is this interpreter."""

    name: str
    title: str
    pins: tuple[str, ...]

    @property
    def adapter(self) -> Path:
        return ADAPTERS / f"{self.name}_adapter.py"

    def interpreter(self) -> str:
        return interpreter_for(self.name, self.pins)


class Contender(Struct, frozen=True):
    """A row: a package on a kind of store, with settings that its adapter knows by name."""

    package: Package
    store: str
    settings: str
    not_done: str
    """A query, or the commands to Redis, for the number of jobs that are not done, as the store has it for good."""


DURABLESTACK = Package("ours", "this project", ())
PGQUEUER = Package("pgqueuer", "pgqueuer 1.6.0", ("pgqueuer[asyncpg]==1.6.0", "asyncpg==0.32.0"))
PROCRASTINATE = Package(
    "procrastinate", "procrastinate 3.10.0", ("procrastinate==3.10.0", "psycopg[binary]==3.3.9", "psycopg-pool==3.3.3")
)
HUEY = Package("huey", "huey 3.5.4", ("huey[redis,postgres]==3.5.4", "psycopg[binary]==3.3.9", "redis==8.1.0"))
VENDOR = Package("vendor", "vendor's 0.1.0b7", ("durablestack==0.1.0b7", "asyncpg==0.32.0"))
CELERY = Package("celery", "celery 5.7.0", ("celery[redis]==5.7.0", "redis==8.1.0"))
DRAMATIQ = Package("dramatiq", "dramatiq 2.2.1", ("dramatiq[redis]==2.2.1", "redis==8.1.0"))
RQ = Package("rq", "rq 3.0.0", ("rq==3.0.0", "redis==8.1.0"))

# what each package's store has of jobs that are not done, for good
OURS = "select count(*) from durable_stack_job_runs where status <> 'succeeded'"
IN_PGQUEUER = "select count(*) from pgqueuer"  # what has ended is deleted, and only in the log
IN_PROCRASTINATE = "select count(*) from procrastinate_jobs where status <> 'succeeded'"
IN_VENDORS = "select count(*) from app_durable_stack_job_runs where status <> 'succeeded'"
IN_HUEY = {"PostgreSQL": "select count(*) from huey_task", "SQLite": "select count(*) from task"}
IN_HUEY_ON_REDIS = "llen huey.redis.peers"
IN_CELERY = "llen celery; hlen unacked"
IN_DRAMATIQ = "hlen dramatiq:default.msgs"
IN_RQ = "llen rq:queue:peers; llen rq:queue:peers:intermediate; zcard rq:wip:peers"

CONTENDERS = (
    Contender(DURABLESTACK, "PostgreSQL", "best", OURS),
    Contender(DURABLESTACK, "PostgreSQL", "one at a time", OURS),
    Contender(DURABLESTACK, "PostgreSQL", "defaults", OURS),
    Contender(PGQUEUER, "PostgreSQL", "batch 1,000", IN_PGQUEUER),
    Contender(PGQUEUER, "PostgreSQL", "2 x batch 1,000", IN_PGQUEUER),
    Contender(PGQUEUER, "PostgreSQL", "batch 100", IN_PGQUEUER),
    Contender(PGQUEUER, "PostgreSQL", "defaults", IN_PGQUEUER),
    Contender(HUEY, "PostgreSQL", "best", IN_HUEY["PostgreSQL"]),
    Contender(PROCRASTINATE, "PostgreSQL", "best", IN_PROCRASTINATE),
    Contender(PROCRASTINATE, "PostgreSQL", "defaults", IN_PROCRASTINATE),
    Contender(VENDOR, "PostgreSQL", "best", IN_VENDORS),
    Contender(VENDOR, "PostgreSQL", "defaults", IN_VENDORS),
    Contender(DURABLESTACK, "MySQL", "best", OURS),
    Contender(DURABLESTACK, "SQLite", "best", OURS),
    Contender(HUEY, "SQLite", "best", IN_HUEY["SQLite"]),
    Contender(HUEY, "SQLite", "defaults", IN_HUEY["SQLite"]),
    Contender(HUEY, "Redis", "best", IN_HUEY_ON_REDIS),
    Contender(DRAMATIQ, "Redis", "threads", IN_DRAMATIQ),
    Contender(DRAMATIQ, "Redis", "processes", IN_DRAMATIQ),
    Contender(CELERY, "Redis", "best", IN_CELERY),
    Contender(CELERY, "Redis", "acks late", IN_CELERY),
    Contender(RQ, "Redis", "fork", IN_RQ),
    Contender(RQ, "Redis", "simple", IN_RQ),
)
"""The best of this project on each store is what the others on it are compared with."""

PACKAGES = {each.package.name: each.package for each in CONTENDERS if each.package is not DURABLESTACK}
"""By the names that they are asked for with."""
