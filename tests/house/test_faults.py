"""docs/faults.md tells the truth: each kind of fault stands there once, with tests that exist or what is missing."""

import ast
import re
from functools import cache
from typing import NamedTuple

from house_files import ROOT

PAGE = ROOT / "docs" / "faults.md"
HEADINGS = ["no.", "fault", "shown by", "result"]
A_TEST = re.compile(r"`(tests/\S+\.py)::(test_\w+)`")
RESULTS = re.compile(r"held|held(, with limits)?: .+|not covered: .+")
FAULTS, COVERED_MIN = 105, 90


class Row(NamedTuple):
    number: int
    fault: str
    shown_by: list[str]
    result: str

    @property
    def covered(self) -> bool:
        return self.result.startswith("held")


def rows() -> list[Row]:
    found = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if not line.startswith("|") or line.startswith("|---"):
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert len(cells) == len(HEADINGS), line
        if cells != HEADINGS:
            number, fault, shown_by, result = cells
            found.append(Row(int(number), fault, [test for test in shown_by.split("<br>") if test], result))
    return found


ROWS = rows()


@cache
def functions_in(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def exists(test: str) -> bool:
    named = A_TEST.fullmatch(test)
    return named is not None and (ROOT / named[1]).is_file() and named[2] in functions_in(named[1])


def test_every_fault_stands_there_once_and_in_its_order() -> None:
    assert [row.number for row in ROWS] == list(range(1, FAULTS + 1))
    assert len({row.fault for row in ROWS}) == FAULTS


def test_every_named_test_exists() -> None:
    assert [(row.number, test) for row in ROWS for test in row.shown_by if not exists(test)] == []


def test_what_held_was_shown_and_what_is_not_covered_says_why() -> None:
    assert [row.number for row in ROWS if not RESULTS.fullmatch(row.result)] == []
    assert [row.number for row in ROWS if row.covered and not row.shown_by] == []


def test_most_of_the_catalogue_is_covered() -> None:
    assert sum(row.covered for row in ROWS) >= COVERED_MIN
