"""The words of MySQL and MariaDB, by PyMySQL.

Only what both understand: no `returning`, no `with` before `update`. Assignments of an update are made one after
the other, so that a column is copied before it is cleared.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from ..statements import RUNS_ACTIVE_SELECT, RUNS_EXPIRED_SELECT, TEMPLATES
from .dialect import Dialect, from_bytes, naive_utc

# MariaDB and MySQL have a name each for it, and each refuses the other's
ISOLATION = "show session variables where variable_name in ('transaction_isolation', 'tx_isolation')"


def _to_mysql(value: Any) -> Any:
    match value:
        case UUID():
            return value.bytes
        case datetime():
            return naive_utc(value)
        case list() | tuple() | set() | frozenset():
            return [_to_mysql(item) for item in value] or [None]  # `in ()` is no SQL, and `in (null)` is never true
        case _:
            return value


# All writes are by key. Of a small table the optimizer would rather read all rows, and wait for the locks of others.
_KEY = "force index (primary)"
_UPDATES = {
    name: re.sub(r"\Aupdate (\{\w+\})", rf"update \1 {_KEY}", text.strip())
    for name, text in TEMPLATES.items()
    if text.strip().startswith("update ")
}
# A delete takes such hints only where it names its tables apart. That a run has ended is known, and asked for all the
# same: were the key all that is looked at, all of its index would be read, and each entry locked.
_DELETES = {
    "RUNS_DELETE": f"""
delete run
from {{runs}} as run {_KEY}
where run.id {{in_ids}}
  and run.completed_at_utc is not null
""",
    "ATTEMPTS_DELETE": f"""
delete attempt
from {{runs}} as run {_KEY}
straight_join {{attempts}} as attempt {_KEY} on attempt.run_id = run.id
where run.id {{in_ids}}
  and run.completed_at_utc is not null
""",
}

# What is read on the way to a row is locked as well, also where the row itself is skipped: the entries of all leased
# runs, which others are to change who hold rows that this claim comes to. So they are read first, and locked by key.
_EXPIRED_IDS_SELECT = """
select id
from {runs}
where status = 'leased'
  and id > :after
  and lease_until_utc <= {now}
order by id
{limit}
"""
_RUNS_EXPIRED_SELECT = (
    RUNS_EXPIRED_SELECT.replace("{skip_locked_hint}", _KEY)
    .replace("where status", "where id {in_ids}\n  and status")
    .replace("{limit}\n", "")
)

# by each lease that was shown; the ids by themselves are what the rows are looked up by
_SUCCEED_BY_LEASE = _UPDATES["RUNS_SUCCEED"] + "\n  and (id, lease_token) in :leases"

_OLDEST_SNAPSHOT = """
select concat('the transaction of connection ', trx_mysql_thread_id),
       timestampdiff(second, trx_started, now()),
       (select history.count from information_schema.innodb_metrics as history where name = 'trx_rseg_history_len')
from information_schema.innodb_trx
where trx_mysql_thread_id <> connection_id()
order by trx_started
limit 1
"""

MYSQL = Dialect(
    name="mysql",
    migrations="mysql",
    begin="start transaction",
    # the instant at which the statement began: rows are locked by a statement of their own, before those that write
    now="utc_timestamp(6)",
    now_plus_seconds="utc_timestamp(6) + interval :seconds * 1000000 microsecond",
    now_minus_seconds="utc_timestamp(6) - interval :seconds * 1000000 microsecond",
    in_list="in :{name}",
    statement_seconds="timestampdiff(microsecond, now(6), sysdate(6)) / 1e6",
    parameter="%({name})s",
    quote="`{}`",
    reserved=frozenset({"signal"}),
    for_update="for update",
    skip_locked="for update skip locked",
    lock_hint=_KEY,
    or_ignore="on duplicate key update {key} = {key}",
    timestamp="datetime(6)",
    migration_lock="select get_lock('durablestack {key}', 3600)",  # bounded by the time for one operation
    migration_unlock="select release_lock('durablestack {key}')",  # this lock is the connection's
    to_database=_to_mysql,
    to_uuid=from_bytes,
    from_uuid=lambda uuid: uuid.bytes,
    to_datetime=lambda value: value if value is None or value.tzinfo is UTC else value.astimezone(UTC),
    overrides={
        **_UPDATES,
        **_DELETES,
        "RUNS_EXPIRED_SELECT": _RUNS_EXPIRED_SELECT,
        # in the order of the index, which holds ended runs too; in that of the ids, all runs would be read
        "RUNS_ACTIVE_SELECT": RUNS_ACTIVE_SELECT.replace("order by id", "order by status, id"),
    },
    own={
        "RUNS_SUCCEED_BY_LEASE": _SUCCEED_BY_LEASE,
        "EXPIRED_IDS_SELECT": _EXPIRED_IDS_SELECT,
    },
    oldest_snapshot=_OLDEST_SNAPSHOT,
    facts={
        "version": "select version()",
        "version_comment": "select @@version_comment",
        "transaction_isolation": ISOLATION,
        "innodb_flush_log_at_trx_commit": "select @@innodb_flush_log_at_trx_commit",
        "sync_binlog": "select @@sync_binlog",
        "log_bin": "select @@log_bin",
        "binlog_format": "select @@binlog_format",
        "read_only": "select @@global.read_only",
    },
)
