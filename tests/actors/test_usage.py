"""What processes use, and which of them a run has started: asked of real processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from durablestack.runs import Usage
from durablestack.supervisor import usage
from durablestack.supervisor.leases import boottime
from processes import still_running
from workers import eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")

MEBIBYTE = 1_048_576

Start = Callable[..., subprocess.Popen[bytes]]


def meter() -> usage.Meter:
    """One that begins now."""
    made = usage.Meter()
    made.begin(time.perf_counter())
    return made


@pytest.fixture
def start() -> Iterator[Start]:
    """Start Python programs that say when they are ready."""
    started: list[subprocess.Popen[bytes]] = []

    def start_one(program: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process

    yield start_one
    for process in started:
        usage.end_descendants(process.pid, 0)
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


WAIT = "print('ready', flush=True); import time; time.sleep(60)"
GROW = f"kept = bytearray(b'x') * (100 * {MEBIBYTE}); {WAIT}"


def test_the_memory_of_a_child_and_of_what_it_started_since_counts(start: Start) -> None:
    family = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {GROW!r}]); import time; time.sleep(60)"
    child = start(family)
    sample = usage.sample(child.pid, 0, (0, 0))
    assert sample is not None
    assert sample.resident_bytes > 100 * MEBIBYTE
    assert (sample.usage.peak_memory_bytes or 0) >= sample.resident_bytes
    later = usage.sample(child.pid, boottime() + 1, (0, 0))  # as if the run had begun after all that
    assert later is not None
    assert later.resident_bytes < 100 * MEBIBYTE


def test_cpu_time_counts_from_where_the_run_began_and_of_those_that_were_waited_for_too(start: Start) -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    child = start(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}]); {WAIT}")
    all_of_it = usage.sample(child.pid, 0, (0, 0))
    assert all_of_it is not None
    assert all_of_it.cpu_seconds >= 0.3
    user, system = all_of_it.usage.user_cpu_seconds or 0, all_of_it.usage.system_cpu_seconds or 0
    rest = usage.sample(child.pid, 0, (user, system))
    assert rest is not None
    assert rest.cpu_seconds < 0.2


def test_there_is_nothing_to_tell_of_a_process_that_is_gone(start: Start) -> None:
    child = start(WAIT)
    child.kill()
    eventually(lambda: not still_running(child.pid))
    assert usage.sample(child.pid, 0, (0, 0)) is None  # it is still there to be waited for
    child.wait()
    assert usage.look(child.pid) is None
    assert usage.status(child.pid) == b""


def test_descendants_are_ended_wherever_they_went_but_not_what_was_there_before(start: Start) -> None:
    deeper = f"import subprocess; subprocess.Popen(['sleep', '60'], start_new_session=True); {WAIT}"
    starts = f"subprocess.Popen([sys.executable, '-c', {deeper!r}], start_new_session=True)"
    child = start(f"import subprocess, sys; {starts}; import time; time.sleep(60)")
    family = [*usage.children(child.pid)]
    family += [*usage.children(family[0])]
    assert len(family) == 2
    assert usage.end_descendants(child.pid, boottime() + 1) == 0
    assert all(map(still_running, family))
    assert usage.end_descendants(child.pid, 0) == 2
    eventually(lambda: not any(map(still_running, family)))
    assert still_running(child.pid)


def test_the_state_of_a_process_is_told(start: Start) -> None:
    child = start(WAIT)
    child.send_signal(signal.SIGSTOP)
    eventually(lambda: (process := usage.look(child.pid)) is not None and process.state == "T")


def test_a_meter_tells_the_peak_and_the_cpu_time_of_what_came_after_it() -> None:
    block = bytearray(b"x") * (200 * MEBIBYTE)
    del block
    begun = meter()
    block = bytearray(b"x") * (50 * MEBIBYTE)
    use_cpu_seconds(0.1)
    del block
    used = begun.read()
    now = usage.look(os.getpid())
    assert now is not None
    grown_bytes = (used.peak_memory_bytes or 0) - now.resident_bytes
    assert 40 * MEBIBYTE < grown_bytes < 150 * MEBIBYTE
    assert cpu_seconds(used) > 0.09


def grown_bytes(used: Usage) -> int:
    now = usage.look(os.getpid())
    assert now is not None
    return (used.peak_memory_bytes or 0) - now.resident_bytes


def test_what_one_run_has_used_does_not_count_for_the_next() -> None:
    for _ in range(3):
        begun = meter()
        assert grown_bytes(begun.read()) < 50 * MEBIBYTE
        block = bytearray(b"x") * (100 * MEBIBYTE)
        del block
        assert grown_bytes(begun.read()) > 90 * MEBIBYTE


def test_what_was_held_counts_no_more_some_time_after_it_was_given_back() -> None:
    block = bytearray(b"x") * (100 * MEBIBYTE)
    meter()
    del block
    eventually(lambda: grown_bytes(meter().read()) < 50 * MEBIBYTE)


def test_nor_where_the_program_that_executed_this_one_had_more_memory() -> None:
    measures = f"""
