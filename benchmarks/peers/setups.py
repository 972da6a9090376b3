"""Who is compared, in which versions and with which settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.environments import interpreter_for

ADAPTERS = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Peer:
    """A package: what is installed, and how its database tells what became of a job."""

    name: str
    pins: tuple[str, ...]
    outcomes: str
    """A query for (id as text, status, attempts that count) of all jobs."""
    succeeded: str
    ended: frozenset[str]
    attempts_without_a_fault: int
    """What `attempts` says of a job that was executed once, and has ended."""

    @property
    def adapter(self) -> Path:
        return ADAPTERS / f"{self.name}_adapter.py"


@dataclass(frozen=True, slots=True)
class Setup:
    """A peer as it is configured: one row of the tables."""

    peer: Peer
    name: str
    recovery: bool = False


PEERS = {
    "durablestack": Peer(
        "ours",
        (),
        "select id::text, status, attempt from durable_stack_job_runs",
        "succeeded",
        frozenset({"succeeded", "failed", "cancelled"}),
        attempts_without_a_fault=1,
    ),
    "vendor": Peer(
        "vendor",
        ("durablestack==0.1.0b7", "asyncpg==0.32.0"),
        "select id::text, status, attempt from app_durable_stack_job_runs",
        "succeeded",
        frozenset({"succeeded", "failed"}),
        attempts_without_a_fault=1,
    ),
    "procrastinate": Peer(
        "procrastinate",
        ("procrastinate==3.10.0", "psycopg[binary]==3.3.9", "psycopg-pool==3.3.3"),
        "select id::text, status::text, attempts from procrastinate_jobs",
        "succeeded",
        frozenset({"succeeded", "failed", "cancelled", "aborted"}),
        attempts_without_a_fault=1,
    ),
    "pgqueuer": Peer(
        "pgqueuer",
        ("pgqueuer[asyncpg]==1.6.0", "asyncpg==0.32.0"),
        # what has ended is deleted, and only the log remembers it, without a number of attempts
        "select id::text, status::text, attempts from pgqueuer union all "
        "select job_id::text, status::text, 0 from pgqueuer_log "
        "where status in ('successful', 'exception', 'canceled', 'deleted')",
        "successful",
        frozenset({"successful", "exception", "failed", "canceled", "deleted"}),
        attempts_without_a_fault=0,
    ),
}
SETUPS = (
    Setup(PEERS["durablestack"], "this project"),
    Setup(PEERS["vendor"], "vendor's package"),
    Setup(PEERS["procrastinate"], "procrastinate"),
    Setup(PEERS["procrastinate"], "procrastinate, with recovery", recovery=True),
    Setup(PEERS["pgqueuer"], "pgqueuer"),
    Setup(PEERS["pgqueuer"], "pgqueuer, with recovery", recovery=True),
)


def interpreter(peer: Peer) -> str:
    """The Python that has the peer installed: ours, or one in a cache, which is made if need be."""
    return interpreter_for(peer.name, peer.pins)
