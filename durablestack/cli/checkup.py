"""What `durablestack doctor` looks at, and what it has to say about it. Reads only, and a bounded amount.

place ──> connection ──> clock ──> server ──> schema ──> runs ──> due ──> jobs
  └── a problem that leaves nothing to see ends it
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path

from msgspec import Struct

from durablestack.errors import SchemaError, StoreError
from durablestack.options import ConnectionTarget, StorageProvider, redact
from durablestack.queries import TAKE_MAX
from durablestack.runs import Run
from durablestack.stack import DurableStack
from durablestack.stores.contract import OldSnapshot, Store
from durablestack.stores.migrate import SCHEMA_VERSION

from .application import missing_file

_PROBES = 3
_SLOW_SECONDS = 0.1
_CLOCK_DIFFERENCE_MAX = timedelta(seconds=2)
_UNCLAIMED_AFTER = timedelta(minutes=1)
_COUNT_MAX = 10_000
_NAMES_SHOWN_MAX = 20
_POSTGRES_MIN = 120_000
_OLD_AFTER = timedelta(minutes=5)
_OLD_CHANGES = 100_000
_WAL_RESET_BUG_SINCE, _WAL_RESET_BUG_UNTIL = (3, 7, 0), (3, 51, 3)
_NETWORK_FILE_SYSTEMS = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "gpfs", "beegfs", "vboxsf"),
    *("fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse", "ocfs2", "gfs2"),
}


class Level(StrEnum):
    OK = "ok"
    ADVICE = "advice"
    PROBLEM = "problem"


class Finding(Struct, frozen=True):
    level: Level
    subject: str
    text: str


def examine(stack: DurableStack, *, with_jobs: bool) -> Iterator[Finding]:
    """All findings, in the order in which they matter.

    Raises:
        OptionsError, TargetError, JobDefinitionError: there is nothing to examine.
    """
    target = stack.options.connection_target()
    if target is None:
        yield Finding(
            Level.ADVICE,
            "database",
            "runs are kept in the memory of each process and are gone with it: there is nothing to see from here",
        )
    else:
        store = stack.open_store(connections_max=1)
        try:
            yield from _database(stack, store, target, with_jobs=with_jobs)
        except StoreError as error:
            subject = "schema" if isinstance(error, SchemaError) else "database"
            yield Finding(Level.PROBLEM, subject, redact(str(error), stack.options.secrets()))
        finally:
            store.close()
    if with_jobs:
        yield _registered(stack)


def _database(stack: DurableStack, store: Store, target: ConnectionTarget, *, with_jobs: bool) -> Iterator[Finding]:
    if target.provider is StorageProvider.SQLITE:
        yield from _file_system(target, Path("/proc/mounts"))
    if missing := missing_file(target):
        yield Finding(Level.PROBLEM, "database", f"there is no SQLite file {missing}; `durablestack migrate` makes it")
        return
    store.now()  # connects
    yield _connection(store, target)
    yield _clock(store)
    yield from server_findings(target.provider, store.server_facts())
    yield from _snapshots(store)
    store.verify_schema()
    prefix = stack.options.database_table_prefix or ""
    yield Finding(Level.OK, "schema", f"the tables {prefix}durable_stack_* are there, in version {SCHEMA_VERSION}")
    yield _counts(store)
    yield from _due(stack, store, with_jobs=with_jobs)


# --- the database


def _connection(store: Store, target: ConnectionTarget) -> Finding:
    taken = []
    for _ in range(_PROBES):
        begun = time.perf_counter()
        store.now()
        taken.append(time.perf_counter() - begun)
    text = f"{target.describe()} answers a trivial query in {min(taken) * 1000:.1f} ms"
    if min(taken) < _SLOW_SECONDS:
        return Finding(Level.OK, "connection", text)
    return Finding(Level.ADVICE, "connection", f"{text}: each run takes several, so run supervisors nearer to it")


def _clock(store: Store) -> Finding:
    """The database's clock decides; a difference only misleads people, and whoever computes instants here."""
    before, theirs, after = datetime.now(UTC), store.now(), datetime.now(UTC)
    return clock_finding(theirs - (before + (after - before) / 2), after - before)


def clock_finding(difference: timedelta, uncertainty: timedelta) -> Finding:
    seconds = difference.total_seconds()
    if abs(difference) <= _CLOCK_DIFFERENCE_MAX + uncertainty / 2:
        return Finding(Level.OK, "clock", f"the database's and this machine's differ by {abs(seconds):.3f} s")
    direction = "ahead of" if seconds > 0 else "behind"
    return Finding(
        Level.ADVICE,
        "clock",
        f"the database's is {abs(seconds):.1f} s {direction} this machine's; it decides what is due, so that instants "
        "computed here come out wrong by as much: synchronise both (NTP)",
    )