import time
from durablestack.supervisor import usage
for _ in range(3):
    meter = usage.Meter()
    meter.begin(time.perf_counter())
    before = meter.read().peak_memory_bytes
    block = bytearray(b"x") * (100 * {MEBIBYTE})
    del block
    after = meter.read().peak_memory_bytes
    print(after - before > 90 * {MEBIBYTE})
"""
    executes = f"""
import os, sys
block = bytearray(b"x") * (300 * {MEBIBYTE})
os.execv(sys.executable, [sys.executable, "-c", {measures!r}])
"""
    ended = subprocess.run([sys.executable, "-c", executes], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.split() == ["True"] * 3


def test_runs_that_begin_within_a_millisecond_share_a_beginning_and_later_ones_have_their_own() -> None:
    begun = usage.Meter()
    begun.begin(10.0)
    first = (begun.cpu_before, begun.since)
    use_cpu_seconds(0.05)
    begun.begin(10.0009)
    assert (begun.cpu_before, begun.since) == first
    assert cpu_seconds(begun.read()) > 0.04
    begun.begin(10.0011)
    assert cpu_seconds(begun.read()) < 0.04
    assert first[1] < begun.since <= boottime()
    use_cpu_seconds(0.05)
    assert cpu_seconds(begun.read()) > 0.04, "of a run that takes its time, from its beginning on"


def use_cpu_seconds(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        continue


def cpu_seconds(used: Usage) -> float:
    return (used.user_cpu_seconds or 0) + (used.system_cpu_seconds or 0)


def descriptors_of(name: str) -> list[int]:
    fds = Path("/proc/self/fd")
    return [int(fd) for fd in os.listdir(fds) if os.path.realpath(fds / fd).endswith(name)]


def test_a_meter_writes_to_no_file_that_took_the_place_of_its_own(tmp_path: Path) -> None:
    meter()
    [ours] = descriptors_of("/clear_refs")
    for _ in range(2):
        meter()
    assert descriptors_of("/clear_refs") == [ours]
    os.close(ours)
    with open(tmp_path / "a file of a job", "wb") as opened:
        os.dup2(opened.fileno(), ours)
    try:
        block = bytearray(b"x") * (200 * MEBIBYTE)
        del block
        used = meter().read()
        assert os.fstat(ours).st_size == 0
    finally:
        os.close(ours)
    now = usage.look(os.getpid())
    assert now is not None
    assert (used.peak_memory_bytes or 0) - now.resident_bytes < 100 * MEBIBYTE
    assert len(descriptors_of("/clear_refs")) == 1


def test_of_two_views_each_greater_amount_is_taken() -> None:
    assert usage.most(Usage(1, None, 3.0), Usage(2, None, 1.0)) == Usage(2, None, 3.0)
    assert usage.most(Usage(), Usage(5, 0.0, 0.0)) == Usage(5, 0.0, 0.0)
