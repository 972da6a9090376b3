"""A room imports from the floors below it, never from its own floor or from above.

7  supervisor  cli  testing        processes that people start
   durablestack/__init__           the public names: all of the library below, for those above
6  stack                           one application, wired
5  client  queries  admin          what an application calls
4  stores  jobs                    where it is kept; what is executed
3  scheduling  events
2  options
1  errors  runs  schedules  workers  ids  text
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from house_files import ROOT

FLOORS = [
    {"errors", "runs", "schedules", "workers", "ids", "text"},
    {"options"},
    {"scheduling", "events"},
    {"jobs", "stores"},
    {"client", "queries", "admin"},
    {"stack"},
    {"__init__"},
    {"supervisor", "cli", "testing", "__main__"},
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS, start=1) for room in rooms}
MAY_IMPORT_ITS_OWN_FLOOR = {"__main__"}  # it is the door of `cli`
DRIVERS = {"psycopg", "psycopg_pool", "sqlite3", "pymysql", "mssql_python", "pyodbc", "sqlalchemy"}
UNPICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "jsonpickle"}


class Arrow(NamedTuple):
    """An import: which file, its room, the dotted name that is imported, and whether it is by a dot."""

    file: Path
    room: str
    name: str
    by_dot: bool

    @property
    def room_below(self) -> str | None:
        """The room of ours that is imported; None if it is not ours."""
        first, _, rest = self.name.partition(".")
        return (rest.partition(".")[0] or "__init__") if first == "durablestack" else None

    def __str__(self) -> str:
        return f"{self.file} (room {self.room}) imports {self.name}"


def files() -> list[Path]:
    library = [file for file in (ROOT / "durablestack").rglob("*.py") if "supervisor" not in file.parts[-2:-1]]
    found = [*library, *(ROOT / "supervisor").rglob("*.py")]
    return sorted(file.relative_to(ROOT) for file in found)


def dotted(file: Path) -> list[str]:
    """The name by which a file is imported, in parts."""
    parts = [*file.with_suffix("").parts]
    if parts[0] == "supervisor":
        parts.insert(0, "durablestack")
    return parts[:-1] if parts[-1] == "__init__" else parts


def room_of(file: Path) -> str:
    parts = dotted(file)
    return parts[1] if len(parts) > 1 else "__init__"


def arrows() -> Iterator[Arrow]:
    for file in files():
        parts, room = dotted(file), room_of(file)
        package = parts if file.name == "__init__.py" else parts[:-1]
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
            match node:
                case ast.Import(names=names):
                    yield from (Arrow(file, room, alias.name, by_dot=False) for alias in names)
                case ast.ImportFrom(module=module, names=names, level=0):
                    yield from (Arrow(file, room, _target(str(module), alias.name), by_dot=False) for alias in names)
                case ast.ImportFrom(module=module, names=names, level=level):
                    base = [*package[: len(package) - level + 1], *([module] if module else [])]
                    yield from (Arrow(file, room, _target(".".join(base), alias.name), by_dot=True) for alias in names)


def _target(module: str, name: str) -> str:
    """`from durablestack import client` reaches the room, `from durablestack import Run` the public names."""
    full = f"{module}.{name}"
    is_room = module == "durablestack" and name in FLOOR_OF
    return full if is_room or module != "durablestack" else module


ARROWS = list(arrows())


def listed(found: list[Arrow]) -> str:
    return "\n".join(map(str, found))


def test_the_files_of_the_house_were_found() -> None:
    rooms = {room_of(file) for file in files()}
    assert {"errors", "jobs", "stores", "stack", "cli", "supervisor", "__init__"} <= rooms
    assert Path("supervisor/wire.py") in files()
    assert not any(file.parts[:2] == ("durablestack", "supervisor") for file in files())


def test_every_room_has_its_floor() -> None:
    assert sorted({room_of(file) for file in files()} - set(FLOOR_OF)) == []


def test_no_arrow_runs_up_or_sideways() -> None:
    wrong = [
        arrow
        for arrow in ARROWS
        if (below := arrow.room_below) is not None
        and below != arrow.room
        and FLOOR_OF[below] >= FLOOR_OF[arrow.room] + (arrow.room in MAY_IMPORT_ITS_OWN_FLOOR)
    ]
    assert wrong == [], listed(wrong)


def test_a_dot_stays_within_the_room() -> None:
    wrong = [arrow for arrow in ARROWS if arrow.by_dot and arrow.room_below != arrow.room]
    assert wrong == [], listed(wrong)


def test_within_a_room_imports_are_by_a_dot() -> None:
    wrong = [
        arrow
        for arrow in ARROWS
        if not arrow.by_dot and arrow.room_below == arrow.room and arrow.file.name not in ("__main__.py", "__init__.py")
    ]
    assert wrong == [], listed(wrong)


def test_the_wire_imports_nothing_of_ours() -> None:
    wrong = [arrow for arrow in ARROWS if arrow.file == Path("supervisor/wire.py") and arrow.room_below is not None]
    assert wrong == [], listed(wrong)


def test_neither_children_nor_jobs_know_stores() -> None:
    wrong = [
        arrow
        for arrow in ARROWS
        if arrow.room_below == "stores" and (arrow.room == "jobs" or arrow.file == Path("supervisor/child.py"))
    ]
    assert wrong == [], listed(wrong)


def test_a_child_has_no_server_driver_in_its_memory() -> None:
    """It has no connection either; what it preloads is shared by all children."""
    program = "import sys, durablestack.supervisor.child; print(sorted(set(sys.modules) & {'psycopg', 'psycopg_pool'}))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_database_drivers_are_imported_in_one_place() -> None:
    """`stores/connections`, a module or a folder of them."""
    wrong = [
        arrow
        for arrow in ARROWS
        if arrow.name.partition(".")[0] in DRIVERS
        and dotted(arrow.file)[:3] != ["durablestack", "stores", "connections"]
    ]
    assert wrong == [], listed(wrong)


def test_nobody_unpickles() -> None:
    wrong = [arrow for arrow in ARROWS if arrow.name.partition(".")[0] in UNPICKLERS]
    assert wrong == [], listed(wrong)


def test_the_library_never_imports_the_process() -> None:
    wrong = [arrow for arrow in ARROWS if arrow.room != "supervisor" and arrow.room_below == "supervisor"]
    assert wrong == [], listed(wrong)


@pytest.mark.parametrize("module", ["durablestack", "durablestack.cli"])
def test_importing_the_library_loads_neither_the_process_nor_a_server_driver(module: str) -> None:
    program = (
        f"import sys, {module}; "
        "print([name for name in sys.modules if name.startswith(('durablestack.supervisor', 'psycopg', 'supervisor'))])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_room_of_the_process_imports_nothing_when_it_is_entered() -> None:
    assert [arrow for arrow in ARROWS if arrow.file == Path("supervisor/__init__.py")] == []


def test_the_public_names_are_all_there() -> None:
    import durablestack

    assert sorted(durablestack.__all__) == durablestack.__all__
    assert all(hasattr(durablestack, name) for name in durablestack.__all__)
