"""Everything goes wrong, by a seed; then it is judged whether all that was promised has held.

python -m benchmarks.chaos --seed 7 --seconds 60 --store postgres
python -m benchmarks.chaos --seeds 1-20 --store sqlite
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import msgspec
import rich_click as click
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "tests"))
from benchmarks.chaos.report import show_report, show_summary
from benchmarks.chaos.round import CLIENTS, Report, Weather, chaos_round, plain
from benchmarks.chaos.schedule import NOT_INJECTED, Fault, Store, draw_schedule


@click.command()
@click.option("--seed", type=int, help="Decides what goes wrong and when. Default: another one each time.")
@click.option("--seeds", metavar="FROM-TO", help="Several, one after the other.")
@click.option("--repeat", type=int, default=1, show_default=True, help="Each seed so often.")
@click.option("--seconds", type=float, default=60.0, show_default=True, help="How long things go wrong.")
@click.option(
    "--store", type=click.Choice([store.value for store in Store]), default=Store.POSTGRES.value, show_default=True
)
@click.option("--supervisors", type=click.IntRange(1, 9), default=3, show_default=True)
@click.option("--rate", type=float, default=8.0, show_default=True, help="Enqueues per second, of all clients.")
@click.option("--every", "every_seconds", type=float, default=1.0, show_default=True, help="Seconds between faults.")
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), help="Keep the files of each run there.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the reports there too.")
@click.option("--schedule", "only_schedule", is_flag=True, help="Show what would go wrong, and leave.")
@click.option("-v", "--verbose", is_flag=True, help="Tell of each fault.")
def main(
    seed: int | None,
    seeds: str | None,
    repeat: int,
    seconds: float,
    store: str,
    supervisors: int,
    rate: float,
    every_seconds: float,
    keep: Path | None,
    json_file: Path | None,
    only_schedule: bool,
    verbose: bool,
) -> None:
    """Torment real supervisors and a real database, then judge the history. Exit code 0: all rules have held."""
    console = Console()
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    reports: list[Report] = []
    for number in _seeds(seed, seeds) * repeat:
        kind = Store(store)
        console.print(f"seed {number}: {seconds:g} s on {kind}, {supervisors} supervisors", style="bold")
        schedule = draw_schedule(
            number, seconds, kind, supervisors=supervisors, clients=CLIENTS, every_seconds=every_seconds
        )
        if only_schedule:
            _show_schedule(console, schedule)
            continue
        report = chaos_round(
            Weather(seed=number, seconds=seconds, store=kind, schedule=schedule, supervisors=supervisors, rate=rate),
            keep=keep,
            told=(lambda at, what: console.print(f"  {at:6.2f}  {what}")) if verbose else (lambda at, what: None),
        )
        reports.append(report)
        show_report(console, report)
        if json_file is not None:
            json_file.write_bytes(msgspec.json.format(msgspec.json.encode([plain(each) for each in reports])))
    if len(reports) > 1:
        show_summary(console, reports)
    sys.exit(0 if all(report.holds for report in reports) else 1)


def _seeds(seed: int | None, seeds: str | None) -> list[int]:
    if seeds is not None:
        found = re.fullmatch(r"(\d+)-(\d+)", seeds)
        if found is None:
            raise click.BadParameter(f"{seeds!r} is not of the form 1-20")
        return list(range(int(found[1]), int(found[2]) + 1))
    return [int(time.time()) if seed is None else seed]


def _show_schedule(console: Console, schedule: list[Fault]) -> None:
    table = Table("at", "fault", "which", "seconds", "pick")
    for fault in schedule:
        target = f"{fault.target} {fault.number}"
        table.add_row(f"{fault.at:.3f}", fault.kind, target, f"{fault.seconds:.3f}", f"{fault.pick:.6f}")
    console.print(table)
    for missing in NOT_INJECTED:
        console.print(f"not injected: {missing}", style="yellow")


if __name__ == "__main__":
    main()
