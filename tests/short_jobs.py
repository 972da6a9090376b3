"""Jobs of milliseconds, many of which are on their way to a child at once; and what some of them do all the same.

Each is told where to write down that it began: a supervisor inside a test shares its fork server with other tests.
"""

import asyncio
import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from uuid import UUID

from msgspec import Struct

from durablestack import DurableStack, JobContext, NoRetry, durable_job
from durablestack.supervisor import residue

stack = DurableStack(__name__)

MEBIBYTE = 1_048_576
KEPT: list[bytearray] = []
LIBC = ctypes.CDLL(None)
LIBC_WITH_THE_GIL = ctypes.PyDLL(None)


class Work(Struct):
    """`diary` is the file to note in."""

    diary: str
    what: str = ""
    seconds: float = 0.0


def note(work: Work, context: JobContext, what: str) -> None:
    """One line, written at once: it is there even if the process dies in the next moment."""
    at = time.clock_gettime(time.CLOCK_BOOTTIME)
    fd = os.open(work.diary, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{context.run_id} {context.attempt} {what} {os.getpid()} {at:.3f}\n".encode())
    os.close(fd)


# --- that do their work


@durable_job(name="short", max_attempts=3)
def short(work: Work, context: JobContext) -> None:
    note(work, context, "start")
    time.sleep(work.seconds)


@durable_job(name="short-last-attempt", max_attempts=1)
def short_last_attempt(work: Work, context: JobContext) -> None:
    note(work, context, "start")


@durable_job(name="short-fresh", max_attempts=3, fresh_process_per_run=True)
def short_fresh(work: Work, context: JobContext) -> None:
    note(work, context, "start")


@durable_job(name="short-and-keeps-memory", max_attempts=3)
def short_and_keeps_memory(work: Work, context: JobContext) -> None:
    KEPT.append(bytearray(b"x") * MEBIBYTE)
    note(work, context, "start")


@durable_job(name="measures", max_attempts=3)
def measures(work: Work, context: JobContext) -> None:
    note(work, context, f"{len(work.what)}-{hash_of(work.what)}")


def hash_of(text: str) -> int:
    return sum(text.encode()) % 65_521


# --- that write


WAYS_TO_WRITE = ("print", "descriptor", "stdio", "nothing", "kilobytes", "no-utf-8", "both", "echo", "more-than-a-pipe")


def what_is_written(way: str, run_id: UUID) -> tuple[bytes, bytes]:
    """To standard output and to standard error."""
    text = f"{way} of {run_id}\n".encode()
    match way:
        case "nothing":
            return b"", b""
        case "kilobytes":
            return text * 60, b""
        case "no-utf-8":
            return b"\xff\xfe\x80 " + text, b"\xc3"
        case "both":
            return text, b"error " + text
        case "more-than-a-pipe":
            return text * (102_400 // len(text)), b""
        case _:
            return text, b""


@durable_job(name="writes", max_attempts=3)
def writes(work: Work, context: JobContext) -> None:
    stdout, stderr = what_is_written(work.what, context.run_id)
    match work.what:
        case "nothing":
            pass
        case "print":
            print(stdout.decode(), end="")
        case "stdio":
            LIBC.fputs(stdout, ctypes.c_void_p.in_dll(LIBC, "stdout"))
            LIBC.fflush(None)
        case "echo":
            subprocess.run(["echo", stdout.decode().strip()], check=True)
        case "both":
            sys.stderr.write(stderr.decode())
            sys.stdout.write(stdout.decode())
        case _:
            for fd, rest in ((1, stdout), (2, stderr)):
                while rest:
                    rest = rest[os.write(fd, rest) :]


NOISE = "noise\n"


@durable_job(name="leaves-a-thread-that-writes", max_attempts=3)
def leaves_a_thread_that_writes() -> None:
    """Whatever is executed here meanwhile."""

    def write() -> None:
        while True:
            os.write(1, NOISE.encode())
            time.sleep(0.0002)

    threading.Thread(target=write, daemon=True).start()


# --- that are not short this time


@durable_job(name="short-as-a-rule", max_attempts=3)
def short_as_a_rule(work: Work, context: JobContext) -> None:
    note(work, context, "start")
    match work.what:
        case "sleeps":
            time.sleep(work.seconds)
        case "is-busy":
            end = time.monotonic() + work.seconds
            while time.monotonic() < end:
                pass
        case "holds-the-gil":
            left = int(work.seconds)
            while left:  # a signal ends it early
                left = LIBC_WITH_THE_GIL.sleep(left)


@durable_job(name="short-limited", max_attempts=2, timeout_seconds=1, retry_initial_delay_seconds=0.05)
def short_limited(work: Work, context: JobContext) -> None:
    note(work, context, "start")
    if context.attempt == 1:
        time.sleep(work.seconds)


# --- that end their process, or leave something in it


@durable_job(name="short-and-may-die", max_attempts=8, crash_limit=3, retry_initial_delay_seconds=0.05)
def short_and_may_die(work: Work, context: JobContext) -> None:
    """Once, or again and again."""
    note(work, context, "start")
    print(f"{context.attempt} of {context.run_id}")
    how, _, again = work.what.partition(" ")
    if context.attempt > 1 and not again:
        return
    match how:
        case "sigkill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            ctypes.string_at(0)
        case "exit":
            os._exit(3)


@durable_job(name="short-and-leaves", max_attempts=3, address_space_limit="4 GiB")
def short_and_leaves(work: Work, context: JobContext) -> None:
    """Nothing is to be here of those before."""
    note(work, context, "start")
    if (found := what_is_left()) != "":
        raise NoRetry(f"found: {found}")
    match work.what:
        case "folder":
            os.chdir("/proc")
        case "environment":
            os.environ["LEFT_BY_A_SHORT_RUN"] = "1"
        case "thread":
            threading.Thread(target=time.sleep, args=(60,)).start()
        case "process":
            subprocess.Popen(["sleep", "60"])
        case "exit":
            raise SystemExit(1)
        case "memory":
            KEPT.append(bytearray(5 * 1024 * MEBIBYTE))


def what_is_left() -> str:
    found = []
    if os.getcwd() == "/proc":
        found.append("folder")
    if "LEFT_BY_A_SHORT_RUN" in os.environ:
        found.append("environment")
    if any(not t.daemon and t is not threading.main_thread() for t in threading.enumerate()):
        found.append("thread")
    try:
        os.waitpid(-1, os.WNOHANG)
        found.append("process")
    except ChildProcessError:
        pass
    return ", ".join(found)


OPEN_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)


@durable_job(name="short-and-limits", max_attempts=3)
def short_and_limits(work: Work, context: JobContext) -> None:
    """What is not looked at after each run, where others follow at once."""
    note(work, context, "start")
    if resource.getrlimit(resource.RLIMIT_NOFILE) != OPEN_FILES:
        raise NoRetry("found another limit")
    match work.what:
        case "limit":
            soft, hard = OPEN_FILES
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
            time.sleep(work.seconds)
        case "looks-seldom":  # only when no run follows
            assert residue._LOOK_CLOSELY_EACH_SECONDS
            residue._LOOK_CLOSELY_EACH_SECONDS = 3_600.0


@durable_job(name="short-and-sends-off-a-daemon", max_attempts=3)
def short_and_sends_off_a_daemon(work: Work, context: JobContext) -> None:
    """In a session of its own, where no signal to our group reaches it."""
    note(work, context, "start")
    if work.what == "daemon":
        with subprocess.Popen(["sleep", "60"], start_new_session=True) as daemon:
            note(work, context, f"daemon-{daemon.pid}")
            daemon.returncode = 0  # nobody waits for it


@durable_job(name="short-and-fails", max_attempts=3, retry_initial_delay_seconds=0.05)
def short_and_fails(work: Work, context: JobContext) -> None:
    """At its first attempt, if it is to, after so much CPU time."""
    note(work, context, "start")
    print(f"{context.attempt} of {context.run_id}")
    if work.what == "fails" and context.attempt == 1:
        end = time.process_time() + work.seconds
        while time.process_time() < end:
            pass
        raise ValueError(f"{context.run_id} is wrong")


@durable_job(name="short-async", max_attempts=3)
async def short_async(work: Work, context: JobContext) -> None:
    note(work, context, "start")
    await asyncio.sleep(work.seconds)
    print(f"{context.attempt} of {context.run_id}")
