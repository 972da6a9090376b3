"""A bench for the tests of security, with as few children and as little patience as will do."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from workers import Bench, bench

SETTINGS = {
    "DURABLESTACK__LEASE_DURATION_SECONDS": "5",
    "DURABLESTACK__POLL_INTERVAL_SECONDS": "0.2",
    "DURABLESTACK__MAX_CONCURRENT_RUNS": "1",
    "DURABLESTACK__SHUTDOWN_DRAIN_TIMEOUT_SECONDS": "0.5",
}


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """A bench in a folder of its own, on SQLite unless the settings say otherwise."""
    with ExitStack() as made:

        def make(**settings: str) -> Bench:
            url = f"sqlite:///{tmp_path}/runs.db"
            return made.enter_context(bench(tmp_path, {**SETTINGS, "DURABLESTACK__DATABASE_URL": url, **settings}))

        yield make
