"""What can be said about SQL Server without one: parameters, connection strings, and what errors mean."""

import importlib.util
import json
import sys
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest

from durablestack.errors import OptionsError, SchemaError, StoreError, StoreUnavailable
from durablestack.ids import new_run_id
from durablestack.options import DurableStackOptions, StorageProvider, parse_connection_string
from durablestack.stores.connections.sqlserver import translated_by_number, translated_by_words
from durablestack.stores.connections.sqlserver_options import odbc_connection_string, pymssql_keywords
from durablestack.stores.dialects import SQLSERVER
from durablestack.stores.providers import open_store
from servers import free_port

RUN_ID = UUID("01a20226-f8f3-7fbd-ae85-cc23d390b30d")
DRIVERS = {"mssql_python": "", "pymssql": "driver=pymssql"}


class OperationalError(Exception):
    """As DB-API modules call it."""


class ProgrammingError(Exception):
    """As DB-API modules call it."""


class IntegrityError(Exception):
    """As DB-API modules call it."""


class DataError(Exception):
    """As DB-API modules call it."""


# --- parameters


def test_ids_sort_by_their_time() -> None:
    ids = [new_run_id() for _ in range(100)]
    assert sorted(ids, key=lambda id: bytes(SQLSERVER.to_database(id))) == sorted(ids)
    assert SQLSERVER.to_uuid(SQLSERVER.to_database(RUN_ID)) == RUN_ID


def test_bytes_are_never_taken_for_text() -> None:
    assert SQLSERVER.to_database(b"only ascii here!") == bytearray(b"only ascii here!")
    assert isinstance(SQLSERVER.to_database(b"only ascii here!"), bytearray)


def test_lists_are_json_and_their_ids_hexadecimal() -> None:
    for ids in ([RUN_ID], [RUN_ID.bytes], {RUN_ID}):
        assert json.loads(SQLSERVER.to_database(ids)) == [RUN_ID.hex]
    assert json.loads(SQLSERVER.to_database(["it's", 'a "job"', "🦕"])) == ["it's", 'a "job"', "🦕"]
    assert SQLSERVER.to_database([]) == "[]"


def test_instants_keep_their_microseconds_in_utc() -> None:
    instant = datetime(2031, 5, 17, 23, 59, 59, 123_456, tzinfo=timezone(timedelta(hours=2)))
    assert SQLSERVER.to_database(instant) == "2031-05-17T21:59:59.123456"
    assert SQLSERVER.to_database(datetime(999, 1, 2, 3, 4, 5, tzinfo=UTC)) == "0999-01-02T03:04:05.000000"
    assert SQLSERVER.to_datetime(datetime(2031, 5, 17, 21, 59, 59, 123_456)) == instant


# --- connection strings


def target(text: str) -> Any:
    return parse_connection_string(text, provider=StorageProvider.SQL_SERVER)


def test_a_url_becomes_an_odbc_connection_string() -> None:
    assert odbc_connection_string(target("mssql://sa:p%40ss@db:1444/shop?encrypt=no")) == (
        "Server={db,1444};Database={shop};UID={sa};PWD={p@ss};ConnectRetryCount={0};Encrypt={no};"
    )


def test_a_connection_string_for_dotnet_becomes_one_for_odbc() -> None:
    text = (
        "Server=tcp:db.example.net,1433;Initial Catalog=shop;Integrated Security=True;Encrypt=True;"
        "TrustServerCertificate=False;Connection Timeout=30;MultipleActiveResultSets=False;Application Name=shop"
    )
    assert odbc_connection_string(target(text)) == (
        "Server={db.example.net,1433};Database={shop};ConnectRetryCount={0};Trusted_Connection={yes};"
        "Encrypt={yes};TrustServerCertificate={no};"
    )


def test_no_value_can_end_early_and_begin_another() -> None:
    text = odbc_connection_string(target('Server=db;Database=shop;User Id=sa;Password="a};Server={evil"'))
    assert "PWD={a}};Server={evil};" in text


def test_a_connection_string_becomes_what_pymssql_takes() -> None:
    keywords = pymssql_keywords(target("mssql://sa:secret@db:1444/shop?driver=pymssql&encrypt=true"))
    assert keywords == {
        "server": "db",
        "port": "1444",
        "user": "sa",
        "password": "secret",
        "database": "shop",
        "appname": "durablestack",
        "autocommit": True,
        "encryption": "require",
    }
    assert "encryption" not in pymssql_keywords(target("Server=db;Database=shop;Connect Timeout=3"))


