"""Makes the tables and the plot of docs/performance.md from what the benchmarks have written to JSON.

    python -m benchmarks.report [benchmarks/results/*.json]

docs/performance_overview.md     a row for each question, a column for each store
docs/performance_peers.md        the drain of queued no-op runs, by us and by others on PostgreSQL
docs/performance_figures.md      every benchmark with all of its cases
docs/performance_batches.svg     runs per second by batch size and store
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import rich_click as click
from msgspec import Struct
from rich.console import Console

from benchmarks.plot import Line, plot
from benchmarks.records import Case, Label, Record, decoded, plain, spread

FOLDER = Path(__file__).parent
DOCS = FOLDER.parent / "docs"
STORES = ("PostgreSQL", "MariaDB", "MySQL", "SQLite", "in memory")
FORKED: Mapping[str, Label] = {"start method": "forkserver"}
MILLION: Mapping[str, Label] = {"pending": 1_000_000}


class Question(Struct, frozen=True):
    """A row of the overview: one figure of one benchmark, of the cases with these labels the best one."""

    text: str
    result: str
    figure: str
    labels: Mapping[str, Label] = {}
    best: Callable[[Iterable[float]], float] = max


QUESTIONS = (
    Question("no-op runs drained, runs/s", "throughput", "rate", {"job": "no-op"}),
    Question("the same with 2 supervisors, runs/s", "two_workers", "rate", {"supervisors": 2}),
    Question("the same, one run at a time per child, runs/s", "windows", "rate", {"window": 1}),
    Question(
        "the supervisor's CPU time for them, ms per 1,000 runs", "throughput", "supervisor", {"job": "no-op"}, min
    ),
    Question("runs of 1 ms, 10 children, runs/s", "throughput", "rate", {"job": "1ms"}),
    Question("runs of 100 ms, 10 children, % of the ideal", "throughput", "of the ideal", {"job": "100ms"}),
    Question("CPU-bound runs on 2 cores, 2 children, ideal / wall", "cpu_bound", "efficiency", {"children": 2}),
    Question("the same with 10 children", "cpu_bound", "efficiency", {"children": 10}),
    Question("enqueue to start, idle, median, ms", "latency", "p50", {"enqueues/s": 20, "hints": "on"}, min),
    Question("the same, 99 of 100, ms", "latency", "p99", {"enqueues/s": 20, "hints": "on"}, min),
    Question("one enqueue after the other, runs/s", "enqueue", "one by one"),
    Question("many at once, runs/s", "enqueue", "many"),
    Question("a claim while 1,000 runs wait, median, ms", "backlog", "claim p50", {"pending": 1_000}, min),
    Question("a claim while 1,000,000 wait, beside millions that have ended, ms", "backlog", "claim p50", MILLION, max),
    Question("start of a supervisor to its first run, ms", "restart", "first run begins", {}, min),
    Question("a child is killed, to another run in its slot, ms", "restart", "slot busy again", {}, min),
    Question("supervisor with 10 idle children, MiB", "memory", "tree", {**FORKED, "children": 10}, min),
    Question("one child more, MiB", "memory", "one child", {**FORKED, "children": 10}, min),
    Question("what a supervisor gains by 100,000 runs, KiB", "soak", "RSS slope", {}, max),
)


@click.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--docs", default=DOCS, type=click.Path(path_type=Path), help="The folder to write to.")
def main(files: tuple[Path, ...], docs: Path) -> None:
    """Write the measured parts of the documentation."""
    records = {file.stem: decoded(file.read_bytes()) for file in files or sorted((FOLDER / "results").glob("*.json"))}
    written = {
        "performance_overview.md": overview(records),
        "performance_figures.md": "\n".join(chapter(name, record) for name, record in records.items()),
    }
    if (drains := records.get("peers_drain")) is not None:
        written["performance_peers.md"] = peers(drains)
    if (throughput := records.get("throughput")) is not None:
        written["performance_batches.svg"] = batches(throughput)
    for name, text in written.items():
        (docs / name).write_text(text)
        Console().print(f"wrote {name}, from {len(records)} results", highlight=False)


def overview(records: Mapping[str, Record]) -> str:
    """One table; a question that nobody has answered yet is left out, and so is a store that was not measured."""
    answers = {question.text: {store: answer(records, question, store) for store in STORES} for question in QUESTIONS}
    answers = {text: each for text, each in answers.items() if any(value is not None for value in each.values())}
    stores = [store for store in STORES if any(each[store] is not None for each in answers.values())]
    rows = [
        [text, *("" if (value := each[store]) is None else plain(value) for store in stores)]
        for text, each in answers.items()
    ]
    return markdown(["", *stores], rows)


def answer(records: Mapping[str, Record], question: Question, store: str) -> float | None:
    if (record := records.get(question.result)) is None:
        return None
    wanted = {"store": store, **question.labels}
    found = [case.median(question.figure) for case in record.cases if wanted.items() <= case.labels.items()]
    found = [value for value in found if not math.isnan(value)]
    return question.best(found) if found else None


def chapter(name: str, record: Record) -> str:
    """A benchmark with all of its cases: medians, in brackets the least and the greatest."""
    labels = list(dict.fromkeys(label for case in record.cases for label in case.labels))
    figures = [figure for figure in record.units if any(case.all(figure) for case in record.cases)]
    rows = [
        [*(str(case.labels.get(label, "")) for label in labels), *(spread(case.all(figure)) for figure in figures)]
        for case in record.cases
    ]
    headings = [*labels, *(f"{figure}, {record.units[figure]}" for figure in figures)]
    return f"### {name}\n\n{record.measures}\n\n{circumstances(record)}\n\n{markdown(headings, rows)}"


def circumstances(record: Record) -> str:
    """When, on what, and what else the machine was doing."""
    machine = record.machine
    others = statistics.median(cores for case in record.cases for cores in case.others_cores)
    versions = [f"{store} {version(facts)}" for store, facts in record.databases.items() if facts]
    told = [
        f"{record.at[:10]}, {machine['cores_used']} of {machine['cores']} cores, Python {machine['python']}",
        *versions,
        f"durability: {record.parameters.get('durability', 'no database')}, fsync {machine.get('fsync_ms', '?')} ms",
        f"repeat {record.parameters['repeat']}, {record.duration_seconds:.0f} s",
        f"others kept {others:.1f} cores busy",
    ]
    return f"*{'; '.join(told)}.*"


def peers(record: Record) -> str:
    """The fastest first, with medians alone; each with its multiple of ours."""
    ours = record.cases[0].median("drain")
    rows = [
        [
            f"{case.labels['package']}, {case.labels['settings']}",
            *(plain(case.median(figure)) for figure in ("drain", "worker_cpu", "server_cpu")),
            f"{case.median('drain') / ours:.2f}",
        ]
        for case in sorted(record.cases, key=lambda case: -case.median("drain"))
    ]
    headings = ["", "jobs/s", "CPU time of the worker", "of the server", "multiple of our best"]
    return f"{markdown(headings, rows)}\n{circumstances(record)}\n"


def version(facts: Mapping[str, str]) -> str:
    """The number alone."""
    return (facts.get("server_version") or facts.get("version", "")).split()[0].split("-")[0]


def batches(record: Record) -> str:
    """Runs per second by batch size: a line for each store."""
    lines = []
    for store in STORES:
        cases = [case for case in record.cases if case.labels["store"] == store and case.labels["job"] == "no-op"]
        if points := [_point(case) for case in cases]:
            lines.append(Line(store, sorted(points)))
    children = record.cases[0].labels.get("children")
    return plot(lines, title=f"No-op runs per second, {children} children", across="batch_size", up="runs/s")


def _point(case: Case) -> tuple[float, float, float, float]:
    values = case.all("rate")
    return float(case.labels["batch size"]), case.median("rate"), min(values), max(values)


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---" for _ in headings], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
