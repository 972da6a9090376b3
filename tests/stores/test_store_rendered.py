"""Every statement, as each database gets it: reviewed, and not changed by accident."""

import os
import re
from pathlib import Path

import pytest
import sqlglot
from sqlglot import exp

from durablestack.stores.dialects import DIALECTS, SQLSERVER, Dialect
from durablestack.stores.migrate import SCHEMA_VERSION, statements_of
from durablestack.stores.statements import TEMPLATES

FOLDER = Path(__file__).with_name("rendered")
REWRITE = "DURABLESTACK_REWRITE_SNAPSHOTS"
dialects = pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)


def rendered(dialect: Dialect) -> str:
    templates = {**TEMPLATES, **dialect.own}
    statements = (f"-- {name}\n{dialect.render(name, text, '')}\n" for name, text in templates.items())
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
    for name, text in {**TEMPLATES, **dialect.own}.items():
        statement = dialect.render(name, text, "a_")
        assert not re.search(r"[{}]", statement), name
        assert "a_durable_stack_" in statement or name == "CLOCK_SELECT", name


def test_every_dialect_says_every_statement_that_it_overrides() -> None:
    for dialect in DIALECTS:
        assert set(dialect.overrides) <= set(TEMPLATES)


def test_no_index_holds_what_heartbeats_write_or_ask_for() -> None:
    """Or they would write to it, and none would be a HOT update."""
    for file in (Path(__file__).parents[2] / "durablestack" / "stores" / "migrations").glob("*/*.sql"):
        for index in re.findall(r"create (?:unique )?index[^;]+;", file.read_text(encoding="utf-8")):
            assert not re.search(r"lease_|worker_id|\bstack|crash_count|seen_at", index), f"{file}: {index}"


def test_what_is_copied_before_it_is_cleared_is_copied_first() -> None:
    """MySQL makes the assignments of an update one after the other."""
    for name, text in TEMPLATES.items():
        if "last_token = lease_token" in text:
            assert text.index("last_token = lease_token") < text.index("    lease_token = null"), name


# --- SQL Server, of which there is none to try it on

SQLSERVER_STATEMENTS = {
    **{name: SQLSERVER.render(name, text, "a_") for name, text in TEMPLATES.items()},
    **{
        f"{version:03}: {statement.splitlines()[0]}": statement
        for version in range(1, SCHEMA_VERSION + 1)
        for statement in statements_of(SQLSERVER, "a_", version)
    },
    **{f"fact {name}": statement for name, statement in SQLSERVER.facts.items()},
    "begin": SQLSERVER.begin,
}
sqlserver_statements = pytest.mark.parametrize("statement", SQLSERVER_STATEMENTS.values(), ids=SQLSERVER_STATEMENTS)


@sqlserver_statements
def test_sql_server_is_told_what_its_grammar_allows(statement: str) -> None:
    with_variables = re.sub(r"%\((\w+)\)s", r"@\1", statement)
    (parsed,) = sqlglot.parse(with_variables, read="tsql")
    assert not isinstance(parsed, exp.Command), "not parsed, but taken as it is"


@sqlserver_statements
def test_sql_server_is_told_nothing_that_babelfish_refuses(statement: str) -> None:
    refused = (r"\bmerge\b", r"\bwaitfor\b", r"\balter\s+database\b", r"\bwith\s+\w+\s+as\s*\(", r"\bdm_tran_locks\b")
    others = (r"^limit\b", r"\breturning\b", r"\bon conflict\b", r"\bif not exists\b")
    found = [words for words in refused + others if re.search(words, statement, re.IGNORECASE | re.MULTILINE)]
    assert found == []


def test_sql_server_never_locks_the_end_of_the_table_of_runs() -> None:
    """There all producers insert; a caller's own transaction would hold them up."""
    for name, statement in SQLSERVER_STATEMENTS.items():
        assert "holdlock" not in statement or "durable_stack_jobs]" in statement, name


@pytest.mark.parametrize("name", [name for name, text in TEMPLATES.items() if "{skip_locked_hint}" in text])
def test_sql_server_passes_over_locked_rows_by_hints(name: str) -> None:
    assert "with (updlock, readpast, rowlock, readcommittedlock)" in SQLSERVER_STATEMENTS[name]
