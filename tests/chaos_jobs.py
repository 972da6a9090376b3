"""Jobs that behave, and jobs that do what jobs should not. Each writes down that it began, and that it ended."""

import asyncio
import ctypes
import io
import mmap
import multiprocessing
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from msgspec import Struct

from durablestack import DurableStack, JobContext, NoRetry, Retry, durable_job

stack = DurableStack(__name__)

DIARY = Path(os.environ.get("CHAOS_DIARY", "/dev/null"))


def note(context: JobContext, what: str) -> None:
    """One line, written at once: it is there even if the process dies in the next moment."""
    line = f"{context.run_id} {context.attempt} {what} {os.getpid()} {time.clock_gettime(time.CLOCK_BOOTTIME):.3f}\n"
    fd = os.open(DIARY, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, line.encode())
    os.close(fd)


class Seconds(Struct):
    seconds: float


@durable_job(name="innocent")
def innocent(context: JobContext) -> None:
    note(context, "start")
    note(context, "end")


@durable_job(name="sleeps", max_attempts=3)
def sleeps(args: Seconds, context: JobContext) -> None:
    """Does not look whether it should leave."""
    note(context, "start")
    time.sleep(args.seconds)
    note(context, "end")


@durable_job(name="keeps-threads-busy", max_attempts=1)
def keeps_threads_busy(args: Seconds, context: JobContext) -> None:
    """Whoever looks at their stacks from outside reads what changes in that moment."""
    note(context, "start")
    done = threading.Event()

    def count(depth: int) -> None:
        while not done.is_set():
            if depth:
                count(depth - 1)

    threads = [threading.Thread(target=count, args=(20,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(args.seconds)
    done.set()
    for thread in threads:
        thread.join()


@durable_job(name="sets-all-signals-back", max_attempts=1)
def sets_all_signals_back(args: Seconds, context: JobContext) -> None:
    """As libraries do that make a process a daemon."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    note(context, "start")
    time.sleep(args.seconds)


@durable_job(name="slow-at-first", max_attempts=3)
def slow_at_first(context: JobContext) -> None:
    note(context, "start")
    time.sleep(60 if context.attempt == 1 else 0)


@durable_job(name="ticks-at-first", max_attempts=3)
def ticks_at_first(context: JobContext) -> None:
    """So that it can be seen until when it was executed."""
    note(context, "start")
    while context.attempt == 1:
        note(context, "tick")
        time.sleep(0.01)
    note(context, "end")


@durable_job(name="sends-off-a-daemon", max_attempts=1)
def sends_off_a_daemon(context: JobContext) -> None:
    """As the books have it: a child of nobody, in a session of its own."""
    if (between := os.fork()) == 0:
        os.setsid()
        if os.fork() == 0:
            note(context, "daemon")
            time.sleep(60)
        os._exit(0)
    os.waitpid(between, 0)
    note(context, "start")
    time.sleep(60)


@durable_job(name="waits-until-told", max_attempts=3)
def waits_until_told(context: JobContext) -> None:
    note(context, "start")
    context.wait_cancelled(60)
    note(context, "told")
    context.raise_if_cancelled()


@durable_job(name="finishes-although-told", max_attempts=3)
def finishes_although_told(args: Seconds, context: JobContext) -> None:
    """Leaves in time with its work done, never having looked whether it should leave."""
    note(context, "start")
    time.sleep(args.seconds)


@durable_job(name="awaits", max_attempts=3)
async def awaits(args: Seconds, context: JobContext) -> None:
    note(context, "start")
    try:
        await asyncio.sleep(args.seconds)
    except asyncio.CancelledError:
        note(context, "cancelled")
        raise


@durable_job(name="spins-holding-the-gil", max_attempts=1)
def spins_holding_the_gil(context: JobContext) -> None:
    """A regular expression that backtracks for ages: in C, in a loop, never letting go of the GIL."""
    note(context, "start")
    re.match(r"(a+)+$", "a" * 64 + "b")


@durable_job(name="spins-holding-the-gil-limited", max_attempts=1, timeout_seconds=1)
def spins_holding_the_gil_limited(context: JobContext) -> None:
    spins_holding_the_gil(context)


@durable_job(name="hangs-limited", max_attempts=1, timeout_seconds=1)
def hangs_limited(context: JobContext) -> None:
    note(context, "start")
    threading.Event().wait()


@durable_job(name="ignores-sigterm-limited", max_attempts=1, timeout_seconds=1)
def ignores_sigterm_limited(context: JobContext) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note(context, "start")
    threading.Event().wait()


@durable_job(name="dies", max_attempts=1)
def dies(how: str, context: JobContext) -> None:
    note(context, "start")
    die(how)


@durable_job(name="dies-once", max_attempts=2)
def dies_once(how: str, context: JobContext) -> None:
    note(context, "start")
    if context.attempt == 1:
        die(how)


def die(how: str) -> None:
    match how:
        case "sigkill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            ctypes.string_at(0)
        case "abort":
            os.abort()
        case "exit-0":
            os._exit(0)
        case "exit-3":
            os._exit(3)
        case "sys-exit":
            sys.exit(1)
        case "keyboard-interrupt":
            raise KeyboardInterrupt
        case "closes-all-descriptors":
            os.closerange(3, 65536)
            time.sleep(30)
        case "writes-garbage-into-every-descriptor":
            for fd in range(3, 256):
                try:
                    os.write(fd, b"garbage " * 64)
                except OSError:
                    continue
            time.sleep(30)
        case "bus-error":
            with tempfile.TemporaryFile() as file:
                file.write(b"x" * 8192)
                file.flush()
                mapped = mmap.mmap(file.fileno(), 8192)
                file.truncate(0)
                mapped[4096]


@durable_job(name="raises", max_attempts=2, retry_initial_delay_seconds=0.2)
def raises(message: str) -> None:
    raise ValueError(message)


@durable_job(name="raises-hostile", max_attempts=1)
def raises_hostile(kind: str) -> None:
    class Unprintable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    match kind:
        case "unprintable":
            raise Unprintable
        case "nul-and-surrogates":
            raise ValueError("nul \0 surrogate \ud800 end")
        case "huge":
            raise ValueError("x" * 5_000_000)
        case "group":
            raise ExceptionGroup("many", [ValueError(str(i)) for i in range(10_000)])
        case "base":
            raise GeneratorExit("odd")


@durable_job(name="gives-up", max_attempts=5)
def gives_up() -> None:
    raise NoRetry("no use")


@durable_job(name="asks-for-retry", max_attempts=2, retry_initial_delay_seconds=3600)
def asks_for_retry(context: JobContext) -> None:
    if context.attempt == 1:
        raise Retry("not yet", delay_seconds=0.1)


@durable_job(name="prints", max_attempts=1)
def prints(lines: int) -> None:
    for i in range(lines):
        print(f"out {i}")
    print("err é \x1b[31m", file=sys.stderr)
    os.write(1, b"bytes \xff\x00 end\n")


@durable_job(name="floods", max_attempts=1)
def floods(mebibytes: int) -> None:
    block = b"y" * 1_048_576
    for _ in range(mebibytes):
        os.write(1, block)
    os.write(1, b"\nthe very end\n")


@durable_job(name="leaves-things-behind", max_attempts=1)
def leaves_things_behind(context: JobContext) -> None:
    """A process that holds our output open, and a thread that will not end."""
    left = subprocess.Popen(["sleep", "60"])
    threading.Thread(target=threading.Event().wait).start()
    note(context, f"left-{left.pid}")


@durable_job(name="forks", max_attempts=1)
def forks(context: JobContext) -> None:
    """Both sides return."""
    if os.fork():
        os.wait()
    note(context, "returned")


@durable_job(name="uses-processes-and-loops", max_attempts=1)
def uses_processes_and_loops(context: JobContext) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(abs, [-1, -2]) == [1, 2]
    asyncio.run(asyncio.sleep(0))
    # whatever the supervisor's own standard input is, a job's is empty
    assert subprocess.run(["cat"], check=True, timeout=10, capture_output=True).stdout == b""
    assert sys.stdin is None or sys.stdin.read() == ""
    note(context, "end")


@durable_job(name="messes-up", max_attempts=1)
def messes_up(what: str) -> None:
    """Leaves the process in a state that no other job should meet."""
    match what:
        case "folder":
            os.chdir("/")
        case "alarm":
            signal.alarm(2)
        case "signal-handler":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        case "recursion-limit":
            sys.setrecursionlimit(5_000)
        case "closed-stdout":
            sys.stdout.close()
        case "closed-descriptor-1":
            os.close(1)
        case "stdout-that-cannot-be-flushed":
            sys.stdout = Unflushable()
        case "descriptor-limit":
            resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))
        case "thread-that-kills-later":
            threading.Thread(target=lambda: (time.sleep(1), os._exit(9))).start()
        case "closed-loop":
            asyncio.get_event_loop_policy().get_event_loop().close()


class Unflushable(io.StringIO):
    def flush(self) -> None:
        raise RuntimeError("no")


@durable_job(name="tells-its-process", max_attempts=1)
def tells_its_process() -> None:
    print(os.getpid(), os.getcwd())


@durable_job(name="hangs-briefly", max_attempts=1, timeout_seconds=0.01)
def hangs_briefly(context: JobContext) -> None:
    time.sleep(0.05)


@durable_job(name="once", max_attempts=1)
def once(context: JobContext) -> None:
    note(context, "start")


@durable_job(name="tells-its-descriptors")
def tells_its_descriptors() -> None:
    for fd in sorted(os.listdir("/proc/self/fd"), key=int):
        try:
            print(fd, os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            continue
    print("tcp", _tcp_sockets())


def _tcp_sockets() -> int:
    """How many sockets of this process lead to a network."""
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            s = socket.socket(fileno=os.dup(int(fd)))
        except OSError:
            continue
        count += s.family in (socket.AF_INET, socket.AF_INET6)
        s.close()
    return count


@durable_job(name="burns", max_attempts=1)
def burns(args: Seconds, context: JobContext) -> None:
    end = time.process_time() + args.seconds
    while time.process_time() < end:
        sum(range(1000))


@durable_job(name="kills-the-supervisor", max_attempts=3)
def kills_the_supervisor(supervisor_pid: int, context: JobContext) -> None:
    note(context, "start")
    if context.attempt == 1:
        os.kill(supervisor_pid, signal.SIGKILL)
        time.sleep(60)


@durable_job(name="tells", max_attempts=1)
def tells(secret: str) -> None:
    print(f"it is {secret}")
    raise RuntimeError(f"it is {secret}")
