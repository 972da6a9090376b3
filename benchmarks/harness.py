"""One harness for all benchmarks: options, turns, medians, a table, JSON, and what else the machine was doing.

A script says what its figures are, which cases there are, and how one is measured once:

    @benchmark(units={"rate": "runs/s"}, repeat=5)
    @click.option("--runs", default=2_000, help="Runs per measurement.")
    def main(harness: Harness, runs: int) -> None:
        for store in harness.stores:
            for size in (1, 10, 50):
                harness.case({"store": store.name, "batch size": size}, store_alone, store, runs, size)
        harness.measure()

    def store_alone(store: Store, runs: int, size: int) -> Figures:
        with store.stack(batch_size=size) as stack:       # tables of its own
            ...
            return {"rate": runs / seconds}               # names from `units`; what cannot be had may be missing

    if __name__ == "__main__":
        main()

and has all of `--repeat --json FILE --cores N --stores sqlite,postgres --durability default|off`. The cases take
turns, case 1 to n and again, so that what the machine does besides meets all of them alike. `measure` prints the table,
writes the JSON and returns the cases, for whoever wants ratios: `case.median("rate")`. The first paragraph of
the module says what is measured. `stores=()` is for a benchmark without databases.

In the JSON (benchmarks/records.py): all repetitions of all figures, and beside each how many of our cores somebody else
kept busy.
"""

from __future__ import annotations

import functools
import inspect
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ParamSpec

import rich_click as click
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

from benchmarks import machine
from benchmarks.bench import STORES, Store, open_stores
from benchmarks.records import Case, Label, Record, encoded, known, table

Figures = Mapping[str, float]
AnyOption = Callable[[Callable[..., None]], Callable[..., None]]
P = ParamSpec("P")

WIDTH = 160
"""Of what is written to a file or a pipe."""

OTHERS_WARN_CORES = 0.3
"""When others keep more of our cores busy than this, the figures are worth little by themselves."""


