"""A job for each line of the catalogue's part B: what jobs do to their process, their supervisor and each other.

Those that bring death to their own process, and those that talk nonsense to the supervisor, are in `deadly_jobs`.
"""

import asyncio
import atexit
import faulthandler
import locale
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from chaos_jobs import innocent, note, once  # noqa: F401
from deadly_jobs import *  # noqa: F403
from deadly_jobs import die, import_what_may_be_deadly
from durablestack import DurableStack, JobContext, Retry, durable_job
from processes import descendants

stack = DurableStack(__name__)
stack.on_child_start(import_what_may_be_deadly)

MEBIBYTE = 1_048_576
LEFT: list[object] = []


# --- innocent


@durable_job(name="waits-for-file", max_attempts=1)
def waits_for_file(path: str) -> None:
    """Says that it runs, and goes on when it is let go."""
    Path(f"{path}-begun-{os.getpid()}").touch()
    while not Path(path).exists():
        time.sleep(0.01)


@durable_job(name="holds-the-gil", max_attempts=1)
def holds_the_gil(seconds: int) -> None:
    import ctypes

    print(ctypes.PyDLL(None).sleep(seconds))  # a PyDLL does not let go of it


# --- 19 to 27: ends


@durable_job(name="kills-itself-at-first", max_attempts=2, retry_initial_delay_seconds=0.05)
def kills_itself_at_first(context: JobContext) -> None:
    if context.attempt == 1:
        die("sigkill")


@durable_job(name="is-signalled", max_attempts=1)
def is_signalled(name: str) -> None:
    signal.raise_signal(signal.Signals[name])


class OfItsOwnKind(BaseException):
    pass


@durable_job(name="raises-what-ends-programs", max_attempts=1)
def raises_what_ends_programs(what: str) -> None:
    print(os.getpid())
    match what:
        case "exit 0":
            sys.exit(0)
        case "exit 1":
            sys.exit(1)
        case "exit x":
            sys.exit("x")
        case "interrupt":
            raise KeyboardInterrupt
        case "generator":
            raise GeneratorExit
        case "cancelled":
            raise asyncio.CancelledError
        case "base":
            raise OfItsOwnKind


@durable_job(name="takes-too-much-address-space", max_attempts=1, address_space_limit="4 GiB")
def takes_too_much_address_space() -> None:
    print(os.getpid())
    bytearray(5 * 1024 * MEBIBYTE)


@durable_job(name="takes-too-much-cpu-time", max_attempts=1)
def takes_too_much_cpu_time(limit: str) -> None:
    seconds = math.ceil(time.process_time())
    hard = seconds if limit == "hard" else resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, hard))
    spin()


# --- 28 to 31: does not end


def spin() -> None:
    while True:
        sum(range(1000))


@durable_job(name="spins", max_attempts=1, timeout_seconds=0.3)
def spins() -> None:
    spin()


@durable_job(name="stops-itself", max_attempts=1, timeout_seconds=0.3)
def stops_itself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


@durable_job(name="sleeps-at-first", max_attempts=2, timeout_seconds=1, retry_initial_delay_seconds=0.05)
def sleeps_at_first(context: JobContext) -> None:
    note(context, "start")
    if context.attempt == 1:
        time.sleep(60)


# --- 32 to 36: processes and descriptors


@durable_job(name="leaves-a-process", max_attempts=1)
def leaves_a_process(how: str, context: JobContext) -> None:
    """With our standard output, and with whatever else it got hold of."""
    if how == "executed":
        LEFT.append(left := subprocess.Popen(["sleep", "60"], close_fds=False))
        print(left.pid)
    elif (pid := os.fork()) == 0:
        time.sleep(60)
        os._exit(0)
    else:
        print(pid)


@durable_job(name="sends-off-a-daemon-and-returns", max_attempts=1)
def sends_off_a_daemon_and_returns() -> None:
    reader, writer = os.pipe()
    if (between := os.fork()) == 0:
        os.setsid()
        if (daemon := os.fork()) == 0:
            time.sleep(60)
        os.write(writer, str(daemon).encode())
        os._exit(0)
    os.waitpid(between, 0)
    print(os.read(reader, 100).decode())
    os.close(reader)
    os.close(writer)


@durable_job(name="forks-and-both-return", max_attempts=1)
def forks_and_both_return() -> None:
    os.fork()


@durable_job(name="forks-and-the-other-one-raises", max_attempts=1)
def forks_and_the_other_one_raises() -> None:
    if os.fork() == 0:
        raise LookupError("nothing there")


@durable_job(name="closes-every-descriptor", max_attempts=1)
def closes_every_descriptor() -> None:
    os.closerange(0, 65536)
    time.sleep(60)


@durable_job(name="writes-into-every-descriptor", max_attempts=1)
def writes_into_every_descriptor() -> None:
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd >= 3:
            with suppress(OSError):
                os.set_blocking(fd, False)
                os.write(fd, b"garbage " * 64)
    time.sleep(60)


# --- 37, 38: says too much


