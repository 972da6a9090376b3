"""The words of SQL Server, by mssql-python or pymssql.

Only what Babelfish takes too: no merge, no waitfor, no update through a `with`. Ids are binary(16), which sorts as the
bytes do and so, for UUIDs of version 7, as time does; uniqueidentifier sorts by its last bytes first. All text is
nvarchar, as the parameters are: beside a varchar column, each parameter would turn a seek into a scan.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from ..statements import JOB_INSERT, RUN_INSERT, RUNS_LEASE, TEMPLATES, WORKER_INSERT
from .dialect import Dialect, from_bytes, from_naive_utc, naive_utc

_NOW = "cast(sysutcdatetime() as datetime2(6))"
# dateadd takes whole numbers only, and counts at most 35 minutes in microseconds
_SECONDS = "cast(floor(:seconds) as int)"
_MICROSECONDS = "cast(round((:seconds - floor(:seconds)) * 1000000, 0) as int)"
_DATABASE = "from sys.databases where name = db_name()"


def _to_sqlserver(value: Any) -> Any:
    match value:
        case UUID():
            return bytearray(value.bytes)
        case bytes():
            return bytearray(value)  # pymssql would take some bytes for text
        case datetime():
            return naive_utc(value).isoformat("T", "microseconds")  # pymssql knows milliseconds
        case list() | tuple() | set() | frozenset():
            return msgspec.json.encode([_in_json(item) for item in value]).decode()
        case _:
            return value


def _in_json(value: Any) -> str:
    match value:
        case UUID():
            return value.hex
        case bytes():
            return value.hex()
        case _:
            return str(value)


def _insert_if_absent(template: str, table: str, key: str, hint: str) -> str:
    """`insert … select … where not exists`, since there is nothing to add to an insert of values."""
    columns, _, rest = template.partition("values (")
    values = rest.rpartition(")")[0].strip()
    return (
        f"{columns}select\n  {values}\n"
        f"where not exists (\n  select 1\n  from {table} with ({hint})\n  where {key} = :{key}\n)"
    )


def _with_exact_job_names(template: str) -> str:
    """Text that differs in blanks at its end is the same for SQL Server, unless something follows them."""
    name = "value + N'.' collate Latin1_General_100_BIN2"
    return template.replace("job_name {in_job_names}", f"job_name + N'.' in (select {name} from openjson(:job_names))")


SQLSERVER = Dialect(
    name="sqlserver",
    migrations="sqlserver",
    begin="begin transaction",
    now=_NOW,
    now_plus_seconds=f"dateadd(microsecond, {_MICROSECONDS}, dateadd(second, {_SECONDS}, {_NOW}))",
    now_minus_seconds=f"dateadd(microsecond, -{_MICROSECONDS}, dateadd(second, -{_SECONDS}, {_NOW}))",
    in_list="in (select value collate Latin1_General_100_BIN2 from openjson(:{name}))",
    in_uuid_list="in (select convert(binary(16), value, 2) from openjson(:{name}))",
    parameter="%({name})s",
    quote="[{}]",
    lock_hint="with (updlock, rowlock)",
    # readcommittedlock: with row versions (read committed snapshot, as on Azure) readpast would read old ones
    skip_locked_hint="with (updlock, readpast, rowlock, readcommittedlock)",
    limit="offset 0 rows fetch next :limit rows only",
    timestamp="datetime2(6)",
    create_table="if object_id(N'{0}') is null create table {0}",
    migration_lock=(
        "declare @taken int; "
        "exec @taken = sp_getapplock @Resource = 'durablestack {key}', @LockMode = 'Exclusive', "
        "@LockOwner = 'Transaction', @LockTimeout = 3600000; "  # bounded by the time for one operation
        "select case when @taken >= 0 then 1 else 0 end"
    ),
    to_database=_to_sqlserver,
    to_uuid=from_bytes,
    from_uuid=lambda uuid: uuid.bytes,
    to_datetime=from_naive_utc,
    overrides={
        **{name: _with_exact_job_names(text) for name, text in TEMPLATES.items() if "from {runs}" in text},
        # What is to be leased is asked once more, and told: Babelfish takes the hints of the select, and ignores them.
        "RUNS_LEASE": RUNS_LEASE.replace("attempt = attempt + 1", "attempt = {runs}.attempt + 1")
        .replace("where id {in_ids}", "output inserted.id\nwhere id {in_ids}\n  and status = 'pending'")
        .replace(":worker_id", "convert(binary(16), :worker_id)"),
        # No holdlock on the runs: it would lock the end of the table, where all producers insert, until the caller's
        # own transaction ends. Who loses the race for one id is told to come again, and finds it then.
        "RUN_INSERT": _insert_if_absent(RUN_INSERT, "{runs}", "id", "updlock")
        .replace(":scheduled_for", "cast(:scheduled_for as datetime2(6))")
        .replace(":requeued_from", "convert(binary(16), :requeued_from)"),
        "WORKER_INSERT": _insert_if_absent(WORKER_INSERT, "{workers}", "id", "updlock"),
        "JOB_INSERT": _insert_if_absent(JOB_INSERT, "{jobs}", "job_name", "updlock, holdlock"),
    },
    tells_leased=True,
    facts={
        "version": "select cast(serverproperty('ProductVersion') as nvarchar(128))",
        "edition": "select cast(serverproperty('Edition') as nvarchar(128))",
        "compatibility_level": f"select compatibility_level {_DATABASE}",
        "read_committed_snapshot": f"select cast(is_read_committed_snapshot_on as int) {_DATABASE}",
        "delayed_durability": f"select delayed_durability_desc {_DATABASE}",
    },
)
