"""Connections to MySQL and MariaDB, by PyMySQL."""

from __future__ import annotations

import math
import re
import ssl
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from durablestack.errors import OptionsError, SchemaError, StoreError, StoreUnavailable
from durablestack.options import ConnectionTarget

from ..dialects.mysql import ISOLATION
from .pooled import PooledConnections, is_final_kind

_CONNECT_WITHIN_SECONDS = 5.0
_MYSQL_MIN, _MARIADB_MIN = (8, 0, 17), (10, 6, 0)
_SCHEMA = {1054, 1146}  # no such column, no such table
# Bugs, bad data and missing rights that the driver files under OperationalError: they will fail the same way again.
# All else may pass: conflicts (1213, 1205, 1020), a server that became read-only (1290, 1792, 1836), limits, shutdown.
_FINAL = {
    1142,  # denied: this command on this table
    1143,  # denied: this column
    1153,  # larger than max_allowed_packet
    1227,  # denied: a privilege
    1267,  # collations do not mix
    1366,  # text that the character set does not know
    1665,  # binlog_format = statement does not go with read committed
    3819,  # a check constraint, MySQL
    4025,  # a check constraint, MariaDB
}
# a line that is lost, a commit that is interrupted: done or not
_UNDECIDED = {0, 2006, 2013, 1053, 1317, 1927, 1969, 3024}
_INSERT = re.compile(r"(insert into .+?\nvalues )(\(\n.+\n\))(\n.*)", re.DOTALL)
_INSERT_CHARACTERS = 250_000
"""After so many a statement is sent; a server takes 4 MB and more (max_allowed_packet)."""


class PyMySql:
    """The driver, as a pool needs it."""

    module = "pymysql"

    def __init__(self, target: ConnectionTarget) -> None:
        try:
            import pymysql  # type: ignore[import-untyped]
        except ImportError as error:
            raise OptionsError(
                f"MySQL needs the driver PyMySQL ({error}); install it with: pip install 'durablestack[mysql]'"
            ) from None
        self._connect = _with_one_context(pymysql.connections.Connection)
        self.place = target.describe()
        self.error: type[Exception] = pymysql.MySQLError
        self._keywords = _mysql_keywords(target)

    def connect(self, timeout_seconds: float) -> Any:
        within = min(timeout_seconds, _CONNECT_WITHIN_SECONDS)
        try:
            connection = self._connect(
                **self._keywords,
                connect_timeout=within,
                read_timeout=within,
                write_timeout=within,
            )
        except (OSError, ValueError, RuntimeError) as error:  # a certificate file, a login that needs another package
            raise StoreError(f"{self.place}: {type(error).__name__}: {error}") from error
        try:
            self._set_up(connection, timeout_seconds)
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_up(self, connection: Any, timeout_seconds: float) -> None:
        cursor = connection.cursor()
        cursor.execute("set session transaction isolation level read committed")
        cursor.execute("select version()")
        (version,) = cursor.fetchone()
        check_version(self.place, version)
        cursor.execute(ISOLATION)
        isolation = cursor.fetchall()[0][-1]
        if isolation.upper() != "READ-COMMITTED":  # something in between swallowed the statement
            raise StoreError(f"{self.place}: transactions are {isolation}, and cannot be made READ-COMMITTED")
        whole_seconds = max(1, math.ceil(timeout_seconds))
        if "mariadb" in version.lower():
            longest = f"max_statement_time = {timeout_seconds}"
        else:
            longest = f"max_execution_time = {int(timeout_seconds * 1000)}"
        cursor.execute(
            f"set session {longest}, innodb_lock_wait_timeout = {whole_seconds}, lock_wait_timeout = {whole_seconds}"
        )

    def limit(self, connection: Any, seconds: float) -> None:
        # the driver looks at these before each read and write; it has no public way to change them
        connection._read_timeout = connection._write_timeout = seconds

    def execute_many(self, cursor: Any, statement: str, parameters: Sequence[Mapping[str, Any]]) -> None:
        """The rows of an insert go together. The driver does so too, but only where a row is nothing but parameters."""
        insert = _INSERT.fullmatch(statement)
        if insert is None:
            cursor.executemany(statement, parameters)
            return
        head, row, tail = insert.groups()
        for rows in _bounded(cursor.mogrify(row, each) for each in parameters):
            cursor.execute(head + ",\n".join(rows) + tail)

    def may_be_done(self, error: Exception) -> bool:
        return _number(error) in _UNDECIDED

    def translated(self, text: str, error: Exception) -> StoreError:
        number = _number(error)
        if number in _SCHEMA:
            return SchemaError(f"{text}; `durablestack migrate` makes and updates the tables")
        final = number in _FINAL or is_final_kind(error)
        return StoreError(text) if final else StoreUnavailable(text)


def mysql_connections(
    target: ConnectionTarget, begin: str, *, connections_max: int, timeout_seconds: float
) -> PooledConnections:
    return PooledConnections(PyMySql(target), begin, connections_max=connections_max, timeout_seconds=timeout_seconds)


