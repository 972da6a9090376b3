"""Lists the benchmarks, or runs those that write results, one after the other.

python -m benchmarks                                what there is
python -m benchmarks all [--cores 2] [--only a,b]   each with its defaults, into benchmarks/results/; then the report
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import rich_click as click
from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
MAIN = '\nif __name__ == "__main__":'

ALL_CORES = {"restart", "memory"}
"""A start is measured with all that the machine has."""

HUNDRED = ("--jobs", "no-op", "--batch-sizes", "100")
VARIANTS = {
    "two_workers": ("throughput", "--workers", "1,2", "--stores", "postgres,mysql", *HUNDRED),
    "windows": ("throughput", "--windows", "1,32", "--stores", "postgres,sqlite", *HUNDRED),
    "soak": ("throughput", "--runs", "1000000", "--watch", "--repeat", "1", "--stores", "postgres,sqlite", *HUNDRED),
}
"""Results that a benchmark gives when it is asked otherwise."""


@click.group(invoke_without_command=True)
@click.pass_context
def main(context: click.Context) -> None:
    """What can be measured here, and how it is run."""
    if context.invoked_subcommand is None:
        show(Console())


@main.command(name="all")
@click.option("--cores", default=2, show_default=True, help="Bind each of them to so many cores.")
@click.option("--only", default="", help="These, separated by commas; else all that write results.")
def run_all(cores: int, only: str) -> None:
    """Measure everything, one after the other, on a machine that has nothing else to do; then write the report."""
    console = Console()
    names = only.split(",") if only else [*map(script_name, filter(writes_results, scripts())), *VARIANTS]
    failed = []
    for number, name in enumerate(names, 1):
        console.rule(f"{name}, {number} of {len(names)}")
        module, *arguments = VARIANTS.get(name, (name,))
        if name not in ALL_CORES:
            arguments += ["--cores", str(cores)]
        command = [sys.executable, "-m", f"benchmarks.{module}", "--json", str(RESULTS / f"{name}.json"), *arguments]
        if subprocess.run(command, cwd=FOLDER.parent, check=False).returncode:
            failed.append(name)
    subprocess.run([sys.executable, "-m", "benchmarks.report"], cwd=FOLDER.parent, check=True)
    if failed:
        console.print(f"could not be measured: {', '.join(failed)}", style="red")
        sys.exit(1)


def show(console: Console) -> None:
    table = Table(show_lines=True)
    for heading in ("python -m …", "what it measures"):
        table.add_column(heading)
    for script in scripts():
        table.add_row(f"benchmarks.{script_name(script)}", first_paragraph(script))
    console.print(table)
    console.print("Each takes --help. `python -m benchmarks all` measures all that goes into docs/performance.md.")


def scripts(folder: Path = FOLDER) -> Iterator[Path]:
    """What can be run: modules that say so, and packages that do when they are run."""
    for path in sorted(folder.iterdir()):
        if path.suffix == ".py" and path.name != "__main__.py" and MAIN in path.read_text():
            yield path
        elif (path / "__main__.py").exists():
            yield path / "__main__.py"


def script_name(script: Path) -> str:
    return script.parent.name if script.name == "__main__.py" else script.stem


def writes_results(script: Path) -> bool:
    """Whether it goes through the harness."""
    return "\n@benchmark(" in script.read_text()


def first_paragraph(script: Path) -> str:
    """What a script says of itself, without importing it."""
    document = ast.get_docstring(ast.parse(script.read_text())) or ""
    return " ".join(document.partition("\n\n")[0].split())


if __name__ == "__main__":
    main()
