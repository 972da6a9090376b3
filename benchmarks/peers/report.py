"""The tables: for a terminal, and as a fragment that a page of the documentation includes."""

from __future__ import annotations

from rich.table import Table

from benchmarks.peers.measures import Measure
from benchmarks.peers.scenarios import Scenario
from benchmarks.peers.setups import Setup

Results = dict[tuple[str, str], Measure | str]
"""By the names of setup and scenario: what was measured, or why it was not."""

LEGEND = """\
Everything has its defaults, and 5 runs at once. "With recovery" adds what the package's documentation says about
recovery. procrastinate: the periodic task `retry_stalled_jobs`, each minute; `retry=3`; 10 seconds of grace.
pgqueuer: `--shutdown-on-listener-failure`, and its retrying executor. A worker that ends by itself is started again at
once, whoever it is. There is one worker, unless a second one is mentioned.

A job that is "not done" had not succeeded, by the word of the database, 120 seconds after the fault. "Done twice":
executed to the end more than once. "Overlapping": an execution still got on after another of the same job had begun.
"Cut short": executions that did not come to their end. All of it counts the jobs that do nothing wrong; the last column
tells of the one that does, or that was too long."""

HEADINGS = ("setup", "not done", "done twice", "overlapping", "cut short", "seconds", "the run in question")


def overview(scenarios: list[Scenario], setups: list[Setup], results: Results) -> list[list[str]]:
    """A row per setup, a column per scenario."""
    heading = ["seconds until all is done", *(scenario.name for scenario in scenarios)]
    rows = [[setup.name, *(_verdict(results.get((setup.name, each.name))) for each in scenarios)] for setup in setups]
    return [heading, *rows]


def _verdict(measure: Measure | str | None) -> str:
    match measure:
        case Measure(seconds=None, lost=lost, jobs=jobs):
            return f"{lost} of {jobs} not done"
        case Measure(seconds=float(seconds), twice=twice):
            return f"{seconds:.1f}" + (f", {twice} twice" if twice else "")
        case str(reason):
            return reason
        case _:
            return "-"


def details(scenario: Scenario, setups: list[Setup], results: Results) -> list[list[str]]:
    """A row per setup, a column per number; no last column, if there is nothing in it."""
    rows = [[setup.name, *_numbers(results.get((setup.name, scenario.name)))] for setup in setups]
    width = len(HEADINGS) if any(row[-1] for row in rows) else len(HEADINGS) - 1
    return [row[:width] for row in (list(HEADINGS), *rows)]


def _numbers(measure: Measure | str | None) -> list[str]:
    match measure:
        case Measure():
            seconds = "not within the bound" if measure.seconds is None else f"{measure.seconds:.1f}"
            counts = [str(measure.twice), str(measure.overlapping), str(measure.cut)]
            return [f"{measure.lost} of {measure.jobs}", *counts, seconds, measure.hostile]
        case reason:
            return [reason or "-", *[""] * 5]


def rich_table(title: str, rows: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in rows[0]:
        table.add_column(heading)
    for row in rows[1:]:
        table.add_row(*row)
    return table


def markdown(
    scenarios: list[Scenario], setups: list[Setup], results: Results, machine: str, versions: str, repetitions: int
) -> str:
    """The fragment: a page includes it below a heading of its own."""
    parts = [
        f"Measured on {machine}; {versions}. {_repeated(repetitions)} `python -m benchmarks.peers_reliability`, in the "
        "sources, measures it on your machine, and says how each is configured.",
        LEGEND,
        _markdown_table(overview(scenarios, setups, results)),
    ]
    for scenario in scenarios:
        parts += [f"**{scenario.name}.** {scenario.what}.", _markdown_table(details(scenario, setups, results))]
    return "\n\n".join(parts) + "\n"


def _repeated(repetitions: int) -> str:
    if repetitions == 1:
        return "Each scenario was run once."
    return f"Each scenario was run {repetitions} times: here are the median of the seconds and the worst of the rest."


def _markdown_table(rows: list[list[str]]) -> str:
    heading, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([heading, "|" + "---|" * len(rows[0]), *body])
