"""What was measured of the others, as multiples of what was measured of this project in the same turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from benchmarks.peers.performance.contenders import DURABLESTACK
from benchmarks.records import Case, spread

BEST = "best"
ELSEWHERE = "PostgreSQL"
"""What is compared with a store that this project does not have."""


def reference_of(case: Case, cases: Sequence[Case]) -> Case | None:
    """This project at its best on the same store, else on PostgreSQL; None, if it was not measured."""
    ours = {
        str(each.labels["store"]): each
        for each in cases
        if each.labels["package"] == DURABLESTACK.title and each.labels["settings"] == BEST
    }
    return ours.get(str(case.labels["store"]), ours.get(ELSEWHERE))


def multiples(case: Case, reference: Case) -> dict[str, list[float]]:
    """By figure, one for each turn in which both were measured."""
    found = {
        figure: [
            theirs / ours for theirs, ours in zip(values, reference.figures[figure], strict=True) if theirs and ours
        ]
        for figure, values in case.figures.items()
    }
    return {figure: values for figure, values in found.items() if values}


def ratios(cases: Sequence[Case]) -> list[dict[str, object]]:
    """For JSON: each row with its multiples, and what they are multiples of."""
    rows: list[dict[str, object]] = []
    for case in cases:
        if (reference := reference_of(case, cases)) is not None:
            rows.append({"row": case.labels, "against": reference.labels, "multiples": multiples(case, reference)})
    return rows


def ratio_table(cases: Sequence[Case], units: Mapping[str, str]) -> Table:
    """A row for each contender, a column for each figure: the median of the turns, its least and its greatest."""
    shown = [figure for figure in units if any(case.all(figure) for case in cases)]
    table = Table(title=f"multiples of this project at its best on the same store, or on {ELSEWHERE}")
    for heading in ("package", "store", "settings", *shown):
        table.add_column(heading)
    for case in cases:
        reference = reference_of(case, cases)
        if reference is None or reference is case:
            continue
        found = multiples(case, reference)
        labels = [str(case.labels[label]) for label in ("package", "store", "settings")]
        table.add_row(*labels, *(spread(found.get(figure, ())) for figure in shown))
    return table