def check_version(place: str, version: str) -> None:
    """Raise StoreError for a server without `skip locked`, check constraints, or text that is compared exactly.

    MariaDB before 11 may call itself 5.5.5-10.6.12-MariaDB.
    """
    is_mariadb = "mariadb" in version.lower()
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version.removeprefix("5.5.5-"))
    numbers = tuple(int(part) for part in found.groups()) if found else (0, 0, 0)
    if numbers < (_MARIADB_MIN if is_mariadb else _MYSQL_MIN):
        raise StoreError(
            f"{place}: the server is of version {version}; it takes MySQL 8.0.17 or MariaDB 10.6, or later"
        )


def _bounded(rows: Iterable[str]) -> Iterator[list[str]]:
    together: list[str] = []
    length = 0
    for row in rows:
        if together and length + len(row) > _INSERT_CHARACTERS:
            yield together
            together, length = [], 0
        together.append(row)
        length += len(row)
    if together:
        yield together


def _number(error: Exception) -> int:
    return error.args[0] if error.args and isinstance(error.args[0], int) else 0


# what can be said in a connection string, with us and for .NET; the rest is an error, or has no meaning here
_TLS = {"sslca": "ssl_ca", "sslcert": "ssl_cert", "sslkey": "ssl_key"}
_IGNORED = {
    "allowpublickeyretrieval",
    "allowuservariables",
    "applicationname",
    "charset",
    "characterset",
    "connectiontimeout",
    "connecttimeout",
    "connectionidletimeout",
    "connectionlifetime",
    "connectionreset",
    "defaultcommandtimeout",
    "guidformat",
    "keepalive",
    "maximumpoolsize",
    "maxpoolsize",
    "minimumpoolsize",
    "minpoolsize",
    "persistsecurityinfo",
    "pooling",
    "treattinyasboolean",
    "useaffectedrows",
}


def _mysql_keywords(target: ConnectionTarget) -> dict[str, Any]:
    from pymysql.constants import CLIENT, FIELD_TYPE  # type: ignore[import-untyped]
    from pymysql.converters import conversions  # type: ignore[import-untyped]

    parameters = {name.replace("_", "").replace("-", ""): value for name, value in target.parameters.items()}
    keywords: dict[str, Any] = {
        "host": target.host,
        "port": target.port or 3306,
        "user": target.user,
        "password": target.password.reveal().encode() if target.password else b"",
        "database": target.database,
        "autocommit": True,
        "client_flag": CLIENT.FOUND_ROWS,  # a row counts that was found, though nothing of it changed
        "charset": "utf8mb4",
        "sql_mode": "TRADITIONAL",  # strict: what does not fit is an error, not a shorter text
        "conv": {**conversions, FIELD_TYPE.DATETIME: _instant},
        "init_command": "set session time_zone = '+00:00'",
        "program_name": "durablestack",
    }
    for name, value in parameters.items():
        if name in _TLS:
            keywords[_TLS[name]] = value
            keywords.setdefault("ssl_verify_cert", True)  # or the driver would not look at it
        elif name == "unixsocket":
            keywords["unix_socket"] = value
        elif name == "sslmode":
            keywords |= _tls_keywords(target, value)
        elif name not in _IGNORED:
            known = "unix_socket, ssl_mode, ssl_ca, ssl_cert, ssl_key"
            raise OptionsError(f"{target.describe()}: {name!r} is not known; known are {known}")
    return keywords


def _instant(text: str) -> datetime | str:
    """A `datetime` of our sessions, which is in UTC, in a fraction of the driver's time; as it stands if it is none."""
    try:
        return datetime.fromisoformat(text + "+00:00")
    except ValueError:  # a month 0, a day 31 of February
        return text


def _with_one_context(connection: Any) -> Any:
    """The driver's class of connections, of which each would read all certificates of the system to trust anyone:
    where TLS is only preferred, they share what the first of them has made. If the driver renames it, they do not."""
    create = getattr(connection, "_create_ssl_ctx", None)
    shared: list[ssl.SSLContext] = []

    def create_once(self: Any, asked: Any) -> Any:
        assert create is not None
        if asked:  # files, which may be others by now
            return create(self, asked)
        if not shared:
            shared.append(create(self, asked))
        return shared[0]

    return type(connection.__name__, (connection,), {"_create_ssl_ctx": create_once})


def _tls_that_trusts_anyone() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _tls_keywords(target: ConnectionTarget, mode: str) -> dict[str, Any]:
    match mode.lower().replace("_", "").replace("-", ""):
        case "none" | "disabled" | "disable":
            return {"ssl_disabled": True}
        case "preferred" | "prefer":
            return {}
        case "required" | "require":
            return {"ssl": _tls_that_trusts_anyone()}
        case "verifyca":
            return {"ssl_verify_cert": True}
        case "verifyfull" | "verifyidentity":
            return {"ssl_verify_cert": True, "ssl_verify_identity": True}
    raise OptionsError(
        f"{target.describe()}: ssl_mode is none of disabled, preferred, required, verify-ca, verify-full"
    )