def server_findings(provider: StorageProvider, facts: Mapping[str, str]) -> Iterator[Finding]:
    """What the server's version and settings mean for runs."""
    match provider:
        case StorageProvider.POSTGRES:
            yield from _postgres(facts)
        case StorageProvider.MY_SQL:
            yield from _mysql(facts)
        case StorageProvider.SQL_SERVER:
            yield from _sqlserver(facts)
        case StorageProvider.SQLITE:
            yield from _sqlite(facts)


def _postgres(facts: Mapping[str, str]) -> Iterator[Finding]:
    version = facts["server_version"]
    if int(facts["server_version_num"]) < _POSTGRES_MIN:
        yield Finding(Level.PROBLEM, "server", f"PostgreSQL {version} is too old; it takes 12 or later")
    else:
        yield Finding(Level.OK, "server", f"PostgreSQL {version}")
    unsafe = {
        "fsync": "a crash of its machine may destroy the database",
        "full_page_writes": "a crash of its machine may destroy the database",
        "synchronous_commit": "a crash of the server may lose the last commits: new runs, new outcomes",
    }
    off = [name for name in unsafe if facts[name] == "off"]
    for name in off:
        yield Finding(Level.ADVICE, "durability", f"{name} is off: {unsafe[name]}")
    if not off:
        yield Finding(Level.OK, "durability", "what is committed survives a crash (fsync, synchronous_commit)")


def _mysql(facts: Mapping[str, str]) -> Iterator[Finding]:
    version, isolation = facts["version"], facts["transaction_isolation"]
    kind = "MariaDB" if "mariadb" in version.lower() else "MySQL"
    # which versions are too old, each connection finds out for itself
    yield Finding(Level.OK, "server", f"{kind} {version}, transactions are {isolation}")
    if facts["read_only"].upper() not in ("0", "OFF"):
        yield Finding(Level.PROBLEM, "server", "read_only is on: this is a replica, and runs have to be written")
    if facts["log_bin"] != "0" and facts["binlog_format"] == "STATEMENT":
        text = "binlog_format is STATEMENT, with which nothing can be written at READ-COMMITTED; use ROW or MIXED"
        yield Finding(Level.PROBLEM, "server", text)
    lazy = []
    if facts["innodb_flush_log_at_trx_commit"] != "1":
        whose = "the server" if facts["innodb_flush_log_at_trx_commit"] == "0" else "its machine"
        lazy.append(("innodb_flush_log_at_trx_commit", f"a crash of {whose} may lose the commits of the last second"))
    if facts["log_bin"] != "0" and facts["sync_binlog"] != "1":
        lazy.append(("sync_binlog", "after a crash of its machine, replicas may have other runs than the server"))
    for name, text in lazy:
        yield Finding(Level.ADVICE, "durability", f"{name} is {facts[name]} rather than 1: {text}")
    if not lazy:
        yield Finding(
            Level.OK, "durability", "what is committed survives a crash (innodb_flush_log_at_trx_commit, sync_binlog)"
        )


def _sqlserver(facts: Mapping[str, str]) -> Iterator[Finding]:
    yield Finding(
        Level.OK,
        "server",
        f"SQL Server {facts['version']}, {facts['edition']}, compatibility level {facts['compatibility_level']}",
    )
    if facts["read_committed_snapshot"] == "0":
        yield Finding(
            Level.ADVICE,
            "server",
            "read_committed_snapshot is off: who lists runs waits for who writes them; switch it on for the database",
        )
    if facts["delayed_durability"] == "DISABLED":
        yield Finding(Level.OK, "durability", "what is committed survives a crash (delayed_durability is disabled)")
    else:
        text = f"delayed_durability is {facts['delayed_durability']}: a crash of the server may lose the last commits"
        yield Finding(Level.ADVICE, "durability", text)


def _sqlite(facts: Mapping[str, str]) -> Iterator[Finding]:
    version = facts["version"]
    numbers = tuple(int(part) for part in version.split(".")[:3])
    if _WAL_RESET_BUG_SINCE <= numbers < _WAL_RESET_BUG_UNTIL:
        yield Finding(
            Level.ADVICE,
            "server",
            f"SQLite {version}: 3.7.0 to 3.51.2 may, rarely, corrupt a file with several writers (WAL reset); use "
            "3.51.3 or later, unless your distribution has carried the repair back",
        )
    else:
        yield Finding(Level.OK, "server", f"SQLite {version}")
    if facts["journal_mode"] != "wal":
        text = f"journal_mode is {facts['journal_mode']} rather than wal: who reads and who writes wait for each other"
        yield Finding(Level.ADVICE, "durability", text)
    if facts["synchronous"] == "1":
        text = "synchronous is normal: a power failure may lose the last commits (option sqlite.synchronous)"
        yield Finding(Level.ADVICE, "durability", text)
    elif facts["journal_mode"] == "wal":
        yield Finding(Level.OK, "durability", "what is committed survives a crash (journal_mode wal, synchronous full)")


