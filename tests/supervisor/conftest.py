"""A bench for each test: a database of its own, on SQLite, PostgreSQL and MySQL."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from workers import Bench, bench

SETTINGS = {
    "DURABLESTACK__LEASE_DURATION_SECONDS": "3",
    "DURABLESTACK__POLL_INTERVAL_SECONDS": "0.5",
    "DURABLESTACK__MAX_CONCURRENT_RUNS": "2",
    "DURABLESTACK__RETRY_DELAY": "0.2",
    "DURABLESTACK__CANCEL_GRACE_SECONDS": "0.5",
    "DURABLESTACK__TERMINATE_GRACE_SECONDS": "0.5",
    "DURABLESTACK__SHUTDOWN_DRAIN_TIMEOUT_SECONDS": "1",
}


@pytest.fixture
def sqlite_settings(tmp_path: Path) -> dict[str, str]:
    return {**SETTINGS, "DURABLESTACK__DATABASE_URL": f"sqlite:///{tmp_path}/runs.db"}


@pytest.fixture
def postgres_settings(postgres_dsn: str, table_prefix: str) -> dict[str, str]:
    return {
        **SETTINGS,
        "DURABLESTACK__DATABASE_URL": postgres_dsn,
        "DURABLESTACK__DATABASE_TABLE_PREFIX": table_prefix,
    }


@pytest.fixture
def mysql_settings(mysql_dsn: str, table_prefix: str) -> dict[str, str]:
    return {**SETTINGS, "DURABLESTACK__DATABASE_URL": mysql_dsn, "DURABLESTACK__DATABASE_TABLE_PREFIX": table_prefix}


@pytest.fixture
def sqlite_bench(tmp_path: Path, sqlite_settings: dict[str, str]) -> Iterator[Bench]:
    with bench(tmp_path, sqlite_settings) as made:
        yield made


@pytest.fixture
def postgres_bench(tmp_path: Path, postgres_settings: dict[str, str]) -> Iterator[Bench]:
    with bench(tmp_path, postgres_settings) as made:
        yield made


@pytest.fixture
def mysql_bench(tmp_path: Path, mysql_settings: dict[str, str]) -> Iterator[Bench]:
    with bench(tmp_path, mysql_settings) as made:
        yield made


@pytest.fixture(params=["sqlite", "postgres", "mysql"])
def any_bench(request: pytest.FixtureRequest) -> Bench:
    made: Bench = request.getfixturevalue(f"{request.param}_bench")
    return made
