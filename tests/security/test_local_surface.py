"""What other users of the machine, and what jobs start, can get hold of: files, sockets, descriptors, environments."""

import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest

from durablestack import RunStatus
from durablestack.ids import new_run_id
from durablestack.runs import NewRun
from processes import command_line, descendants, open_files
from workers import Bench, Worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

JOBS = """
import subprocess, sys
from durablestack import durable_job

LOOK = '''
import os
for fd in os.listdir("/proc/self/fd"):
    if os.path.lexists(f"/proc/self/fd/{fd}"):
        print(fd, os.readlink(f"/proc/self/fd/{fd}"))
'''

@durable_job(name="starts-a-program")
def starts_a_program() -> None:
    subprocess.run([sys.executable, "-c", LOOK], close_fds=False, check=True)
"""


class Surface(NamedTuple):
    bench: Bench
    worker: Worker
    temporary: Path

    @property
    def family(self) -> list[int]:
        return [self.worker.pid, *descendants(self.worker.pid)]


@pytest.fixture
def surface(tmp_path: Path, make_bench: Callable[..., Bench], request: pytest.FixtureRequest) -> Iterator[Surface]:
    """A supervisor whose temporary files are in a folder of their own, and nobody masks their modes."""
    (tmp_path / "surface_jobs.py").write_text(JOBS)
    made = make_bench()
    before = os.umask(0)
    with TemporaryDirectory(prefix="ds") as folder:  # a path that is not too long for a socket
        try:
            method = getattr(request, "param", "forkserver")
            settings = {"TMPDIR": folder, "DURABLESTACK__START_METHOD": method}
            worker = made.worker(target="surface_jobs", settings=settings)
        finally:
            os.umask(before)
        worker.until_ready(children=1)
        yield Surface(made, worker, Path(folder))
        worker.close()


def sockets_in_files(pids: list[int]) -> list[Path]:
    """Those that any of these processes has, with a name in the file system or in the abstract name space."""
    inodes = set(re.findall(r"socket:\[(\d+)\]", "\n".join(path for pid in pids for path in open_files(pid))))
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return [Path(line[7]) for line in lines if len(line) > 7 and line[6] in inodes]


@pytest.mark.parametrize("surface", ["forkserver", "spawn"], indirect=True)
def test_no_other_user_can_reach_a_file_or_a_socket_of_ours(surface: Surface) -> None:
    """Multiprocessing's fork server listens in a folder that is its user's alone."""
    temporary = surface.temporary
    for found in sockets_in_files(surface.family):
        assert not str(found).startswith("@"), "an abstract name is open to everybody"
        assert found.is_relative_to(temporary)
    for path in temporary.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        closed = [each for each in (path, *path.parents) if not stat.S_IMODE(each.stat().st_mode) & 0o077]
        assert any(each.is_relative_to(temporary) for each in closed), f"{path} has mode {mode:o}"
    surface.worker.terminate()
    assert surface.worker.exit_code() == 0
    assert list(temporary.rglob("*")) == [], "nothing is left"


def test_what_a_job_executes_has_no_way_to_the_supervisor(surface: Surface) -> None:
    """Though it asks to inherit all that can be inherited."""
    run = NewRun(id=new_run_id(), job_name="starts-a-program")
    surface.bench.stack.store.enqueue([run])
    ended = surface.bench.until(run.id, RunStatus.SUCCEEDED)
    inherited = [line.split(" ", 1) for line in (ended.stdout_tail or "").splitlines()]
    assert {int(fd) for fd, _ in inherited} >= {0, 1, 2}
    others = [
        f"{fd} {what}" for fd, what in inherited if int(fd) > 2 and not what.startswith(("/proc/", "/dev/urandom"))
    ]
    assert others == []


def test_no_command_line_and_not_the_guard_knows_where_the_database_is(surface: Surface) -> None:
    pids = surface.family
    assert len(pids) >= 3
    for pid in pids:
        assert b"runs.db" not in command_line(pid)
    (guard,) = [pid for pid in pids if b"guard.py" in command_line(pid)]
    assert b"DURABLESTACK__" not in Path(f"/proc/{guard}/environ").read_bytes()