@durable_job(name="prints-without-end", max_attempts=1)
def prints_without_end(what: str) -> None:
    kinds = {"no newline": b"y", "lines": b"a line\n", "nul": b"\0", "not utf-8": b"\xff\xfe"}
    block = kinds[what] * (MEBIBYTE // len(kinds[what]))
    for _ in range(3):
        os.write(1, block)
        os.write(2, block)
    print("\nthe very end")


@durable_job(name="returns", max_attempts=1)
def returns(what: str) -> object:
    class Liar:
        @property  # type: ignore[misc]
        def __class__(self) -> type:
            raise RuntimeError("no")

    match what:
        case "huge":
            return b"x" * (64 * MEBIBYTE)
        case "nested":
            nested: list[Any] = []
            for _ in range(1_000_000):
                nested = [nested]
            return nested
        case "integer":
            return 2**70
        case "surrogate":
            return "\ud800"
        case "liar":
            return Liar()
        case _:
            return {"nan": math.nan, "object": object()}[what]


@durable_job(name="asks-for-an-odd-delay", max_attempts=1)
def asks_for_an_odd_delay(what: str) -> None:
    odd: dict[str, Any] = {"nan": math.nan, "inf": math.inf, "huge": 10**400, "negative": -1, "text": "soon"}
    raise Retry("later", delay_seconds=odd[what])


# --- 42 to 45: leaves something behind


@durable_job(name="leaves-a-thread", max_attempts=1)
def leaves_a_thread(what: str) -> None:
    print(os.getpid())
    if what == "executor":
        LEFT.append(executor := ThreadPoolExecutor())
        executor.submit(threading.Event().wait)
    else:
        threading.Thread(target=threading.Event().wait).start()


@durable_job(name="leaves-a-task", max_attempts=1)
async def leaves_a_task() -> None:
    print(os.getpid())

    async def never_ends() -> None:
        while True:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)

    LEFT.append(asyncio.create_task(never_ends()))
    await asyncio.sleep(0)


@durable_job(name="leaves-an-exit-handler", max_attempts=1, fresh_process_per_run=True)
def leaves_an_exit_handler() -> None:
    print(os.getpid())
    atexit.register(time.sleep, 3600)


def work_of_many_kinds() -> Iterator[None]:
    """Stops in the middle of it, with everything at work."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool, get_context("fork").Manager() as manager:
        shared = manager.list([*pool.map(abs, [-1, -2])])
        assert asyncio.run(_output_of("true")) == b""
        assert list(shared) == [1, 2]
        yield


async def _output_of(command: str) -> bytes:
    process = await asyncio.create_subprocess_exec(command, stdout=asyncio.subprocess.PIPE)
    return (await process.communicate())[0]


@durable_job(name="has-work-of-many-kinds", max_attempts=1)
def has_work_of_many_kinds() -> None:
    for _ in work_of_many_kinds():
        pass


@durable_job(name="hangs-in-work-of-many-kinds", max_attempts=1)
def hangs_in_work_of_many_kinds(path: str) -> None:
    for _ in work_of_many_kinds():
        Path(f"{path}.new").write_text(" ".join(map(str, descendants(os.getpid()))))
        Path(f"{path}.new").rename(path)
        time.sleep(60)


@durable_job(name="cannot-be-told", max_attempts=1, timeout_seconds=0.3)
def cannot_be_told(how: str) -> None:
    match how:
        case "ignores SIGTERM":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        case "ignores all signals":
            for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
                with suppress(OSError, ValueError):
                    signal.signal(number, signal.SIG_IGN)
        case "no faulthandler":
            faulthandler.disable()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        case "alarm":
            signal.alarm(1)
    spin()


@durable_job(name="sets-an-alarm", max_attempts=1)
def sets_an_alarm() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    time.sleep(60)


@durable_job(name="changes-its-process", max_attempts=1)
def changes_its_process(what: str) -> None:
    print(os.getpid())
    match what:
        case "folder":
            os.chdir("/")
        case "umask":
            os.umask(0o077)
        case "environment":
            os.environ["LEFT"] = "something"
        case "locale":
            locale.setlocale(locale.LC_ALL, "C" if locale.setlocale(locale.LC_ALL) != "C" else "C.UTF-8")
        case "sys.path":
            sys.path.insert(0, "/nowhere")
        case "clock":
            time.time = lambda: 0.0
        case "sleep":
            time.sleep = lambda seconds: None


# --- 46: errors


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


class Nameless(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in ("__name__", "__qualname__", "__module__"):
            raise RuntimeError("no")
        return super().__getattribute__(name)


class OfOddCause(Exception):
    @property
    def __cause__(self) -> BaseException:  # type: ignore[override]
        raise RuntimeError("no")


@durable_job(name="raises-something-odd", max_attempts=1)
def raises_something_odd(what: str) -> None:
    match what:
        case "unprintable":
            raise Unprintable
        case "huge":
            raise ValueError("x" * (50 * MEBIBYTE))
        case "cycle":
            error = ValueError("a")
            error.__cause__ = KeyError("b")
            error.__cause__.__cause__ = error
            raise error
        case "chain":
            chained: Exception | None = None
            for number in range(5_000):
                link = ValueError(number)
                link.__cause__, chained = chained, link
            raise link
        case "group":
            raise ExceptionGroup("many", [ValueError(number) for number in range(100_000)])
        case "text":
            raise ValueError("nul \0 surrogate \ud800 emoji \U0001f41b end")
        case "name":
            raise type("\ud800\0" * 5_000, (Exception,), {})("odd")
        case "notes":
            noted = ValueError("a")
            noted.add_note("x" * (50 * MEBIBYTE))
            raise noted
        case "no name":
            raise Nameless("OfNoName", (Exception,), {})
        case "odd cause":
            raise OfOddCause


# --- 25, 51: against the supervisor


@durable_job(name="kills-all", max_attempts=2)
def kills_all(supervisor_pid: int, context: JobContext) -> None:
    """As the kernel does with a whole control group: the supervisor, its guard, its other children, this process."""
    note(context, "start")
    for pid in [supervisor_pid, *descendants(supervisor_pid) - {os.getpid()}, os.getpid()]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@durable_job(name="kills-its-parent-at-first", max_attempts=2, retry_initial_delay_seconds=0.05)
def kills_its_parent_at_first(context: JobContext) -> None:
    if context.attempt == 1:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
