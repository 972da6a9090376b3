"""Which database, and where: connection strings in all their forms, as driver-neutral parts.

    postgresql://user:password@host:5432/orders     ┐
    Host=host;Port=5432;Database=orders;Username=…  ├──> pairs ──> ConnectionTarget
    host=host port=5432 dbname=orders               ┘

No error shows a part of what was read: where it cannot be read, any part of it may be the password.
"""

from collections.abc import Iterable

from msgspec import Struct, field

from durablestack.errors import OptionsError

from .choices import StorageProvider
from .connection_strings import Pairs, Unreadable, conninfo_pairs, is_url, key_value_pairs, split_url
from .secret import Secret

_PROVIDERS = {
    "postgresql": StorageProvider.POSTGRES,
    "postgres": StorageProvider.POSTGRES,
    "mysql": StorageProvider.MY_SQL,
    "mariadb": StorageProvider.MY_SQL,
    "mssql": StorageProvider.SQL_SERVER,
    "sqlserver": StorageProvider.SQL_SERVER,
    "sqlite": StorageProvider.SQLITE,
}
_SCHEMES = {
    StorageProvider.POSTGRES: "postgresql",
    StorageProvider.MY_SQL: "mysql",
    StorageProvider.SQL_SERVER: "mssql",
    StorageProvider.SQLITE: "sqlite",
}
_PARTS = {
    "host": {"host", "server", "datasource", "address", "addr"},
    "port": {"port"},
    "user": {"user", "userid", "uid", "username"},
    "password": {"password", "pwd"},
    "database": {"database", "initialcatalog", "dbname"},
}
_SQLITE_PARTS = {"database": {"datasource", "filename", "database"}, "password": {"password", "pwd"}}
_IN_MEMORY = "an in-memory SQLite database cannot be shared by processes; use storage_provider = in_memory instead"


class ConnectionTarget(Struct, frozen=True, kw_only=True):
    """A database and the way to it. `None` leaves a part to the driver's default."""

    provider: StorageProvider
    host: str | None = None
    """For PostgreSQL, also the folder of a socket, or several hosts with commas between them."""
    port: int | None = None
    user: str | None = None
    password: Secret | None = None
    database: str | None = None
    """For SQLite, the path of the file."""
    parameters: dict[str, str] = field(default_factory=dict)
    """Everything else that was said, for the driver; keys are lower-case and without spaces."""

    def describe(self) -> str:
        """A URL for people: without user, password and parameters."""
        if self.host is None or self.host.startswith("/"):
            address = ""
        else:
            address = f"[{self.host}]" if ":" in self.host else self.host
        if self.port is not None and address:
            address += f":{self.port}"
        return f"{_SCHEMES[self.provider]}://{address}/{self.database or ''}"

    def secret_parameters(self) -> list[Secret]:
        """Parameters that are passwords too, such as sslpassword."""
        return [Secret(value) for key, value in self.parameters.items() if "password" in key or "pwd" in key]

    def __repr__(self) -> str:  # parameters may hold secrets, such as sslpassword
        return f"<ConnectionTarget {self.describe()}>"


def parse_connection_string(
    connection_string: Secret | str, *, provider: StorageProvider | None = None, option: str = "connection_string"
) -> ConnectionTarget:
    """The target of a URL, or, where `provider` is given, of one of that provider's other forms.

    Raises `OptionsError`, which names `option` and shows no part of the text.
    """
    text = connection_string.reveal() if isinstance(connection_string, Secret) else connection_string
    try:
        if is_url(text):
            return _target_of_url(text.strip(), provider)
        if provider is None or provider not in _SCHEMES:
            raise Unreadable(
                "it is not a URL such as postgresql://host/database or, for a file, sqlite:///path/to/file.db"
            )
        pairs = conninfo_pairs(text) if provider is StorageProvider.POSTGRES else None
        return _target(provider, key_value_pairs(text) if pairs is None else pairs)
    except Unreadable as unreadable:
        raise OptionsError(f"{option} cannot be read: {unreadable}") from None


