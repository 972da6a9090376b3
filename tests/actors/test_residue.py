"""What a run has left in its child is found, whichever way is taken to look: each time in a process made for it.

What a child then does is in `supervisor/test_recycling`.
"""

import platform
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")

BEFORE = """
import asyncio, ctypes, os, resource, signal, subprocess, sys, threading, time
from durablestack.supervisor.residue import Residue
from durablestack.supervisor.usage import end_descendants

libc = ctypes.CDLL(None)
libc.prctl(36, 1)  # as in a child, orphans are ours
os.umask(0o022)
"""
READY = """
runner = asyncio.Runner()
residue = Residue(runner)
assert not residue.found
"""
AFTER = """
found = residue.found
assert residue.found == found, "to look leaves it as it is"
print(*found, sep=", ", file=sys.__stdout__, flush=True)
end_descendants(os.getpid(), 0)
os._exit(0)
"""


def found(left: str, before: str = "") -> str:
    """What is found after the lines of Python that are `left`, by a process that began with those `before`."""
    program = "".join(map(textwrap.dedent, (BEFORE, before, READY, left, AFTER)))
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, start_new_session=True
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def test_nothing_is_found_where_nothing_was_left() -> None:
    assert found("pass") == ""


# --- processes

SLEEPS = "process = subprocess.Popen(['sleep', '60'])"
CLONE = {"x86_64": 56, "aarch64": 220}.get(platform.machine())

PROCESSES = {
    "one that runs": SLEEPS,
    "one in a session of its own": "process = subprocess.Popen(['sleep', '60'], start_new_session=True)",
    "one that is stopped": f"""
        {SLEEPS}
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        """,
    "one that has ended, and nobody has waited for": """
        process = subprocess.Popen(["true"])
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        """,
    "one whose parent is gone": """
        if (between := os.fork()) == 0:
            if os.fork() == 0:
                time.sleep(60)
            os._exit(0)
        os.waitpid(between, 0)
        """,
    "one that ended after its parent": """
        if (between := os.fork()) == 0:
            if os.fork() == 0:
                os._exit(0)
            os._exit(0)
        os.waitpid(between, 0)
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        """,
    "one that another thread has started": f"""
        started, forever = threading.Event(), threading.Event()
        def start():
            {SLEEPS}
            started.set()
            forever.wait()
        threading.Thread(target=start, daemon=True).start()
        started.wait()
        """,
    "one that sends no SIGCHLD": f"""
        if libc.syscall({CLONE}, 0, 0, 0, 0, 0) == 0:
            signal.pause()
        """,
}


@pytest.mark.parametrize("left", PROCESSES.values(), ids=PROCESSES)
def test_a_process_is_found(left: str) -> None:
    if CLONE is None and "libc.syscall" in left:
        pytest.skip(f"the number of clone is not known on {platform.machine()}")
    assert found(left) == "processes"


def test_a_process_that_was_there_before_may_stay() -> None:
    assert found("pass", before=SLEEPS) == ""
    assert found("subprocess.run(['true'])", before=SLEEPS) == ""


def test_a_process_that_was_there_before_hides_no_other_and_is_missed() -> None:
    assert found("another = subprocess.Popen(['sleep', '60'])", before=SLEEPS) == "processes"
    assert found("process.kill(); process.wait()", before=SLEEPS) == "processes"


def test_to_look_takes_no_exit_status_away() -> None:
    left = """
    process = subprocess.Popen(["sh", "-c", "exit 3"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert residue.found == ("processes",)
    assert process.wait() == 3
    """
    assert found(left) == ""


# --- the umask

WRITER = """
folder = {folder!r}
modes, begun, over = set(), threading.Event(), threading.Event()
def write():
    number = 0
    while not over.is_set():
        path = f"{{folder}}/{{number}}"
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o666))
        modes.add(os.stat(path).st_mode & 0o777)
        os.unlink(path)
        number += 1
        if number == 10:
            begun.set()
writer = threading.Thread(target=write)
writer.start()
begun.wait()
sys.setswitchinterval(1e-6)
"""


def test_a_umask_is_found_and_left_as_it_is() -> None:
    assert found("os.umask(0o077)") == "umask"
    assert found("os.umask(0o077); residue.found; assert os.umask(0) == 0o077; os.umask(0o022)") == ""


def test_another_thread_that_writes_files_meets_no_other_umask_while_it_is_looked_at(tmp_path: Path) -> None:
    left = f"""
    {textwrap.indent(WRITER.format(folder=str(tmp_path)), "    ").strip()}
    for _ in range(20_000):
        residue.found
    over.set()
    writer.join()
    assert modes == {{0o644}}, modes
    """
    assert found(left) == ""


def test_nor_when_a_run_that_has_changed_it_makes_a_service(tmp_path: Path) -> None:
    left = f"""
    os.umask(0o077)
    {textwrap.indent(WRITER.format(folder=str(tmp_path)), "    ").strip()}
    for _ in range(1_000):
        with residue.expected():
            pass
    over.set()
    writer.join()
    assert modes == {{0o600}}, modes
    """
    assert found(left) == "umask"


# --- the rest

LEFT = {
    "environment": "os.environ['HOME'] = '/nowhere'",
    "signal handlers": "signal.signal(signal.SIGUSR1, lambda *_: None)",
    "timer": "signal.setitimer(signal.ITIMER_REAL, 3600)",
    "recursion limit": "sys.setrecursionlimit(sys.getrecursionlimit() + 1)",
    "descriptors": "os.dup2(os.open('/dev/null', os.O_WRONLY), 2)",
    "standard streams": "sys.stderr.close()",
    "threads": "threading.Thread(target=time.sleep, args=(60,)).start()",
    "event loop": "runner.get_loop().close()",
    "folder": "os.chdir('/proc')",
}


@pytest.mark.parametrize("what", LEFT)
def test_what_is_not_as_it_was_is_named(what: str) -> None:
    assert found(LEFT[what]) == what


def test_what_was_changed_and_put_back_is_not_found() -> None:
    left = """
    home, handler = os.environ.pop("HOME"), signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    assert residue.found == ("signal handlers", "environment")
    os.environ["HOME"] = home
    signal.signal(signal.SIGUSR1, handler)
    """
    assert found(left) == ""


def test_each_limit_is_looked_at() -> None:
    left = """
    for number in {getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}:
        soft, hard = resource.getrlimit(number)
        lower = 2**40 if soft == resource.RLIM_INFINITY else max(0, soft - 1)
        if lower != soft:
            resource.setrlimit(number, (lower, hard))
            assert residue.found == ("resource limits",), number
            resource.setrlimit(number, (soft, hard))
    """
    assert found(left) == ""


def test_what_is_made_for_good_is_forgiven_but_not_what_was_left_before() -> None:
    assert found("with residue.expected(): os.environ['HOME'] = '/nowhere'; os.umask(0o077)") == ""
    left = """
    os.umask(0o077)
    with residue.expected():
        os.environ["HOME"] = "/nowhere"
    """
    assert found(left) == "environment, umask"
