"""What a benchmark has found: as values, as JSON, as a table for people.

All repetitions of all figures are kept, and beside each how many of our cores somebody else kept busy meanwhile.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from rich.table import Table

Label = str | int | float

LIST_OF_PLAIN_VALUES = re.compile(rb"\[[^][{}\"]*\]")


class Case(Struct, frozen=True):
    """What was measured under one set of conditions: each figure once per repetition, None where it could not be had.

    A figure that could never be had is not there.
    """

    labels: dict[str, Label]
    figures: dict[str, list[float | None]]
    others_cores: list[float]

    def all(self, figure: str) -> list[float]:
        """Every repetition of a figure that could be had."""
        return [value for value in self.figures.get(figure, ()) if value is not None]

    def median(self, figure: str) -> float:
        """Not a number, if it could not be had once."""
        return statistics.median(self.all(figure)) if self.all(figure) else float("nan")


class Record(Struct, frozen=True, kw_only=True):
    """All that a benchmark has to tell, as it is written to JSON."""

    benchmark: str
    measures: str
    at: str
    duration_seconds: float
    parameters: dict[str, Any]
    units: dict[str, str]
    machine: dict[str, Any]
    databases: dict[str, dict[str, str]]
    load_average: dict[str, list[float]]
    cases: list[Case]


def known(case: Case) -> Case:
    """Without the figures that could never be had."""
    figures = {name: values for name, values in case.figures.items() if any(value is not None for value in values)}
    return replace(case, figures=figures)


def encoded(record: Record) -> bytes:
    """JSON for people too: a line for each figure, with all of its repetitions."""
    text = msgspec.json.format(msgspec.json.encode(_rounded(msgspec.to_builtins(record))), indent=1)
    return LIST_OF_PLAIN_VALUES.sub(lambda found: b" ".join(found[0].split()), text) + b"\n"


def decoded(text: bytes) -> Record:
    """Raises msgspec.ValidationError when it is no record."""
    return msgspec.json.decode(text, type=Record)


def table(record: Record) -> Table:
    """A row for each case: labels, the median of each figure with its least and greatest, what others did."""
    shown = [figure for figure in record.units if any(case.all(figure) for case in record.cases)]
    drawn = Table(title=f"{record.benchmark}: medians of {record.parameters.get('repeat', '?')} (least to greatest)")
    labels = list(dict.fromkeys(label for case in record.cases for label in case.labels))
    for label in labels:
        drawn.add_column(label)
    for figure in shown:
        drawn.add_column(f"{figure},\n{record.units[figure]}", justify="right")
    drawn.add_column("others,\ncores", justify="right", style="dim")
    for case in record.cases:
        figures = [spread(case.all(figure)) for figure in shown]
        others = statistics.median(case.others_cores) if case.others_cores else 0.0
        drawn.add_row(*(str(case.labels.get(label, "")) for label in labels), *figures, f"{others:.1f}")
    return drawn


def spread(values: Sequence[float]) -> str:
    """The median, and in brackets the least and the greatest, if there are several."""
    if not values:
        return "-"
    median = plain(statistics.median(values))
    return median if len(values) == 1 else f"{median} ({plain(min(values))} to {plain(max(values))})"


def plain(value: float) -> str:
    """With three digits or so: as much as any measurement is good for."""
    size = abs(value)
    if size >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 1 else f"{value:.3f}"


def _rounded(value: Any) -> Any:
    """Six digits; nobody wants to read more, and nothing is known of them."""
    match value:
        case float():
            return float(f"{value:.6g}")
        case dict():
            return {key: _rounded(each) for key, each in value.items()}
        case list():
            return [_rounded(each) for each in value]
        case _:
            return value
