"""Every statement, as each database gets it: reviewed, and not changed by accident."""

import os
import re
from pathlib import Path

import pytest

from durablestack.stores.dialects import POSTGRES, SQLITE, Dialect
from durablestack.stores.statements import TEMPLATES

FOLDER = Path(__file__).with_name("rendered")
REWRITE = "DURABLESTACK_REWRITE_SNAPSHOTS"
dialects = pytest.mark.parametrize("dialect", [POSTGRES, SQLITE], ids=lambda dialect: dialect.name)


def rendered(dialect: Dialect) -> str:
    statements = (f"-- {name}\n{dialect.render(name, text, '')}\n" for name, text in TEMPLATES.items())
    return "\n".join(statements)


@dialects
def test_the_rendered_statements_are_the_reviewed_ones(dialect: Dialect) -> None:
    snapshot = FOLDER / f"{dialect.name}.sql"
    if os.environ.get(REWRITE) == "1":
        FOLDER.mkdir(exist_ok=True)
        snapshot.write_text(rendered(dialect), encoding="utf-8")
    assert rendered(dialect) == (snapshot.read_text(encoding="utf-8") if snapshot.exists() else ""), (
        f"statements have changed; look at them with: {REWRITE}=1 pytest {Path(__file__).name}; git diff {FOLDER.name}"
    )


@dialects
def test_no_word_is_left_to_fill_in(dialect: Dialect) -> None:
    for name, text in TEMPLATES.items():
        statement = dialect.render(name, text, "a_")
        assert not re.search(r"[{}]", statement), name
        assert "a_durable_stack_" in statement or name == "CLOCK_SELECT", name


def test_every_dialect_says_every_statement_that_it_overrides() -> None:
    for dialect in (POSTGRES, SQLITE):
        assert set(dialect.overrides) <= set(TEMPLATES)


def test_no_index_holds_a_lease_column() -> None:
    """Or every heartbeat would write to it, and none would be a HOT update."""
    for file in (Path(__file__).parents[2] / "durablestack" / "stores" / "migrations").glob("*/*.sql"):
        for index in re.findall(r"create (?:unique )?index[^;]+;", file.read_text(encoding="utf-8")):
            assert "lease_" not in index, f"{file}: {index}"
