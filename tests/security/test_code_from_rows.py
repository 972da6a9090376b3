"""Whoever can write to the tables can make no code run: names and texts in them stay names and texts."""

import ast
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from durablestack import DurableStack, UnknownJob
from durablestack.cli import main
from durablestack.ids import new_run_id
from durablestack.runs import NewRun, RunStatus
from durablestack.schedules import Schedule
from durablestack.stores.sql import SqlStore
from durablestack.supervisor import wire
from workers import Bench

ROOT = Path(__file__).parents[2]
FILES = [*(ROOT / "durablestack").rglob("*.py"), *(ROOT / "supervisor").glob("*.py")]
RUN_FROM_BYTES = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle", "yaml"}
DECOMPRESS = {"gzip", "bz2", "lzma", "zipfile", "tarfile", "zstandard", "compression"}
TRAP = "trap_module"
NAMES_OF_CODE = ["os:system", "os.system", TRAP, f"{TRAP}:main", f"{TRAP}.main", "builtins:exec", "__import__"]


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def test_nothing_of_ours_makes_objects_of_bytes_or_decompresses() -> None:
    """Multiprocessing pickles what a child is started with: that is ours alone, and travels in pipes of our own."""
    assert len(FILES) > 100
    found = {(file.name, name.partition(".")[0]) for file in FILES for name in imported(ast.parse(file.read_text()))}
    assert {each for each in found if each[1] in RUN_FROM_BYTES | DECOMPRESS} == set()
    users_of_zlib = {name for name, module in found if module == "zlib"}
    called = {
        node.attr
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "zlib"
    }
    assert users_of_zlib == {"wire.py", "migrate.py"}
    assert called == {"crc32"}


def test_connections_of_multiprocessing_carry_bytes_and_no_objects() -> None:
    """Their `send` and `recv` pickle. Children are spoken to through a plain socket."""
    users = [file for file in FILES if "multiprocessing.connection" in imported(ast.parse(file.read_text()))]
    assert users
    for file in users:
        called = [
            ast.unparse(node.func)
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("send", "recv")
        ]
        allowed = {"self._control.send", "self._control.recv", "self._socket.recv", "pipe.send", "child.send"}
        allowed |= {"self._orders.send", "self._windows.recv", "self._pipe.send", "self.control.send"}
        assert set(called) <= allowed, file.name


class Trap:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_on_the_control_pipe_is_no_message(tmp_path: Path, protocol: int) -> None:
    body = pickle.dumps(Trap(tmp_path / "sprung"), protocol)
    with pytest.raises(wire.ProtocolError):
        wire.decode_reply(body)
    with pytest.raises(Exception, match=r".") as caught:
        wire.decode_order(body)
    assert not (tmp_path / "sprung").exists()
    assert caught.type.__module__.startswith("msgspec")


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module that can be imported here, in supervisors and in children, and leaves a file where it was."""
    sprung = tmp_path / "sprung"
    text = f"open({str(sprung)!r}, 'w').close()\nclass Evil(Exception):\n    pass\ndef main(*_): pass\n"
    (tmp_path / f"{TRAP}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield sprung
    assert TRAP not in sys.modules
    assert not sprung.exists()


def test_a_job_that_nobody_registered_is_not_imported_by_client_child_or_command(
    trap: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{trap.parent}/runs.db"
    child = DurableStack.load_application(["chaos_jobs"])
    with DurableStack("chaos_jobs", database_url=url) as stack:
        stack.migrate()
        for name in NAMES_OF_CODE:
            with pytest.raises(UnknownJob):
                stack.client.enqueue(name, "id")
            with pytest.raises(UnknownJob):
                child.jobs.find(name)
            assert main(["--database-url", url, "-a", "chaos_jobs", "enqueue", name, '"id"']) == 2
            assert main(["--database-url", url, "schedules", "run", name]) == 2
            assert main(["--database-url", url, "runs", "list", "--job", name]) == 0
        assert stack.queries.get_recent_runs() == []
    assert "is registered" in capsys.readouterr().err


def test_rows_with_names_of_code_execute_nothing(trap: Path, make_bench: Callable[..., Bench]) -> None:
    """Runs, schedules, errors and arguments that somebody wrote into the tables, with a supervisor at work on them."""
    made = make_bench()
    store = made.stack.store
    assert isinstance(store, SqlStore)
    pickled = pickle.dumps(Trap(trap), 0).decode("latin-1")
    strangers = [NewRun(id=new_run_id(), job_name=name, payload='"id"') for name in NAMES_OF_CODE]
    store.enqueue(strangers)
    for name in NAMES_OF_CODE:
        store.change_schedule(name, lambda _, now, name=name: _due(name, now))
    inert = made.client.enqueue("tells", pickled)
    with store._connections.transaction() as tx:
        tx.run(
            "update durable_stack_job_runs set error_type = :type, error_message = :message, trace_context = :trace",
            {"type": f"{TRAP}.Evil", "message": f"touch {trap}", "trace": pickled},
        )
    made.worker()
    run = made.until(inert, RunStatus.FAILED)
    assert run.error_message == f"it is {pickled}".replace("\0", "\N{SYMBOL FOR NULL}")
    assert made.until(made.client.enqueue("innocent"), RunStatus.SUCCEEDED).attempt == 1
    for stranger in strangers:
        left = made.run(stranger.id)
        assert (left.status, left.attempt, left.error_type) == (RunStatus.PENDING, 0, f"{TRAP}.Evil")
        assert store.list_runs(take=10, job_name=stranger.job_name) == [left], "its schedule made none"
    assert main(["--database-url", made.settings["DURABLESTACK__DATABASE_URL"], "runs", "list"]) == 0


def _due(job_name: str, now: Any) -> Schedule:
    made = Schedule(job_name=job_name, cron_expression="* * * * * *", seen_at=now, created_at=now, updated_at=now)
    return replace(made, next_run_at=now, application=TRAP)
