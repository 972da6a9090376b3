"""Connection strings of every documented form become one kind of target, or an error without their secrets."""

from pathlib import Path

import msgspec
import pytest

from durablestack.errors import OptionsError
from durablestack.options import ConnectionTarget, Secret, StorageProvider, parse_connection_string

POSTGRES, SQL_SERVER, SQLITE, MY_SQL = (
    StorageProvider.POSTGRES,
    StorageProvider.SQL_SERVER,
    StorageProvider.SQLITE,
    StorageProvider.MY_SQL,
)


def target(provider: StorageProvider, where: str, user_info: str = "", **parameters: str) -> ConnectionTarget:
    """A target in short: `host:port/database`, `user:password`."""
    address, _, database = where.partition("/")
    host, _, port = address.partition(":")
    user, _, password = user_info.partition(":")
    return ConnectionTarget(
        provider=provider,
        host=host or None,
        port=int(port) if port else None,
        user=user or None,
        password=Secret(password) if password else None,
        database=database or None,
        parameters=parameters,
    )


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://me:pw@db:5432/orders", target(POSTGRES, "db:5432/orders", "me:pw")),
        ("postgres://db/orders", target(POSTGRES, "db/orders")),
        ("postgresql+psycopg://db/orders", target(POSTGRES, "db/orders")),
        ("POSTGRESQL://db/orders?sslmode=require", target(POSTGRES, "db/orders", sslmode="require")),
        ("postgresql://a:5433,b:5433/x", target(POSTGRES, "a,b:5433/x")),
        ("postgresql:///orders?user=me&password=p%20w", target(POSTGRES, "/orders", "me:p w")),
        ("postgresql://me:p%40ss%2F%3A%25w+d@db/my%20orders", target(POSTGRES, "db/my orders", "me:p@ss/:%w+d")),
        ("postgresql://me:p@ss@db/orders", target(POSTGRES, "db/orders", "me:p@ss")),
        ("mysql://me@db:3306/orders", target(MY_SQL, "db:3306/orders", "me")),
        ("mariadb://db/orders?charset=utf8mb4", target(MY_SQL, "db/orders", charset="utf8mb4")),
        ("mssql://sa:pw@db:1433/orders?Encrypt=yes", target(SQL_SERVER, "db:1433/orders", "sa:pw", encrypt="yes")),
        ("sqlserver://db/orders", target(SQL_SERVER, "db/orders")),
        ("sqlite:///orders.db", target(SQLITE, "/orders.db")),
        ("sqlite:////var/lib/o%20rders.db?cache=shared", target(SQLITE, "//var/lib/o rders.db", cache="shared")),
    ],
)
def test_urls(url: str, expected: ConnectionTarget) -> None:
    assert parse_connection_string(Secret(url)) == expected


@pytest.mark.parametrize(
    ("provider", "text", "expected"),
    [
        (
            POSTGRES,
            "Host=localhost;Port=5432;Database=durable_stack;Username=postgres;Password=postgres",
            target(POSTGRES, "localhost:5432/durable_stack", "postgres:postgres"),
        ),
        (
            SQL_SERVER,
            "Server=localhost;Database=durable_stack;Trusted_Connection=True;TrustServerCertificate=True",
            target(SQL_SERVER, "localhost/durable_stack", trusted_connection="True", trustservercertificate="True"),
        ),
        (
            SQL_SERVER,
            "Server=localhost;Database=durable_stack;User Id=sa;Password=Password123!;TrustServerCertificate=true",
            target(SQL_SERVER, "localhost/durable_stack", "sa:Password123!", trustservercertificate="true"),
        ),
        (
            SQL_SERVER,
            "Data Source=tcp:db,1433;Initial Catalog=orders;Encrypt=True",
            target(SQL_SERVER, "db:1433/orders", encrypt="True"),
        ),
        (SQL_SERVER, r"Server=db\EXPRESS;Database=orders", target(SQL_SERVER, r"db\EXPRESS/orders")),
        (
            MY_SQL,
            "Server=localhost;Port=3306;Database=durable_stack;Uid=root;Pwd=password",
            target(MY_SQL, "localhost:3306/durable_stack", "root:password"),
        ),
        (
            MY_SQL,
            "Server=localhost;Port=3306;Database=durable_stack;User ID=root;Password=postgres;SslMode=Preferred",
            target(MY_SQL, "localhost:3306/durable_stack", "root:postgres", sslmode="Preferred"),
        ),
        (SQLITE, "Data Source=durable_stack.db", target(SQLITE, "/durable_stack.db")),
        (SQLITE, 'Data Source="/var/lib/a;b.db";Cache=Shared;', target(SQLITE, "//var/lib/a;b.db", cache="Shared")),
        (
            POSTGRES,
            """ host = db ; Password = "a;b""c=d" ;; User='o''brien'; Database=x ; """,
            target(POSTGRES, "db/x", "o'brien:a;b\"c=d"),
        ),
        (POSTGRES, "Host=db;Password=a=b==;Database=x", target(POSTGRES, "db/x", ":a=b==")),
        (POSTGRES, "Host=db", target(POSTGRES, "db")),
        (
            POSTGRES,
            r"host=db port=5433 dbname=orders user=me password='it\'s ; a \\' connect_timeout=3",
            target(POSTGRES, "db:5433/orders", "me:it's ; a \\", connect_timeout="3"),
        ),
        (POSTGRES, "host = db dbname = orders", target(POSTGRES, "db/orders")),
        (POSTGRES, "postgresql://db/orders", target(POSTGRES, "db/orders")),
    ],
)
def test_the_documents_forms(provider: StorageProvider, text: str, expected: ConnectionTarget) -> None:
    assert parse_connection_string(Secret(text), provider=provider) == expected


