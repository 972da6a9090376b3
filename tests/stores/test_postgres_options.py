"""What a connection string may say to PostgreSQL beyond the address."""

import pytest

from durablestack.errors import OptionsError
from durablestack.options import DurableStackOptions
from durablestack.stores.connections.postgres import PostgresConnections
from durablestack.stores.providers import open_store
from durablestack.stores.sql import SqlStore


def conninfo(parameters: str) -> str:
    store = open_store(
        DurableStackOptions.from_mapping(
            {"storage_provider": "postgres", "postgres": {"connection_string": f"Host=localhost;{parameters}"}}
        )
    )
    assert isinstance(store, SqlStore)
    connections = store._connections._ours()  # type: ignore[attr-defined]
    assert isinstance(connections, PostgresConnections)
    return connections._conninfo


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("SslMode=Disable", "sslmode=disable"),
        ("SSL Mode=Require", "sslmode=require"),
        ("SslMode=VerifyCA", "sslmode=verify-ca"),
        ("SslMode=VerifyFull", "sslmode=verify-full"),
        ("sslmode=verify-full", "sslmode=verify-full"),
    ],
)
def test_the_way_to_encrypt_may_be_written_as_for_dotnet(written: str, expected: str) -> None:
    assert expected in conninfo(written)


def test_a_way_to_encrypt_that_there_is_not_is_told_at_once() -> None:
    with pytest.raises(OptionsError, match="sslmode = 'Perhaps' is none of disable, allow, prefer"):
        conninfo("SslMode=Perhaps")
