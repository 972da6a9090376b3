"""What comes along when DurableStack is installed: these packages, and each in a version that was tried."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
REQUIRED = {"anyio", "msgspec", "rich", "click", "rich-click", "croniter", "tzdata", "dishka"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


@pytest.fixture(scope="module")
def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [re.fullmatch(r"([a-z0-9-]+)==([0-9a-z.]+)(?: ;.*)?", line) for line in lines if not line.startswith("#")]
    assert all(found), "a name, and one version"
    return {each[1]: each[2] for each in found if each}


def test_these_packages_are_required_and_no_others(project: dict[str, Any]) -> None:
    assert {Requirement(text).name for text in project["dependencies"]} == REQUIRED


def test_every_package_that_is_asked_for_is_pinned_in_a_version_that_was_asked_for(
    project: dict[str, Any], pinned: dict[str, str]
) -> None:
    asked = [*project["dependencies"], *(each for extra in project["optional-dependencies"].values() for each in extra)]
    for requirement in map(Requirement, asked):
        if requirement.name != "durablestack":
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_no_package_comes_from_an_address(project: dict[str, Any]) -> None:
    asked = [*project["dependencies"], *(each for extra in project["optional-dependencies"].values() for each in extra)]
    assert [text for text in asked if Requirement(text).url] == []