def test_an_ipv6_address_and_a_socket_folder_are_hosts_too() -> None:
    ipv6 = parse_connection_string("postgresql://[::1]:5432/orders")
    assert (ipv6.host, ipv6.port, ipv6.describe()) == ("::1", 5432, "postgresql://[::1]:5432/orders")
    socket = parse_connection_string("postgresql://%2Fvar%2Frun%2Fpostgresql/orders")
    assert socket.host == "/var/run/postgresql"
    assert parse_connection_string("postgresql:///orders?host=/var/run/postgresql") == socket
    assert socket.describe() == "postgresql:///orders"


@pytest.mark.parametrize(
    ("provider", "text"),
    [
        (None, "postgresql://me:hunter22#x@db/orders"),
        (None, "postgresql://me:hunter22/x@db/orders"),
        (None, "postgresql://me:12/hunter22@db/orders"),
        (None, "postgresql://me:12?hunter22@db/orders"),
        (None, "postgresql://me:12#hunter22@db/orders"),
        (None, "postgresql://me:[hunter22@db/orders"),
        (None, "postgresql://me:hunter22@db:port/orders"),
        (None, "postgresql://me:hunter22@db:99999/orders"),
        (None, "postgresql://me:hunter22@a:1,b:2/orders"),
        (None, "postgresql://me:hunter22 x@db/orders"),
        (None, "postgresql://me:hunter22%ff@db/orders"),
        (None, "postgresql://me%0A:hunter22@db/orders"),
        (None, "postgresql://me:\u2100hunter22@d\u2100b/orders"),
        (None, "oracle://me:hunter22@db/orders"),
        (None, "Host=db;Password=hunter22"),
        (MY_SQL, "postgresql://me:hunter22@db/orders"),
        (POSTGRES, "Host=db;Password=a;hunter22;Database=x"),
        (POSTGRES, 'Host=db;Password="hunter22;Database=x'),
        (POSTGRES, 'Host=db;Password= "hunter22;Database=x'),
        (POSTGRES, "host=db password=hunter22;x dbname=x"),
        (POSTGRES, "Host=db;Port=hunter22"),
        (POSTGRES, "hunter22"),
        (POSTGRES, "Host=db;Password=hunter22" + "x" * 9000),
        (SQLITE, "hunter22.db"),
    ],
)
def test_what_cannot_be_read_is_an_error_that_shows_no_part_of_it(provider: StorageProvider | None, text: str) -> None:
    with pytest.raises(OptionsError, match=r"^postgres\.connection_string cannot be read: ") as refused:
        parse_connection_string(text, provider=provider, option="postgres.connection_string")
    assert "hunter22" not in str(refused.value)
    assert refused.value.__suppress_context__


@pytest.mark.parametrize(
    "text",
    [
        "sqlite://:memory:",
        "sqlite:///:memory:",
        "Data Source=:memory:",
        "Data Source=file:x?mode=memory",
        "Data Source=x;Mode=Memory",
    ],
)
def test_an_in_memory_sqlite_is_refused(text: str) -> None:
    with pytest.raises(OptionsError, match=r"in_memory|file: URI"):
        parse_connection_string(text, provider=SQLITE)


@pytest.mark.parametrize("text", ["sqlite://orders.db", "sqlite:///", "Cache=Shared"])
def test_a_sqlite_without_a_path_gets_a_hint(text: str) -> None:
    with pytest.raises(OptionsError, match=r"three slashes|sqlite:///file\.db"):
        parse_connection_string(text, provider=SQLITE)


@pytest.mark.parametrize(
    ("url", "described"),
    [
        ("postgres://me:hunter22@localhost:5432/orders?sslpassword=hunter22", "postgresql://localhost:5432/orders"),
        ("mysql://me:hunter22@db/orders", "mysql://db/orders"),
        ("mssql://db", "mssql://db/"),
        ("sqlite:///orders.db", "sqlite:///orders.db"),
        ("sqlite:////var/orders.db", "sqlite:////var/orders.db"),
    ],
)
def test_a_target_describes_itself_without_secrets(url: str, described: str) -> None:
    parsed = parse_connection_string(url)
    assert parsed.describe() == described
    assert "hunter22" not in f"{parsed} {parsed!r}"


def test_a_target_with_a_password_is_not_encoded_by_accident() -> None:
    with pytest.raises(TypeError):
        msgspec.json.encode(parse_connection_string("mysql://me:hunter22@db/orders"))


def test_a_relative_path_stays_relative() -> None:
    assert not Path(parse_connection_string("sqlite:///data/orders.db").database or "").is_absolute()
