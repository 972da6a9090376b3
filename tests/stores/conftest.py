"""A store for each provider, empty, with tables of its own; what it holds at the end keeps the invariants."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from exam import Place, broken_invariants

from durablestack.stores.contract import Store


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
