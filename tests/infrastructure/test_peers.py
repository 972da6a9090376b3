"""What the comparison with other job systems is made of: its arithmetic, what it reads, and one contender at work."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

sys.path.append(str(Path(__file__).parent.parent.parent))  # benchmarks are not installed

from benchmarks.bench import Store
from benchmarks.peers.performance.contenders import CONTENDERS, DURABLESTACK, OURS, PACKAGES, Contender
from benchmarks.peers.performance.crew import NotMeasured, crew_of
from benchmarks.peers.performance.footprint import (
    own_seconds,
    proportional_set_size,
    session_of,
    tree_memory,
    tree_seconds,
)
from benchmarks.peers.performance.places import Servers
from benchmarks.peers.performance.ratios import multiples, ratio_table, ratios, reference_of
from benchmarks.peers.performance.redis import redis_server
from benchmarks.peers.performance.scenarios import (
    LOOK_SECONDS_MAX,
    LOOK_SECONDS_MIN,
    UNITS,
    Load,
    drain,
    latency,
    look_again_after,
)
from benchmarks.peers_performance import main
from benchmarks.records import Case, decoded
from processes import descendants, still_running
from servers import ServerFailed

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what processes use is read from Linux's /proc")

BURN = "import time; began = time.process_time()\nwhile time.process_time() - began < 0.3: pass\n"
SQLITE = Servers({"SQLite": Store(name="SQLite", options={})}, redis=None)


def case(package: str, store: str, settings: str = "best", drained: tuple[float | None, ...] = ()) -> Case:
    labels = {"package": package, "store": store, "settings": settings}
    return Case(labels, {"drain": list(drained)}, [])


OURS_ON_POSTGRES = case("this project", "PostgreSQL", drained=(100.0, 200.0, None))
OURS_ON_SQLITE = case("this project", "SQLite", drained=(50.0,))


@contextmanager
def python(program: str) -> Iterator[subprocess.Popen[str]]:
    """A process that runs this, and then waits for us after it has said a word."""
    code = f"{program}\nprint('ready', flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.communicate("\n")


def test_the_cpu_time_of_a_family_counts_children_that_live() -> None:
    program = (
        f"import subprocess, sys\nchild = subprocess.Popen([sys.executable, '-c', {BURN!r} + 'print(1, flush=True)\\n"
    )
    program += "input()'], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\nchild.stdout.readline()"
    with python(program) as process:
        assert descendants(process.pid)
        assert tree_seconds(process.pid) >= 0.29
        assert own_seconds(process.pid) < tree_seconds(process.pid) - 0.25


def test_the_cpu_time_of_a_family_counts_children_that_have_ended() -> None:
    with python(f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN!r}])") as process:
        assert not descendants(process.pid)
        assert tree_seconds(process.pid) >= 0.29
        assert own_seconds(process.pid) < tree_seconds(process.pid) - 0.25


def test_the_cpu_time_of_a_process_counts_threads_that_have_ended() -> None:
    program = f"import threading\nthread = threading.Thread(target=exec, args=({BURN!r}, dict()))\n"
    with python(program + "thread.start(); thread.join()") as process:
        assert own_seconds(process.pid) >= 0.29


def test_a_session_has_its_orphans_too() -> None:
    program = "import subprocess, sys\nchild = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=0)\n"
    with subprocess.Popen(
        [sys.executable, "-c", f"{program}print(child.pid, flush=True)"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as leader:
        assert leader.stdout is not None
        orphan = int(leader.stdout.readline())
        leader.wait()
        assert orphan in session_of(leader.pid)
        leader.communicate("\n")


def test_memory_is_the_proportional_part_of_shared_pages() -> None:
    assert proportional_set_size("Rss:      900 kB\nPss:      12 kB\nPss_Anon:   7 kB\n") == 12 * 1024
    assert proportional_set_size("") == 0
    assert tree_memory(os.getpid()) > 2**20


def test_the_store_is_looked_at_when_half_of_the_rest_has_gone() -> None:
    assert look_again_after(0.1, queued=1_000, left=500) == pytest.approx(0.05)
    assert look_again_after(5.0, queued=1_000, left=500) == LOOK_SECONDS_MAX
    assert look_again_after(5.0, queued=1_000, left=0) == LOOK_SECONDS_MIN
    assert look_again_after(0.0, queued=1_000, left=1_000) == LOOK_SECONDS_MIN


def test_a_contender_is_compared_with_us_on_its_own_store() -> None:
    cases = [OURS_ON_POSTGRES, OURS_ON_SQLITE, case("this project", "SQLite", "defaults")]
    assert reference_of(case("huey", "SQLite"), cases) is OURS_ON_SQLITE
    assert reference_of(case("pgqueuer", "PostgreSQL", "defaults"), cases) is OURS_ON_POSTGRES


def test_where_we_have_no_such_store_it_is_compared_with_us_on_postgres() -> None:
    assert reference_of(case("rq", "Redis 7"), [OURS_ON_SQLITE, OURS_ON_POSTGRES]) is OURS_ON_POSTGRES
    assert reference_of(case("rq", "Redis 7"), [OURS_ON_SQLITE]) is None


def test_multiples_are_of_the_same_turn() -> None:
    theirs = case("pgqueuer", "PostgreSQL", drained=(50.0, None, 70.0))
    assert multiples(theirs, OURS_ON_POSTGRES) == {"drain": [0.5]}
    assert multiples(case("pgqueuer", "PostgreSQL", drained=(None, None, None)), OURS_ON_POSTGRES) == {}


def test_the_table_has_everybody_but_what_all_are_compared_with() -> None:
    cases = [OURS_ON_POSTGRES, case("pgqueuer", "PostgreSQL", drained=(50.0, 50.0, 50.0)), case("rq", "Redis 7")]
    cases[2].figures["drain"].extend((None, None, None))
    table = ratio_table(cases, {"drain": "jobs/s"})
    assert [[*column.cells] for column in table.columns] == [
        ["pgqueuer", "rq"],
        ["PostgreSQL", "Redis 7"],
        ["best", "best"],
        ["0.375 (0.250 to 0.500)", "-"],
    ]


def test_what_goes_to_json_says_what_it_is_a_multiple_of() -> None:
    rows = ratios([OURS_ON_SQLITE, case("huey", "SQLite", drained=(25.0,)), case("rq", "Redis 7", drained=(1.0,))])
    assert [row["multiples"] for row in rows] == [{"drain": [1.0]}, {"drain": [0.5]}]
    assert rows[1]["against"] == OURS_ON_SQLITE.labels


def test_every_package_is_pinned_and_has_an_adapter_that_names_its_documentation() -> None:
    for package in PACKAGES.values():
        assert package.pins
        assert all("==" in pin for pin in package.pins)
        assert "ettings" in package.adapter.read_text().partition('"""')[2].partition('"""')[0]
    assert DURABLESTACK.adapter.exists()


def test_no_row_is_there_twice_and_we_are_at_our_best_on_each_store() -> None:
    rows = [(each.package.name, each.store, each.settings) for each in CONTENDERS]
    assert len(rows) == len(set(rows))
    assert {store for name, store, settings in rows if (name, settings) == ("ours", "best")} == {
        "PostgreSQL",
        "MySQL",
        "SQLite",
    }


def test_redis_answers_and_is_gone_in_the_end() -> None:
    if shutil.which("redis-server") is None:
        pytest.skip("there is no redis-server (package redis-server): what talks to one was not examined")
    with redis_server() as redis:
        assert redis.version.partition(".")[0].isdigit()
        assert redis.ask("rpush queue a b") == "2"
        assert redis.ask("get nothing") == ""
        assert "aof_enabled:1" in redis.ask("info persistence")
        with pytest.raises(ServerFailed, match="WRONGTYPE"):
            redis.ask("hlen queue")
    assert not still_running(redis.pid)


def test_a_contender_drains_its_queue_and_nobody_is_left() -> None:
    before = descendants(os.getpid())
    with crew_of(Contender(DURABLESTACK, "SQLite", "best", OURS), SQLITE, children=2) as crew:
        figures = drain(crew, Load(runs=60))
        assert crew.not_done() == 0
    assert figures["drain"] > 0
    assert figures["worker_cpu"] >= figures["parent_cpu"] > 0
    assert descendants(os.getpid()) <= before


def test_nobody_is_left_when_the_comparison_is_killed(tmp_path: Path) -> None:
    program = """
