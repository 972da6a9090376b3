"""What benchmarks make of their figures: turns, medians, JSON, tables and a plot; and that all of them can be found."""

import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from io import StringIO
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

sys.path.append(str(Path(__file__).parent.parent.parent))  # benchmarks are not installed

from benchmarks import __main__ as listing
from benchmarks import machine, report
from benchmarks.harness import Figures, Harness, benchmark, ended_in_order, first_paragraph
from benchmarks.plot import Line, apart, plot, tick_step
from benchmarks.records import Case, Record, decoded, encoded, plain, spread
from benchmarks.throughput import slope
from benchmarks.worker import Role, role_of, rollup, variables

ROOT = Path(__file__).parent.parent.parent
STAT = """cpu  999 0 0 999 0 0 0 0 0 0
cpu0 100 1 200 5000 70 3 4 5 0 0
cpu1 900 0 900 5000 0 0 0 0 0 0
cpu10 700 0 700 5000 0 0 0 0 0 0
intr 12345
"""


def harness(repeat: int, json_file: Path | None = None) -> Harness:
    return Harness(
        name="example",
        measures="What is measured.",
        units={"rate": "runs/s", "rest": "s"},
        parameters={"repeat": repeat},
        repeat=repeat,
        json_file=json_file,
        console=Console(file=StringIO(), width=120),
    )


def record(**labels: str | int) -> Record:
    """A result with one case: 10, 30 and 20."""
    return Record(
        benchmark="throughput",
        measures="What is measured.",
        at="2026-01-02T03:04:05+00:00",
        duration_seconds=12.3,
        parameters={"repeat": 3, "durability": "default"},
        units={"rate": "runs/s", "supervisor": "ms"},
        machine={"cores": 4, "cores_used": 2, "python": "3.11.7"},
        databases={"SQLite": {"version": "3.40.1"}},
        load_average={"before": [0.0], "after": [0.0]},
        cases=[Case(dict(labels), {"rate": [10.0, 30.0, 20.0], "supervisor": [None, None, None]}, [0.1, 0.3, 0.2])],
    )


def test_cases_take_turns() -> None:
    order: list[str] = []

    def measure(name: str) -> Figures:
        order.append(name)
        return {"rate": 1.0}

    under_way = harness(repeat=2)
    under_way.case({"store": "one"}, measure, "one")
    under_way.case({"store": "other"}, measure, name="other")
    under_way.measure()
    assert order == ["one", "other", "one", "other"]


def test_all_repetitions_are_written_and_can_be_read_again(tmp_path: Path) -> None:
    rates = iter([3.0, 1.0, 2.0])
    file = tmp_path / "results" / "example.json"
    under_way = harness(repeat=3, json_file=file)
    under_way.case({"store": "one", "size": 10}, lambda: {"rate": next(rates)})
    (case,) = under_way.measure()
    read = decoded(file.read_bytes())
    assert read.cases == [case]
    assert case.figures == {"rate": [3.0, 1.0, 2.0]}
    assert case.median("rate") == 2.0
    assert case.median("rest") != case.median("rest")
    assert len(case.others_cores) == 3


def test_a_figure_without_a_unit_is_refused() -> None:
    under_way = harness(repeat=1)
    under_way.case({}, lambda: {"speed": 1.0})
    with pytest.raises(KeyError, match="speed"):
        under_way.measure()


def test_a_result_names_neither_the_machine_nor_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "example.json"
    under_way = harness(repeat=1, json_file=file)
    under_way.case({}, lambda: {"rate": 1.0})
    under_way.measure()
    text = file.read_text()
    assert not re.search(rf"\b{re.escape(os.uname().nodename)}\b", text)
    assert "/" not in text.replace("runs/s", "")


def test_a_script_gets_its_own_options_and_the_common_ones(tmp_path: Path) -> None:
    seen: list[Harness] = []

    @benchmark(units={"rate": "runs/s"}, stores=())
    def main(harness: Harness) -> None:
        seen.append(harness)
        harness.case({}, lambda: {"rate": 7.0})
        harness.measure()

    file = tmp_path / "out.json"
    result = CliRunner().invoke(main, ["--repeat", "2", "--json", str(file)], catch_exceptions=False)
    assert result.exit_code == 0
    assert decoded(file.read_bytes()).cases[0].figures == {"rate": [7.0, 7.0]}
    assert seen[0].repeat == 2
    assert "7.00" in result.output


def test_who_is_told_to_end_takes_along_what_was_started() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit), ended_in_order():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_record_is_written_in_few_lines_and_read_as_it_was() -> None:
    assert decoded(encoded(record(store="SQLite"))) == record(store="SQLite")
    assert b'"rate": [ 10.0, 30.0, 20.0 ]' in encoded(record())


def test_numbers_are_shown_with_three_digits_or_so() -> None:
    assert [plain(value) for value in (12345.6, 99.44, 9.999, 0.12345, 0.0)] == [
        "12,346",
        "99.4",
        "10.00",
        "0.123",
        "0",
    ]
    assert spread([1.0, 3.0, 2.0]) == "2.00 (1.00 to 3.00)"
    assert spread([1.0]) == "1.00"
    assert spread([]) == "-"