def _snapshots(store: Store) -> Iterator[Finding]:
    try:
        oldest = store.oldest_snapshot()
    except StoreError as error:  # not everybody may see the transactions of others
        yield Finding(Level.OK, "snapshots", f"who holds an old one cannot be seen: {error}")
        return
    if oldest is not None:
        yield snapshot_finding(oldest)


def snapshot_finding(oldest: OldSnapshot) -> Finding:
    """A snapshot keeps the database from removing what has ended since, in all of its tables."""
    age = f"for {_shown(oldest.held_for)}" if oldest.held_for is not None else "for an unknown time"
    text = f"{oldest.holder} holds the oldest, {age}, {oldest.changes} transactions back"
    is_old = oldest.changes >= _OLD_CHANGES if oldest.held_for is None else oldest.held_for >= _OLD_AFTER
    if not is_old:
        return Finding(Level.OK, "snapshots", text)
    advice = "the database cannot clean up behind what has ended since, and slows down; end it, or make it shorter"
    return Finding(Level.ADVICE, "snapshots", f"{text}: {advice}")


def _file_system(target: ConnectionTarget, mounts: Path) -> Iterator[Finding]:
    kind = file_system_of(Path(target.database or "").resolve(), mounts)
    if kind in _NETWORK_FILE_SYSTEMS:
        yield Finding(
            Level.ADVICE,
            "file system",
            f"the file is on {kind}, a network file system: SQLite's locks and its WAL do not work there, and the file "
            "will be corrupted; keep it on a local disk, or use PostgreSQL",
        )


def file_system_of(path: Path, mounts: Path) -> str | None:
    """The kind of file system that holds `path`, as Linux tells it; None where nobody tells."""
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    best, found = -1, None
    for line in lines:
        _, point, kind, *_ = line.split(" ")
        folder = Path(point.replace("\\040", " "))
        if path.is_relative_to(folder) and len(folder.parts) >= best:  # of two mounts, the later one is on top
            best, found = len(folder.parts), kind
    return found


# --- the runs


def _counts(store: Store) -> Finding:
    try:
        counted = store.count_runs()
    except StoreError as error:  # a table so large that the time for one operation does not do
        return Finding(Level.ADVICE, "runs", f"could not be counted: {error}")
    return Finding(Level.OK, "runs", ", ".join(f"{number} {status}" for status, number in counted.items()))


def _due(stack: DurableStack, store: Store, *, with_jobs: bool) -> Iterator[Finding]:
    now = store.now()
    due = [run for run in store.list_runs(take=TAKE_MAX, due_first=True) if run.scheduled_for <= now]
    yield due_finding(due, now)
    if with_jobs and due:
        counted = {job.name: store.measure_backlog([job.name], _COUNT_MAX).due for job in stack.jobs}
        yield Finding(Level.OK, "claimable", _claimable(counted))
        yield from _unregistered(due, counted)


def due_finding(due: list[Run], now: datetime) -> Finding:
    if not due:
        return Finding(Level.OK, "due", "no run is due")
    number = f"{len(due)} or more" if len(due) == TAKE_MAX else str(len(due))
    waited = now - due[0].scheduled_for
    text = f"{number} due, the first for {_shown(waited)}"
    if waited < _UNCLAIMED_AFTER:
        return Finding(Level.OK, "due", text)
    return Finding(Level.ADVICE, "due", f"{text}: is a supervisor running that has registered its job?")


def _claimable(counted: Mapping[str, int]) -> str:
    found = [f"{number}{' or more' * (number == _COUNT_MAX)} of {name}" for name, number in counted.items() if number]
    return "a worker with these jobs would claim " + (_listed(found) if found else "none of the due runs")


def _unregistered(due: list[Run], registered: Mapping[str, int]) -> Iterator[Finding]:
    strangers = Counter(run.job_name for run in due if run.job_name not in registered)
    if strangers:
        names = _listed([f"{name} ({number})" for name, number in strangers.most_common()])
        yield Finding(
            Level.ADVICE,
            "unregistered",
            f"of the first {len(due)} due runs, {strangers.total()} are of jobs that are not registered here: {names}",
        )


def _registered(stack: DurableStack) -> Finding:
    names = sorted(job.name for job in stack.jobs)
    if not names:
        return Finding(Level.ADVICE, "jobs", f"no job is registered by {', '.join(stack.targets)}")
    return Finding(Level.OK, "jobs", f"{len(names)} registered: {_listed(names)}")


def _listed(items: list[str]) -> str:
    more = len(items) - _NAMES_SHOWN_MAX
    return ", ".join(items[:_NAMES_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")


def _shown(duration: timedelta) -> str:
    """The two largest units."""
    seconds = int(duration.total_seconds())
    amounts = ((seconds // 86_400, "d"), (seconds // 3_600 % 24, "h"), (seconds // 60 % 60, "min"), (seconds % 60, "s"))
    first = next((place for place, (amount, _) in enumerate(amounts) if amount), 3)
    return " ".join(f"{amount} {unit}" for amount, unit in amounts[first : first + 2])
