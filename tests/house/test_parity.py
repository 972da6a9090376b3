"""docs/parity.md tells the truth: each row names files and tests that exist, and nothing of ours is left out of it."""

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cache
from typing import NamedTuple

import msgspec
import pytest
from house_files import ROOT

from durablestack import DurableStackClient, DurableStackOptions, EventType, JobContext, RunQueries
from durablestack.admin import ScheduleAdmin
from durablestack.events import Event
from durablestack.ids import new_run_id
from durablestack.jobs import durable_job, recurring_job
from durablestack.options.reading import rules

PAGE = ROOT / "docs" / "parity.md"
HEADINGS = ["the documents", "here", "file", "shown by", "differs"]
A_TEST = re.compile(r"`(tests/\S+\.py)::(test_\w+)`")


class Row(NamedTuple):
    chapter: str
    feature: str
    here: str
    file: str
    shown_by: str
    differs: str


def rows() -> list[Row]:
    found, chapter = [], ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            chapter = line.removeprefix("## ")
        if not line.startswith("|") or line.startswith("|---"):
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert len(cells) == len(HEADINGS), line
        if cells != HEADINGS:
            found.append(Row(chapter, *cells))
    return found


ROWS = rows()


@cache
def functions_in(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def names_here() -> set[str]:
    """Whatever stands between backticks in the column of our names."""
    return {name for row in ROWS for name in re.findall(r"`([^`]+)`", row.here)}


# --- what the rows name


def test_there_are_rows_in_every_chapter() -> None:
    chapters = re.findall(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(chapters) == len(set(chapters)) > 20
    assert {row.chapter for row in ROWS} == set(chapters)


def test_no_row_lacks_a_feature_a_name_a_file_or_a_test() -> None:
    assert [row for row in ROWS if not (row.feature and row.here and row.file and A_TEST.search(row.shown_by))] == []


def test_no_row_stands_there_twice() -> None:
    told = [(row.chapter, row.feature, row.here) for row in ROWS]
    assert sorted({row for row in told if told.count(row) > 1}) == []


def test_every_file_exists() -> None:
    assert sorted({row.file for row in ROWS if not (ROOT / row.file.strip("`")).is_file()}) == []


def test_every_test_exists() -> None:
    missing = []
    for row in ROWS:
        for part in row.shown_by.split("<br>"):
            test = A_TEST.fullmatch(part)
            if test is None or not (ROOT / test[1]).is_file() or test[2] not in functions_in(test[1]):
                missing.append(part)
    assert missing == []


# --- what must be in it


def options_of(kind: type[msgspec.Struct]) -> Iterator[str]:
    for rule in rules(kind).values():
        if rule.group is None:
            yield rule.option
        else:
            yield from options_of(rule.group)


def public(kind: type) -> list[str]:
    return [name for name, value in vars(kind).items() if inspect.isfunction(value) and not name.startswith("_")]


def keywords(decorator: Callable[..., object]) -> list[str]:
    parameters = inspect.signature(decorator).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


def attributes_of_a_context() -> set[str]:
    context = JobContext(
        run_id=new_run_id(), job_name="job", attempt=1, max_attempts=1, scheduled_for=datetime.now(UTC)
    )
    return {name for name in {*vars(context), *vars(JobContext)} if not name.startswith("_")}


def missing(names: set[str]) -> list[str]:
    """Those that no row names: alone, or before a parenthesis."""
    told = {re.split(r"[( ]", name)[0] for name in names_here()}
    return sorted(names - told)


def test_no_option_is_missing() -> None:
    options = set(options_of(DurableStackOptions))
    assert len(options) > 50
    assert sorted(options - names_here()) == []


def test_no_event_and_no_field_of_one_is_missing() -> None:
    assert missing({f"EventType.{kind.name}" for kind in EventType}) == []
    assert missing({f"Event.{field}" for field in Event.__struct_fields__}) == []


@pytest.mark.parametrize("kind", [DurableStackClient, ScheduleAdmin, RunQueries])
def test_no_method_is_missing(kind: type) -> None:
    methods = {f"{kind.__name__}.{name}" for name in public(kind)}
    assert len(methods) >= 5
    assert missing(methods) == []


def test_no_parameter_of_a_decorator_is_missing() -> None:
    wanted = {f"durable_job({name}=)" for name in keywords(durable_job)}
    wanted |= {f"recurring_job({name}=)" for name in keywords(recurring_job)} | {"recurring_job(cron)"}
    assert len(wanted) >= 11
    assert sorted(wanted - names_here()) == []


def test_nothing_that_a_job_is_told_is_missing() -> None:
    attributes = attributes_of_a_context()
    assert {"run_id", "started_at", "cancelled"} <= attributes
    assert missing({f"JobContext.{name}" for name in attributes}) == []
