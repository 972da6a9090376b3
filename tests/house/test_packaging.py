"""What is shipped: the process under the library's name, nothing at the top level that is not ours.

files that git knows ──> copy ──> wheel ──────────────┐
                          └────> sdist ──> wheel again ┴──> the same; installed, it runs
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from house_files import ROOT, tracked_files

pytest.importorskip("build", reason="`build` is not installed: what is shipped was not examined")


class Built(NamedTuple):
    wheel: Path
    sdist: Path
    wheel_of_sdist: Path


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result


def build(source: Path, into: Path, *what: str) -> None:
    run("-m", "build", "--no-isolation", *what, "--outdir", into, source, cwd=into.parent)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A wheel of the tree, the sdist, and the wheel that comes of the sdist."""
    folder = tmp_path_factory.mktemp("packaging")
    source = folder / "source"
    for file in tracked_files():
        (source / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / file, source / file, follow_symlinks=False)
    build(source, folder / "tree", "--wheel")
    shutil.rmtree(source / "build", ignore_errors=True)
    build(source, folder / "both")  # the sdist, then a wheel from it
    (wheel,) = (folder / "tree").glob("*.whl")
    (sdist,) = (folder / "both").glob("*.tar.gz")
    (wheel_of_sdist,) = (folder / "both").glob("*.whl")
    return Built(wheel, sdist, wheel_of_sdist)


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    target = folder / "site"
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    run(*pip, "--target", target, built.wheel, cwd=folder)
    return target


def contents(wheel: Path) -> dict[str, str]:
    """Each file of a wheel with the digest of what is in it; RECORD says nothing more."""
    with zipfile.ZipFile(wheel) as archive:
        return {
            name: hashlib.sha256(archive.read(name)).hexdigest()
            for name in archive.namelist()
            if not name.endswith(("/", "/RECORD"))
        }


def test_the_wheel_holds_all_that_is_ours_and_nothing_else(built: Built) -> None:
    library = {
        str(file)
        for file in tracked_files()
        if file.parts[0] == "durablestack" and file.suffix in (".py", ".sql", ".typed")
    }
    process = {f"durablestack/{file}" for file in tracked_files() if file.parts[0] == "supervisor"}
    code = {name for name in contents(built.wheel) if ".dist-info/" not in name}
    assert code == library | process
    assert any(name.endswith(".sql") for name in code)
    assert "durablestack/py.typed" in code
    assert "durablestack/supervisor/__main__.py" in code


def test_the_wheel_takes_no_name_at_the_top_level_but_its_own(built: Built) -> None:
    top_level = {name.partition("/")[0] for name in contents(built.wheel)}
    assert {name for name in top_level if not name.endswith(".dist-info")} == {"durablestack"}


def test_the_process_is_shipped_as_real_files(built: Built) -> None:
    for wheel in (built.wheel, built.wheel_of_sdist):
        with zipfile.ZipFile(wheel) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.startswith("durablestack/supervisor/")]
            assert entries
            assert not [entry.filename for entry in entries if entry.external_attr >> 16 & 0o170000 == 0o120000]
            assert all(entry.file_size for entry in entries)


def test_the_sdist_makes_the_same_wheel(built: Built) -> None:
    assert contents(built.wheel_of_sdist) == contents(built.wheel)


def test_the_sdist_holds_what_it_is_built_from(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "supervisor/__init__.py", "durablestack/__init__.py"} <= names


def test_the_console_script_is_declared(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/entry_points.txt"))
        assert "durablestack = durablestack.cli:main" in archive.read(name).decode()


def test_what_is_installed_runs(installed: Path, tmp_path: Path) -> None:
    where = "import durablestack.supervisor.cli as cli; print(cli.__file__)"
    found = Path(run("-c", where, cwd=tmp_path, PYTHONPATH=str(installed)).stdout.strip())
    assert found == installed / "durablestack" / "supervisor" / "cli.py"
    for module in ("durablestack.supervisor", "durablestack"):
        shown = run("-m", module, "--help", cwd=tmp_path, PYTHONPATH=str(installed)).stdout
        assert "Usage" in shown
        assert module in shown


def test_what_is_installed_has_its_migrations(installed: Path, tmp_path: Path) -> None:
    program = (
        "from durablestack import DurableStack; "
        "print(DurableStack(database_url='sqlite:///runs.db').migrate(), __import__('durablestack').__file__)"
    )
    shown = run("-c", program, cwd=tmp_path, PYTHONPATH=str(installed)).stdout
    assert str(installed) in shown
    assert shown.startswith("[1")


def test_the_process_refuses_to_be_imported_under_a_name_that_is_not_its_own() -> None:
    result = subprocess.run(
        [sys.executable, "-c", "import supervisor"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == ("ImportError: this package is durablestack.supervisor, not supervisor")


def test_the_link_to_the_process_is_committed_as_a_link() -> None:
    link = ROOT / "durablestack" / "supervisor"
    assert Path("durablestack/supervisor") in tracked_files()
    assert link.is_symlink()
    assert os.readlink(link) == "../supervisor"


# --- pyproject


@pytest.fixture(scope="module")
def setuptools_table() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    return table


def shipped_name(folder: Path) -> str:
    dotted = ".".join(folder.parts)
    return f"durablestack.{dotted}" if folder.parts[0] == "supervisor" else dotted


def test_every_package_with_python_files_is_listed(setuptools_table: dict[str, Any]) -> None:
    files = (file for file in tracked_files() if file.parts[0] in ("durablestack", "supervisor"))
    folders = {shipped_name(file.parent) for file in files if file.suffix == ".py"}
    assert sorted(folders - set(setuptools_table["packages"])) == []


def test_every_listed_package_exists(setuptools_table: dict[str, Any]) -> None:
    folders = [ROOT / name.replace(".", "/") for name in setuptools_table["packages"]]
    assert [folder for folder in folders if not any(folder.glob("*.py")) and not any(folder.glob("*.sql"))] == []


def test_every_migration_is_listed_as_package_data(setuptools_table: dict[str, Any]) -> None:
    data = setuptools_table["package-data"]
    missing = [
        str(file)
        for file in tracked_files()
        if file.suffix == ".sql"
        and file.parts[0] == "durablestack"
        and not any(file.match(pattern) for pattern in data.get(shipped_name(file.parent), []))
    ]
    assert missing == []
    assert "py.typed" in data["durablestack"]
