"""The tree is checked, formatted and typed, and tells nothing about the machine it was written on."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from house_files import ROOT, tracked_files

FOLDERS = [name for name in ("durablestack", "supervisor", "tests", "examples", "benchmarks") if (ROOT / name).is_dir()]

# put together here, so that this file does not hold what it looks for
MACHINE_PATHS = [re.compile(rf"(?<![\w.])/{name}/") for name in ("work", "root")]
INDEX_WORDS = ["index" + "-url", "://" + "pypi", "/simp" + "le/"]
MARKERS = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3)) + r")\b")
INDEX_VARIABLES = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX")


def checked(tool: str, *arguments: str) -> None:
    if find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed (pip install -e '.[test]'): the tree was not checked by it")
    result = subprocess.run([sys.executable, "-m", tool, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, f"{tool} {' '.join(arguments)}\n{result.stdout}{result.stderr}"


def test_ruff_finds_nothing() -> None:
    checked("ruff", "check", "--quiet", *FOLDERS)


def test_ruff_would_format_nothing_otherwise() -> None:
    checked("ruff", "format", "--quiet", "--check", *FOLDERS)


@pytest.mark.timeout(300)
def test_mypy_finds_nothing() -> None:
    checked("mypy")


def lines() -> Iterator[tuple[str, str]]:
    """Every line of every text file, with its place."""
    for file in tracked_files():
        if (ROOT / file).is_symlink():
            continue
        try:
            text = (ROOT / file).read_text(encoding="utf-8")
        except UnicodeDecodeError:  # not text
            continue
        yield from (
            (f"{file}:{number}: {line.strip()[:120]}", line) for number, line in enumerate(text.splitlines(), 1)
        )


def test_no_file_names_a_folder_of_the_machine_it_was_written_on() -> None:
    assert [place for place, line in lines() if any(path.search(line) for path in MACHINE_PATHS)] == []


def test_no_file_names_a_package_index() -> None:
    """Neither one of everybody's nor the one that this machine happens to use."""
    urls = " ".join(os.environ.get(variable, "") for variable in INDEX_VARIABLES).split()
    hosts = {host for url in urls if (host := urlsplit(url).hostname) and host != "localhost"}
    names = [*INDEX_WORDS, *hosts]
    assert [place.partition(": ")[0] for place, line in lines() if any(name in line for name in names)] == []


def test_no_work_is_left_marked_as_open() -> None:
    assert [place for place, line in lines() if MARKERS.search(line)] == []


def test_no_file_has_conflict_markers_or_ends_without_a_newline() -> None:
    wrong = [place for place, line in lines() if line.startswith(("<" * 7 + " ", ">" * 7 + " "))]
    unended = [
        str(file)
        for file in tracked_files()
        if file.suffix in (".py", ".sql", ".md", ".toml") and not (ROOT / file).is_symlink()
        if (content := (ROOT / file).read_bytes()) and not content.endswith(b"\n")
    ]
    assert wrong + unended == []


def test_nothing_is_tracked_that_a_build_or_a_test_leaves_behind() -> None:
    left = {"__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", "build", "dist", ".venv"}
    assert [str(file) for file in tracked_files() if left & set(file.parts)] == []


def test_every_test_module_has_a_name_of_its_own() -> None:
    """Test folders are no packages, so two modules of one name would be one."""
    names = [file.name for file in tracked_files() if file.parts[0] == "tests" and file.suffix == ".py"]
    assert sorted({name for name in names if names.count(name) > 1} - {"conftest.py"}) == []
    assert not [file for file in tracked_files() if Path("tests") in file.parents and file.name == "__init__.py"]
