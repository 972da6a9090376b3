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
AT_ONCE, LATER = "residue.found_between(0)", "residue.found_between(time.perf_counter() + 0.001)"
LOOKS = ["residue.found", AT_ONCE, LATER]

AFTER = """
found = {look}
assert residue.found == found, "to look leaves it as it is"
print(*found, sep=", ", file=sys.__stdout__, flush=True)
end_descendants(os.getpid(), 0)
os._exit(0)
"""


def found(left: str, before: str = "", look: str = "residue.found") -> str:
    """What is found after the lines of Python that are `left`, by a process that began with those `before`."""
    program = "".join(map(textwrap.dedent, (BEFORE, before, READY, left, AFTER.format(look=look))))
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, start_new_session=True
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


@pytest.mark.parametrize("look", LOOKS)
def test_nothing_is_found_where_nothing_was_left(look: str) -> None:
    assert found("pass", look=look) == ""


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
    assert found(left, look=AT_ONCE) == "processes"


@pytest.mark.parametrize("look", LOOKS)
def test_a_process_that_was_there_before_may_stay(look: str) -> None:
    assert found("pass", before=SLEEPS, look=look) == ""
    assert found("subprocess.run(['true'])", before=SLEEPS, look=look) == ""


@pytest.mark.parametrize("look", LOOKS)
def test_a_process_that_was_there_before_hides_no_other_and_is_missed(look: str) -> None:
    assert found("another = subprocess.Popen(['sleep', '60'])", before=SLEEPS, look=look) == "processes"
    assert found("process.kill(); process.wait()", before=SLEEPS, look=look) == "processes"


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


@pytest.mark.parametrize("look", LOOKS)
def test_a_umask_is_found_and_left_as_it_is(look: str) -> None:
    assert found("os.umask(0o077)", look=look) == "umask"
    assert found(f"os.umask(0o077); {look}; assert os.umask(0) == 0o077; os.umask(0o022)", look=look) == ""


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
    "standard streams": "sys.stderr.close()",
    "threads": "threading.Thread(target=time.sleep, args=(60,)).start()",
    "event loop": "runner.get_loop().close()",
    "folder": "os.chdir('/proc')",
    "sys.path": "sys.path.append('/nowhere')",
    "locale": "import locale; locale.setlocale(locale.LC_ALL, 'C')",
    "socket timeout": "import socket; socket.setdefaulttimeout(5)",
    "clocks": "time.time = lambda: 0.0",
}

LEFT_DEARER = {
    "real-time signals": "signal.signal(signal.SIGRTMIN + 1, lambda *_: None)",
    "resource limits": "resource.setrlimit(number := resource.RLIMIT_NOFILE, (64, resource.getrlimit(number)[1]))",
    "descriptors": "os.dup2(os.open('/dev/null', os.O_WRONLY), 2)",
}


@pytest.mark.parametrize("what", LEFT)
@pytest.mark.parametrize("look", LOOKS)
def test_what_is_not_as_it_was_is_named(what: str, look: str) -> None:
    assert found(LEFT[what], look=look) == what


@pytest.mark.parametrize("what", LEFT_DEARER)
def test_what_takes_a_closer_look_is_named_a_millisecond_later_or_when_nothing_follows(what: str) -> None:
    for look in ("residue.found", LATER):
        assert found(LEFT_DEARER[what], look=look) == what
    left = f"""
    {LEFT_DEARER[what]}
    assert {AT_ONCE} == ()
    """
    assert found(left, look=LATER) == what


@pytest.mark.parametrize("look", ["residue.found", "residue.found_between(now)"])
def test_whoever_has_just_looked_at_all_need_not_look_so_closely(look: str) -> None:
    left = f"""
    time.sleep(0.002)
    now = time.perf_counter()
    assert {look} == ()
    {LEFT_DEARER["descriptors"]}
    assert residue.found_between(now) == ()
    """
    assert found(left, look=LATER) == "descriptors"


def test_what_may_stay_asks_for_one_close_look() -> None:
    left = f"""
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    {LEFT_DEARER["descriptors"]}
    assert {AT_ONCE} == ("descriptors",)
    residue.forgive()
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    assert {AT_ONCE} == ()
    os.dup2(os.open("/dev/zero", os.O_WRONLY), 2)
    assert {AT_ONCE} == ()
    """
    assert found(left, look=LATER) == "descriptors"


HOSTILE = {
    "an environment that is none": "os.environ = None",
    "a stream that is equal to all": "sys.stdout = type('Equal', (), {'__eq__': lambda *_: True, 'closed': False})()",
    "a stream that cannot be asked": "sys.stdout = type('Mute', (), {'closed': property(lambda _: 1 / 0)})()",
    "a path that is none": "sys.path = None",
    "a folder that ends the process": "os.getcwd = sys.exit",
    "a timer that is mute": "signal.getitimer = lambda _: None",
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("look", LOOKS)
def test_what_is_put_in_the_place_of_what_is_looked_at_is_found(hostile: str, look: str) -> None:
    assert found(hostile, look=look) != ""


@pytest.mark.parametrize("look", ["residue.found", LATER])
def test_threads_that_cannot_be_told_are_found_by_a_closer_look(look: str) -> None:
    assert found("threading.enumerate = lambda: 1 / 0", look=look) == "what raises ZeroDivisionError"


def test_the_handler_of_each_signal_that_can_have_one_is_looked_at() -> None:
    left = """
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        before = signal.signal(number, lambda *_: None)
        what = "real-time signals" if number >= signal.SIGRTMIN else "signal handlers"
        assert residue.found == (what,), number
        signal.signal(number, before)
    """
    assert found(left) == ""


@pytest.mark.parametrize("look", LOOKS)
def test_what_was_changed_and_put_back_is_not_found(look: str) -> None:
    left = f"""
    home, handler = os.environ.pop("HOME"), signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    assert {look} == ("signal handlers", "environment")
    os.environ["HOME"] = home
    signal.signal(signal.SIGUSR1, handler)
    """
    assert found(left, look=look) == ""


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
    for look in LOOKS:
        assert found("with residue.expected(): os.environ['HOME'] = '/nowhere'; os.umask(0o077)", look=look) == ""
    left = """
    os.umask(0o077)
    with residue.expected():
        os.environ["HOME"] = "/nowhere"
    """
    assert found(left) == "environment, umask"