class Harness:
    """One benchmark under way: its stores, its cases, what was found."""

    def __init__(
        self,
        *,
        name: str,
        measures: str,
        units: Mapping[str, str],
        parameters: Mapping[str, Any],
        repeat: int = 1,
        store_names: Sequence[str] = (),
        json_file: Path | None = None,
        console: Console | None = None,
    ) -> None:
        self.console = console or Console(width=None if sys.stdout.isatty() else WIDTH)
        self.repeat = repeat
        self._name, self._measures, self._units = name, measures, dict(units)
        self._parameters = dict(parameters)
        self._store_names = store_names
        self._json_file = json_file
        self._exits = ExitStack()
        self._planned: list[tuple[Case, Callable[[], Figures]]] = []
        self._began = time.monotonic()

    def close(self) -> None:
        self._exits.close()

    @functools.cached_property
    def stores(self) -> list[Store]:
        """The databases that were asked for and can be had; servers are started when this is first read."""
        durability = self._parameters.get("durability", "default")
        return self._exits.enter_context(open_stores(self._store_names, durability, self.warn))

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False)

    def warn(self, text: str) -> None:
        self.console.print(text, style="yellow", markup=False, highlight=False)

    def case(
        self, labels: Mapping[str, Label], measure: Callable[P, Figures], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Plan to measure `measure(*args, **kwargs)`, once in each repetition, and to show it under these labels."""
        case = Case(dict(labels), {figure: [] for figure in self._units}, [])
        self._planned.append((case, functools.partial(measure, *args, **kwargs)))

    def measure(self) -> list[Case]:
        """Let the cases take turns; show and write what was found."""
        facts, load_before = machine.describe(), machine.load_average()
        self._introduce(facts, load_before)
        columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(self._name, total=self.repeat * len(self._planned))
            for turn in range(1, self.repeat + 1):
                for case, measure in self._planned:
                    progress.update(task, description=", ".join(map(str, case.labels.values())))
                    self._measure_once(case, measure)
                    progress.advance(task)
                if not self.console.is_terminal:
                    self.say(f"turn {turn} of {self.repeat}: done after {time.monotonic() - self._began:.0f} s")
        cases = [known(case) for case, _ in self._planned]
        record = Record(
            benchmark=self._name,
            measures=self._measures,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            duration_seconds=round(time.monotonic() - self._began, 1),
            parameters=self._parameters,
            units=self._units,
            machine=facts,
            databases={store.name: store.facts for store in (self.stores if self._store_names else ())},
            load_average={"before": load_before, "after": machine.load_average()},
            cases=cases,
        )
        self._show(record)
        if self._json_file is not None:
            self._json_file.parent.mkdir(parents=True, exist_ok=True)
            self._json_file.write_bytes(encoded(record))
        return cases

    def _measure_once(self, case: Case, measure: Callable[[], Figures]) -> None:
        watch = machine.Watch()
        found = measure()
        case.others_cores.append(round(watch.others(), 2))
        if unknown := found.keys() - self._units.keys():
            raise KeyError(f"figures without a unit: {', '.join(sorted(unknown))}")
        for figure, values in case.figures.items():
            values.append(found.get(figure))

    def _introduce(self, facts: Mapping[str, Any], load: Sequence[float]) -> None:
        self.say(self._measures)
        self.say(f"{_told(facts)}, load {' '.join(map(str, load))}")
        for store in self.stores if self._store_names else ():
            if store.facts:
                self.say(f"{store.name}: {_told(store.facts)}")

    def _show(self, record: Record) -> None:
        self.console.print(table(record))
        others = [cores for case in record.cases for cores in case.others_cores]
        if others and statistics.median(others) > OTHERS_WARN_CORES:
            cores = f"{statistics.median(others):.1f} of {record.machine['cores_used']}"
            self.warn(f"others kept {cores} cores busy: only compare what was measured here, in this run")


def benchmark(
    *, units: Mapping[str, str], repeat: int = 3, stores: Sequence[str] = STORES, cores: int | None = None
) -> Callable[[Callable[..., None]], click.Command]:
    """Make a command of `main(harness, …)`; see the module.

    Args:
        units: those of the figures, by their names.
        repeat, stores, cores: what `--repeat`, `--stores` and `--cores` are unless given; cores None is all of them.
    """

    def decorate(main: Callable[..., None]) -> click.Command:
        name, document = _module_of(main)

        @functools.wraps(main)
        def command(
            repeat: int, json_file: Path | None, cores: int | None, stores: str = "", **parameters: Any
        ) -> None:
            if cores is not None:
                machine.bind(cores)
            names = tuple(filter(None, stores.split(",")))
            own = {key: value for key, value in parameters.items() if key != "durability"}
            harness = Harness(
                name=name,
                measures=first_paragraph(document),
                units=units,
                parameters={"repeat": repeat, "cores": cores, **parameters},
                repeat=repeat,
                store_names=names,
                json_file=json_file,
            )
            with ended_in_order(), closing(harness):
                main(harness, **own)

        command.__doc__ = inspect.getdoc(main) or document
        for option in reversed(_options(repeat, stores, cores)):
            option(command)
        return click.command(context_settings={"help_option_names": ["-h", "--help"]})(command)

    return decorate


@contextmanager
def ended_in_order() -> Iterator[None]:
    """Who is told to end (SIGTERM) takes along what he has started."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _options(repeat: int, stores: Sequence[str], cores: int | None) -> list[AnyOption]:
    options: list[AnyOption] = [
        click.option("--repeat", default=repeat, type=click.IntRange(1), show_default=True, help="Turns of each case."),
        click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write all there."),
        click.option(
            "--cores",
            default=cores,
            type=click.IntRange(1),
            metavar="N",
            show_default=True,
            help="Bind us and all that we start to N cores.",
        ),
    ]
    if stores:
        options += [
            click.option("--stores", default=",".join(stores), show_default=True, help="Databases, in this order."),
            click.option(
                "--durability",
                default="default",
                type=click.Choice(["default", "off"]),
                show_default=True,
                help="Whether a commit is on the disk when it is answered; see benchmarks/bench.py.",
            ),
        ]
    return options


def _module_of(main: Callable[..., None]) -> tuple[str, str]:
    """The name of a script, also of the one that was started, and its docstring."""
    module = sys.modules[main.__module__]
    spec = getattr(module, "__spec__", None)
    return (spec.name if spec else Path(inspect.getfile(main)).stem).rpartition(".")[2], module.__doc__ or ""


def first_paragraph(document: str) -> str:
    """What a module says of itself first, in one line."""
    return " ".join(inspect.cleandoc(document).partition("\n\n")[0].split())


def _told(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in facts.items())
