"""What is installed with the library, and what only if it is asked for."""

import re
import tomllib
from typing import Any

import pytest
from house_files import ROOT


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=;~! ]", requirement)[0].lower() for requirement in requirements}


def test_each_database_driver_is_an_extra_of_its_own(project: dict[str, Any]) -> None:
    extras = {extra: names(requirements) for extra, requirements in project["optional-dependencies"].items()}
    drivers = {"postgres": "psycopg", "mysql": "pymysql", "sqlserver": "mssql-python"}
    for extra, driver in drivers.items():
        assert driver in extras[extra]
        assert driver not in names(project["dependencies"])
    assert "opentelemetry-api" in extras["otel"]
    assert "prometheus-client" in extras["prometheus"]


def test_python_is_supported_from_3_11_on(project: dict[str, Any]) -> None:
    assert project["requires-python"] == ">=3.11"
    assert "Programming Language :: Python :: 3.11" in project["classifiers"]
