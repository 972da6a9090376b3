"""Each process of the tree imports what it has a use for: what a child holds there is once for each child."""

import ast
import textwrap
from typing import Any

import pytest

from durablestack import RunStatus
from workers import Bench

TELLING_JOBS = """
    import gc, multiprocessing, os, sys
    from pathlib import Path
    from durablestack import DurableStack, durable_job

    {trouble}
    LOADED_IN = os.getpid()


    class Teller:
        def emit(self, events):
            if any(event.event_type == "job_succeeded" for event in events):
                Path("supervisor-modules").write_text(repr(sorted(sys.modules)))


    stack = DurableStack(__name__, event_sinks=[Teller()])


    @durable_job(name="innocent")
    def tell() -> None:
        Path("child-modules").write_text(repr(sorted(sys.modules)))
        Path("child-frozen").write_text(repr(gc.get_freeze_count()))
        Path("child-loaded-by-fork-server").write_text(repr(LOADED_IN == os.getppid()))
        Path("child-environment").write_text(repr([name for name in os.environ if "TARGETS" in name]))
"""

RAISES_IN_THE_FORK_SERVER = """
    if "durablestack.supervisor.preload" in sys.modules and multiprocessing.parent_process() is None:
        raise RuntimeError("not in a fork server")
"""

NO_USE_IN_A_CHILD = {
    "durablestack.admin", "durablestack.cli", "durablestack.client", "durablestack.queries", "durablestack.stores",
    "durablestack.supervisor.cli", "durablestack.supervisor.tree",
    "anyio", "click", "croniter", "dishka", "email", "http.client", "opentelemetry", "prometheus_client", "psycopg",
    "psycopg_pool", "pymysql", "rich", "rich_click", "sqlite3",
}  # fmt: skip
NO_USE_IN_A_SUPERVISOR_WITHOUT_A_TERMINAL = {
    "durablestack.cli", "durablestack.events.ingestion", "durablestack.supervisor.demo",
    "durablestack.supervisor.metrics", "durablestack.supervisor.preload", "durablestack.supervisor.status",
    "croniter", "dishka", "email", "http.client", "opentelemetry", "prometheus_client", "psycopg", "pymysql", "rich",
}  # fmt: skip


def told(bench: Bench, what: str) -> Any:
    return ast.literal_eval((bench.folder / what).read_text())


def write_package(bench: Bench, trouble: str = "") -> str:
    package = bench.folder / "telling"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "jobs.py").write_text(textwrap.dedent(TELLING_JOBS).format(trouble=textwrap.dedent(trouble)))
    return package.name


def until_told(bench: Bench, package: str, start_method: str = "forkserver") -> None:
    worker = bench.worker("--start-method", start_method, target=package)
    bench.until(bench.client.enqueue("innocent"), RunStatus.SUCCEEDED)
    worker.terminate()
    assert worker.exit_code() == 0  # all events are told


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_neither_a_child_nor_its_supervisor_imports_what_it_has_no_use_for(
    sqlite_bench: Bench, start_method: str
) -> None:
    until_told(sqlite_bench, write_package(sqlite_bench), start_method)
    child, supervisor = told(sqlite_bench, "child-modules"), told(sqlite_bench, "supervisor-modules")
    assert {"durablestack.jobs.execution", "durablestack.supervisor.child"} <= set(child)
    assert NO_USE_IN_A_CHILD & set(child) == set()
    assert {"durablestack.stores.sql", "durablestack.supervisor.tree"} <= set(supervisor)
    assert NO_USE_IN_A_SUPERVISOR_WITHOUT_A_TERMINAL & set(supervisor) == set()


def test_a_package_is_loaded_once_for_all_children_and_frozen(sqlite_bench: Bench) -> None:
    until_told(sqlite_bench, write_package(sqlite_bench))
    assert told(sqlite_bench, "child-loaded-by-fork-server") is True
    assert told(sqlite_bench, "child-frozen") > 10_000
    assert told(sqlite_bench, "child-environment") == []


def test_what_cannot_be_loaded_in_the_fork_server_is_loaded_by_each_child(sqlite_bench: Bench) -> None:
    until_told(sqlite_bench, write_package(sqlite_bench, RAISES_IN_THE_FORK_SERVER))
    assert told(sqlite_bench, "child-loaded-by-fork-server") is False
    assert told(sqlite_bench, "child-frozen") > 10_000