def test_only_our_cores_count_as_busy() -> None:
    ticks = 100 + 1 + 200 + 3 + 4 + 5
    assert machine.busy_seconds({0}, STAT) == ticks / machine.TICKS_PER_SECOND
    assert machine.busy_seconds({0, 1}, STAT) == (ticks + 1800) / machine.TICKS_PER_SECOND


def test_what_our_own_processes_burn_is_not_said_to_be_the_others() -> None:
    watch = machine.Watch()
    before = machine.tree_cpu_seconds(os.getpid())
    burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        while machine.tree_cpu_seconds(os.getpid()) - before < 0.3:
            time.sleep(0.02)
    finally:
        burner.kill()
        burner.wait()
    assert machine.tree_cpu_seconds(os.getpid()) - before >= 0.3
    assert watch.others() >= 0.0


def test_more_cores_than_there_are_cannot_be_bound() -> None:
    with pytest.raises(ValueError, match="there are"):
        machine.bind(10_000)


def test_the_roles_of_processes_are_told_by_their_commands() -> None:
    supervisor, fork_server = b"python -m durablestack.supervisor jobs", b"python -c from multiprocessing.forkserver"
    assert role_of(b"python -I supervisor/guard.py 5 6", supervisor) is Role.GUARD
    assert role_of(fork_server, supervisor) is Role.FORK_SERVER
    assert role_of(fork_server, fork_server) is Role.CHILD
    assert role_of(b"python -c from multiprocessing.spawn import spawn_main", supervisor) is Role.CHILD
    assert role_of(b"python -c from multiprocessing.resource_tracker", supervisor) is Role.FORK_SERVER


def test_memory_is_read_in_bytes() -> None:
    assert rollup("55aa-66bb ---p [rollup]\nRss:  20 kB\nPss_Dirty: 3 kB\n") == {"Rss": 20_480, "Pss_Dirty": 3_072}


def test_options_become_variables() -> None:
    options = {"database_url": "sqlite:///x", "sqlite": {"synchronous": "full"}, "batch_size": 5}
    assert variables(options) == {
        "DURABLESTACK__DATABASE_URL": "sqlite:///x",
        "DURABLESTACK__SQLITE__SYNCHRONOUS": "full",
        "DURABLESTACK__BATCH_SIZE": "5",
    }


def test_a_slope_is_that_of_all_values() -> None:
    assert slope([5.0, 5.0, 5.0, 5.0]) == 0.0
    assert slope([1.0, 3.0, 5.0]) == pytest.approx(2.0)


def test_the_overview_takes_the_best_of_each_store_and_leaves_out_what_nobody_measured() -> None:
    found = report.overview({"throughput": record(store="SQLite", job="no-op")})
    assert found.splitlines()[0] == "|  | SQLite |"
    assert found.splitlines()[2:] == ["| no-op runs drained, runs/s | 20.0 |"]


def test_a_chapter_tells_the_spread_and_the_circumstances() -> None:
    text = report.chapter("throughput", record(store="SQLite", job="no-op"))
    assert "| SQLite | no-op | 20.0 (10.0 to 30.0) |" in text
    assert "2 of 4 cores, Python 3.11.7; SQLite 3.40.1; durability: default" in text
    assert "others kept 0.2 cores busy" in text


def test_the_plot_is_svg_with_a_line_for_each_store() -> None:
    lines = [Line("one & all", [(10, 100, 90, 120), (100, 400, 380, 420)]), Line("other", [(10, 50, 50, 50)])]
    tree = ElementTree.fromstring(plot(lines, title="Runs", across="batch_size", up="runs/s"))
    kinds = [element.tag.rpartition("}")[2] for element in tree.iter()]
    assert kinds.count("polyline") == 2
    assert kinds.count("circle") == 3
    numbers = [
        float(number) for number in re.findall(r'(?:cx|cy|x|y)\d?="([\d.]+)"', plot(lines, title="", across="", up=""))
    ]
    assert all(0 <= number <= 720 for number in numbers)


@pytest.mark.parametrize(("greatest", "step"), [(6.0, 1.0), (7.0, 2.0), (45_000, 10_000), (0.9, 0.2), (0, 1.0)])
def test_steps_are_round_numbers(greatest: float, step: float) -> None:
    assert tick_step(greatest) == pytest.approx(step)


def test_names_at_the_ends_of_lines_do_not_cover_each_other() -> None:
    assert apart([10.0, 12.0, 50.0, 11.0], 16) == [10.0, 42.0, 58.0, 26.0]


def test_every_benchmark_says_what_it_measures() -> None:
    found = {listing.script_name(script): listing.first_paragraph(script) for script in listing.scripts()}
    assert {"throughput", "cpu_bound", "memory", "restart", "batch_sizes", "recovery", "chaos"} <= found.keys()
    assert "harness" not in found
    assert all(found.values())


def test_every_benchmark_of_the_harness_goes_into_the_results() -> None:
    names = {listing.script_name(script) for script in listing.scripts() if listing.writes_results(script)}
    assert {"throughput", "cpu_bound", "memory", "restart"} <= names
    assert {module for module, *_ in listing.VARIANTS.values()} <= names
    assert names >= listing.ALL_CORES


def test_benchmarks_are_listed_without_being_imported() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "benchmarks"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert "benchmarks.throughput" in result.stdout
    assert "durablestack" not in {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}


def test_the_first_paragraph_is_one_line() -> None:
    assert first_paragraph("Says\n    what it is.\n\nAnd more.") == "Says what it is."
