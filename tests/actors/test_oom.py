"""Which death the kernel's lack of memory explains, and where its counter stands."""

from pathlib import Path

import pytest
from parts import Clock

from durablestack.supervisor.oom import OomKills, find_counter


class Kernel:
    """A counter, as the kernel shows it."""

    def __init__(self, folder: Path) -> None:
        self.counter = folder / "memory.events"
        self.clock = Clock()
        self.has_killed(0)
        self.kills = OomKills(self.counter, self.clock)

    def has_killed(self, count: int) -> None:
        self.counter.write_text(f"low 0\nhigh 0\nmax 12\noom 1\noom_kill {count}\noom_group_kill 0\n")

    def goes_on(self, seconds: float) -> None:
        """While the watch looks, a few times a second."""
        for _ in range(round(seconds * 4)):
            self.clock.now += 0.25
            self.kills.look()


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


def test_each_kill_explains_one_death(kernel: Kernel) -> None:
    assert not kernel.kills.explain_one()
    kernel.has_killed(2)
    assert [kernel.kills.explain_one() for _ in range(3)] == [True, True, False]


def test_a_process_may_need_a_while_to_be_gone(kernel: Kernel) -> None:
    kernel.goes_on(60)
    kernel.has_killed(1)
    kernel.goes_on(5)
    assert kernel.kills.explain_one()


def test_a_kill_that_is_long_past_explains_nothing(kernel: Kernel) -> None:
    kernel.has_killed(1)
    kernel.goes_on(11)
    assert not kernel.kills.explain_one()
    kernel.has_killed(2)
    assert [kernel.kills.explain_one() for _ in range(2)] == [True, False]


def test_where_nothing_counts_nothing_is_explained(tmp_path: Path) -> None:
    kills = OomKills(tmp_path / "absent")
    kills.look()
    assert not kills.explain_one()


@pytest.mark.parametrize(
    ("kind", "options", "cgroup", "root", "file"),
    [
        ("cgroup2", "rw", "0::/app.slice/worker", "/", "app.slice/worker/memory.events"),
        ("cgroup2", "rw", "0::/", "/", "memory.events"),
        ("cgroup", "rw,memory", "4:memory:/pods/one", "/", "pods/one/memory.oom_control"),
        ("cgroup", "rw,memory", "4:cpu,memory:/docker/abc", "/docker/abc", "memory.oom_control"),
    ],
)
def test_the_counter_of_our_control_group_is_found(
    tmp_path: Path, kind: str, options: str, cgroup: str, root: str, file: str
) -> None:
    mount, proc = tmp_path / "mount", tmp_path / "proc"
    counter = mount / file
    counter.parent.mkdir(parents=True)
    counter.write_text("under_oom 0\noom_kill 7\n")
    proc.mkdir()
    (proc / "cgroup").write_text(f"9:name=systemd:/\n{cgroup}\n")
    other, ours = "22 1 0:20 / /proc rw - proc proc rw", f"31 23 0:28 {root} {mount} rw shared:1 - {kind} {kind}"
    (proc / "mountinfo").write_text(f"{other}\n{ours} {options}\n")
    assert find_counter(proc) == counter


def test_without_a_group_the_whole_machine_is_asked(tmp_path: Path) -> None:
    assert find_counter(tmp_path) in (Path("/proc/vmstat"), None)
