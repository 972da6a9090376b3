"""A store for each provider, empty, with tables of its own; what it holds at the end keeps the invariants."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from exam import DEFAULT_PORTS, PROXIED_TIMEOUT_SECONDS, Place, broken_invariants

from durablestack.stores.contract import Store
from proxy import TcpProxy


@pytest.fixture(params=["memory", "sqlite", "postgres", "mysql", "sqlserver"])
def place(request: pytest.FixtureRequest, tmp_path: Path, table_prefix: str) -> Iterator[Place]:
    provider: str = request.param
    match provider:
        case "sqlite":
            url: str | None = f"sqlite:///{tmp_path / 'runs.db'}"
        case "postgres" | "mysql" | "sqlserver":
            url = request.getfixturevalue(f"{provider}_dsn")
        case _:
            url = None
    place = Place(provider, url, table_prefix)
    yield place
    place.drop_tables()


@pytest.fixture
def store(place: Place) -> Iterator[Store]:
    store = place.open()
    store.migrate()
    yield store
    broken = broken_invariants(store)
    store.close()
    assert broken == []


@pytest.fixture
def proxy(place: Place) -> Iterator[TcpProxy]:
    target = urlsplit(place.database_url or "")
    with TcpProxy(target.hostname or "127.0.0.1", target.port or DEFAULT_PORTS[place.provider]) as proxy:
        yield proxy


@pytest.fixture
def proxied(place: Place, store: Store, proxy: TcpProxy) -> Iterator[Store]:
    """The same tables as `store`, by way of the proxy, connected already."""
    proxied = place.through(proxy.port).open(timeout_seconds=PROXIED_TIMEOUT_SECONDS, connections_max=2)
    proxied.verify_schema()
    yield proxied
    proxied.close()