def password_as_written(connection_string: Secret) -> Secret:
    """The password in a URL before it is decoded, for whoever takes URLs apart by hand; empty if there is none."""
    _, _, address = connection_string.reveal().partition("://")
    return Secret(address.rpartition("@")[0].partition(":")[2])


def _target_of_url(url: str, provider: StorageProvider | None) -> ConnectionTarget:
    scheme = url.partition("://")[0].lower().partition("+")[0]  # as in SQLAlchemy's postgresql+psycopg
    chosen = _PROVIDERS.get(scheme)
    if chosen is None:
        shown = repr(scheme) if scheme.isidentifier() and len(scheme) <= 20 else "what it begins with"
        raise Unreadable(f"{shown} is not one of the schemes {', '.join(_PROVIDERS)}")
    if provider not in (None, chosen):
        raise Unreadable(f"it is a URL of {chosen}, not of {provider}")
    return _target(chosen, split_url(url, is_file=chosen is StorageProvider.SQLITE))


def _target(provider: StorageProvider, pairs: Pairs) -> ConnectionTarget:
    names = _SQLITE_PARTS if provider is StorageProvider.SQLITE else _PARTS
    parts, parameters = _sorted_out(pairs, names)
    if provider is StorageProvider.SQL_SERVER:
        parts |= _sql_server_address(parts.get("host", ""), parts.get("port"))
    if provider is StorageProvider.SQLITE:
        _check_sqlite(parts.get("database", ""), parameters)
    _check_shown(provider, parts)
    return ConnectionTarget(
        provider=provider,
        host=parts.get("host") or None,
        port=_port(parts.get("port")),
        user=parts.get("user") or None,
        password=Secret(parts["password"]) if parts.get("password") else None,
        database=parts.get("database") or None,
        parameters=parameters,
    )


def _sorted_out(pairs: Pairs, names: dict[str, set[str]]) -> tuple[dict[str, str], dict[str, str]]:
    """The parts that have a name with us, and the rest. Of two spellings of one part, the last counts."""
    part_of = {spelling: part for part, spellings in names.items() for spelling in spellings}
    parts: dict[str, str] = {}
    parameters: dict[str, str] = {}
    for key, value in pairs:
        simple = "".join(key.split()).lower()
        if simple in part_of:
            parts[part_of[simple]] = value
        else:
            parameters[simple] = value
    return parts, parameters


def _sql_server_address(host: str, port: str | None) -> dict[str, str]:
    """`tcp:host,1433` is how SQL Server writes an address."""
    host, _, written_port = host.removeprefix("tcp:").partition(",")
    port = written_port.strip() or port
    return {"host": host.strip()} | ({"port": port} if port else {})


def _port(text: str | None) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536):
        raise Unreadable("its port is not a number from 1 to 65535")
    return int(text)


def _check_sqlite(path: str, parameters: dict[str, str]) -> None:
    if ":memory:" in path or parameters.get("mode", "").lower() == "memory":
        raise Unreadable(_IN_MEMORY)
    if not path:
        raise Unreadable("it names no file; write Data Source=file.db, sqlite:///file.db or sqlite:////folder/file.db")
    if path.startswith("file:"):
        raise Unreadable("its file is a path, not a file: URI")


def _check_shown(provider: StorageProvider, parts: dict[str, str]) -> None:
    """What `describe` prints must not be the rest of a password that was cut in the wrong place."""
    if any(_has_control_characters(value) for value in parts.values()):
        raise Unreadable("it contains control characters")
    host = parts.get("host", "")
    socket_folder = provider is StorageProvider.POSTGRES and host.startswith("/")
    refused: Iterable[str] = "@=;" if socket_folder else "@=;/?# "
    if any(character in host for character in refused):
        raise Unreadable("its host is not one; special characters in a value must be quoted, in a URL percent-encoded")


def _has_control_characters(text: str) -> bool:
    return any(character < " " or character == "\x7f" for character in text)