@pytest.mark.parametrize("mapped", [odbc_connection_string, pymssql_keywords])
def test_what_the_driver_does_not_know_is_refused_by_name_and_without_its_value(mapped: Any) -> None:
    with pytest.raises(OptionsError, match="'colour' is not known") as caught:
        mapped(target("mssql://sa:secret@db/shop?colour=hunter22"))
    assert "hunter22" not in str(caught.value)


def test_pymssql_is_told_what_it_cannot_do() -> None:
    with pytest.raises(OptionsError, match="authentication"):
        pymssql_keywords(target("mssql://db/shop?authentication=ActiveDirectoryDefault"))
    with pytest.raises(OptionsError, match="ReadOnly"):
        pymssql_keywords(target("mssql://db/shop?applicationintent=ReadOnly"))


def test_another_driver_is_refused() -> None:
    with pytest.raises(OptionsError, match="neither mssql-python nor pymssql"):
        open_store(DurableStackOptions(database_url="mssql://db/shop?driver=pyodbc"))


@pytest.mark.parametrize(("module", "words"), [("mssql_python", r"durablestack\[sqlserver\]"), ("pymssql", "pymssql")])
def test_a_missing_driver_is_told_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, module: str, words: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(OptionsError, match=f"pip install '?{words}"):
        open_store(DurableStackOptions(database_url=f"mssql://db/shop?{DRIVERS[module]}"))


# --- what errors mean


@pytest.mark.parametrize(
    ("kind", "text", "meaning"),
    [
        (OperationalError, "Driver Error: Serialization failure; DDBC Error: Transaction was deadlocked", "again"),
        (ProgrammingError, "Syntax error or access violation: Lock request time out period exceeded.", "again"),
        (OperationalError, "Driver Error: Timeout expired", "again"),
        (OperationalError, "Driver Error: Communication link failure", "again"),
        (ProgrammingError, "Database 'x' on server 'y' is not currently available.", "again"),
        (ProgrammingError, 'Failed to update database "x" because the database is read-only.', "again"),
        (IntegrityError, "Violation of PRIMARY KEY constraint 'PK__x'. Cannot insert duplicate key", "again"),
        (IntegrityError, "The INSERT statement conflicted with the CHECK constraint", "never"),
        (ProgrammingError, "Base table or view not found: Invalid object name 'durable_stack_job_runs'.", "schema"),
        (ProgrammingError, "Column not found: Invalid column name 'signal'.", "schema"),
        (ProgrammingError, "Incorrect syntax near 'x'.", "never"),
        (DataError, "String or binary data would be truncated", "never"),
        (OperationalError, "Failed to load the driver.", "never"),
    ],
)
def test_the_words_of_mssql_python_are_understood(kind: type[Exception], text: str, meaning: str) -> None:
    assert meaning_of(translated_by_words(text, kind(text))) == meaning


@pytest.mark.parametrize(
    ("kind", "number", "meaning"),
    [
        *[(OperationalError, number, "again") for number in (1205, 1222, 3906, 3960, 4060, 40613, 20003, 20047)],
        (IntegrityError, 2627, "again"),
        (IntegrityError, 547, "never"),
        (ProgrammingError, 208, "schema"),
        (ProgrammingError, 207, "schema"),
        (ProgrammingError, 102, "never"),
        *[(OperationalError, number, "never") for number in (229, 245, 1934, 2628, 8152)],
    ],
)
def test_the_numbers_of_pymssql_are_understood(kind: type[Exception], number: int, meaning: str) -> None:
    assert meaning_of(translated_by_number("text", kind(number, b"words"))) == meaning
    assert meaning_of(translated_by_number("text", kind((number, b"words")))) == meaning  # as at connecting


def meaning_of(error: StoreError) -> str:
    return {StoreUnavailable: "again", SchemaError: "schema", StoreError: "never"}[type(error)]


@pytest.mark.parametrize("module", DRIVERS)
def test_a_server_that_is_not_there_is_told_by_the_driver_itself(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"the driver {module} is not installed")
    url = f"mssql://sa:hunter22@127.0.0.1:{free_port()}/shop?{DRIVERS[module]}"
    store = open_store(DurableStackOptions(database_url=url), timeout_seconds=2)
    with pytest.raises(StoreError, match=r"mssql://127\.0\.0\.1") as caught:
        store.count_runs()
    assert "hunter22" not in str(caught.value)
    assert isinstance(caught.value, StoreUnavailable) or "libltdl7" in str(caught.value)
    store.close()