import sys, time
sys.path += [{root!r}, {root!r} + "/tests"]
from benchmarks.bench import Store
from benchmarks.peers.performance.contenders import DURABLESTACK, OURS, Contender
from benchmarks.peers.performance.crew import crew_of
from benchmarks.peers.performance.places import Servers
servers = Servers({{"SQLite": Store(name="SQLite", options={{}})}}, redis=None)
with crew_of(Contender(DURABLESTACK, "SQLite", "best", OURS), servers, children=2) as crew, crew.worker() as worker:
    crew.enqueue("tell", 0.0, 2)
    crew.until_noted("latencies", 2, worker)
    print("ready", flush=True)
    time.sleep(600)
"""
    code = program.format(root=str(Path(__file__).parent.parent.parent))
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # its database stays behind
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        family = descendants(process.pid)
        process.kill()
    deadline = time.monotonic() + 60
    while any(map(still_running, family)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(family) >= 4  # the worker, its guard and ours, its children
    assert not [pid for pid in family if still_running(pid)]


def test_a_contender_tells_how_soon_its_jobs_start() -> None:
    with crew_of(Contender(DURABLESTACK, "SQLite", "best", OURS), SQLITE, children=2) as crew:
        figures = latency(crew, Load(latency_seconds=0.5))
    assert 0 < figures["latency_p50"] <= figures["latency_p99"]
    assert figures.keys() <= UNITS.keys()


def test_the_comparison_writes_figures_and_multiples(tmp_path: Path) -> None:
    files = [tmp_path / "figures.json", tmp_path / "ratios.json"]
    few = [
        "--peers=",
        "--no-redis",
        "--stores=sqlite",
        "--scenarios=drain,enqueue",
        "--runs=60",
        "--children=2",
        "--repeat=1",
    ]
    result = CliRunner().invoke(main, [*few, f"--json={files[0]}", f"--ratios={files[1]}"], catch_exceptions=False)
    assert result.exit_code == 0
    (row,) = decoded(files[0].read_bytes()).cases
    assert row.median("drain") > 0
    assert row.median("enqueue_bulk") > 0
    assert [each["multiples"]["drain"] for each in json.loads(files[1].read_text())] == [[1.0]]


def test_a_contender_that_fails_says_why() -> None:
    began = time.monotonic()
    with (
        pytest.raises(NotMeasured, match="nonsense"),
        crew_of(Contender(DURABLESTACK, "SQLite", "nonsense", OURS), SQLITE, children=2),
    ):
        pass
    assert time.monotonic() - began < 60
