"""Jobs that take more than they may, die in many ways, or leave something behind; and what tells of it."""

import asyncio
import ctypes
import locale
import mmap
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from chaos_jobs import DIARY, note
from durablestack import DurableStack, JobContext, durable_job
from told_jobs import EventsToFile

stack = DurableStack(__name__)
stack.add_event_sink(EventsToFile())

MEBIBYTE = 1_048_576
KEPT: list[bytearray] = []


@durable_job(name="tells-its-process", max_attempts=1)
def tells_its_process() -> None:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    print(os.getpid(), limit, Path("/proc/self/oom_score_adj").read_text().strip())


@durable_job(name="tells-its-process-limited", max_attempts=1, address_space_limit="64 GiB")
def tells_its_process_limited() -> None:
    tells_its_process()


@durable_job(name="tells-its-process-fresh", max_attempts=1, fresh_process_per_run=True)
def tells_its_process_fresh() -> None:
    tells_its_process()


# --- too much


@durable_job(name="grows", max_attempts=1, memory_limit="250 MiB")
def grows(context: JobContext) -> None:
    note(context, "start")
    while True:
        KEPT.append(bytearray(10 * MEBIBYTE))
        time.sleep(0.02)


@durable_job(name="has-a-child-that-grows", max_attempts=1)
def has_a_child_that_grows(context: JobContext) -> None:
    grown = "import time; kept = bytearray(400 * 1024 * 1024); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", grown], start_new_session=True)
    note(context, f"child-{child.pid}")
    child.wait()


@durable_job(name="spins-holding-the-gil", max_attempts=1, cpu_seconds=0.5)
def spins_holding_the_gil(context: JobContext) -> None:
    note(context, "start")
    re.match(r"(a+)+$", "a" * 64 + "b")


@durable_job(name="has-a-child-that-spins", max_attempts=1, cpu_seconds=0.5)
def has_a_child_that_spins(context: JobContext) -> None:
    child = subprocess.Popen(["sh", "-c", "while :; do :; done"], start_new_session=True)
    note(context, f"child-{child.pid}")
    child.wait()


@durable_job(name="spins-until-told", max_attempts=1, cpu_seconds=0.5)
def spins_until_told(context: JobContext) -> None:
    print(os.getpid())
    while not context.cancelled:
        sum(range(1000))


@durable_job(name="spins-briefly", max_attempts=1, cpu_seconds=0.5)
def spins_briefly() -> None:
    """Several runs of this take more than one may."""
    end = time.process_time() + 0.3
    while time.process_time() < end:
        sum(range(1000))
    print(os.getpid())


@durable_job(name="asks-for-too-much", max_attempts=1, address_space_limit="4 GiB")
def asks_for_too_much(how: str) -> None:
    print(os.getpid())
    try:
        bytearray(5 * 1024 * MEBIBYTE)
    except MemoryError as error:
        match how:
            case "raises":
                raise
            case "raises-another":
                raise ValueError("no room") from error


@durable_job(name="takes-nearly-all", max_attempts=1, address_space_limit="4 GiB")
def takes_nearly_all() -> None:
    """And lets it be."""
    print(os.getpid())
    taken = []
    with suppress(OSError):
        while True:
            taken.append(mmap.mmap(-1, 128 * MEBIBYTE))  # address space, and no memory


# --- deaths


@durable_job(name="dies", max_attempts=1)
def dies(how: str, context: JobContext) -> None:
    note(context, "start")
    print("last words", file=sys.stderr)
    match how:
        case "segfault":
            ctypes.string_at(0)
        case "exit-0":
            os._exit(0)
        case "sys-exit":
            sys.exit(3)
        case "soft-cpu-limit":
            resource.setrlimit(resource.RLIMIT_CPU, (1 + int(time.process_time()), resource.RLIM_INFINITY))
        case "hard-cpu-limit":
            seconds = 1 + int(time.process_time())
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        case "closes-all-descriptors":
            os.closerange(3, 65536)
            time.sleep(60)
        case "waits":
            KEPT.append(bytearray(b"x") * (100 * MEBIBYTE))
            time.sleep(60)
    while True:
        sum(range(1000))


@durable_job(name="dies-always", max_attempts=10, crash_limit=3, retry_initial_delay_seconds=0.05)
def dies_always(context: JobContext) -> None:
    note(context, "start")
    os.kill(os.getpid(), signal.SIGABRT)


@durable_job(name="is-slow", max_attempts=1, timeout_seconds=0.3)
def is_slow() -> None:
    time.sleep(60)


@durable_job(name="wants-much-at-first", max_attempts=2, retry_initial_delay_seconds=0.05)
def wants_much_at_first(context: JobContext) -> None:
    if context.attempt == 1:
        block = bytearray(b"x") * (200 * MEBIBYTE)
        end = time.process_time() + 0.3
        while time.process_time() < end:
            sum(block[:1000])
        del block
    raise ValueError("no")


@durable_job(name="eats-all-memory", max_attempts=1)
def eats_all_memory(context: JobContext) -> None:
    note(context, "start")
    while True:
        KEPT.append(bytearray(b"x") * (10 * MEBIBYTE))


@durable_job(name="moves", max_attempts=1)
def moves(context: JobContext) -> None:
    note(context, "start")
    while True:
        _descend(50)


def _descend(levels: int) -> None:
    time.sleep(0.01)
    if levels:
        _descend(levels - 1)


# --- what is left


@durable_job(name="keeps-memory", max_attempts=1)
def keeps_memory() -> None:
    KEPT.append(bytearray(b"x") * (200 * MEBIBYTE))
    print(os.getpid())


@durable_job(name="keeps-nothing", max_attempts=1)
async def keeps_nothing() -> None:
    """Of what it does."""
    before = os.umask(0o077)
    os.environ["LEFT"] = "something"
    await asyncio.sleep(0)
    subprocess.run(["true"], check=True)
    os.umask(before)
    del os.environ["LEFT"]
    print(os.getpid())


@durable_job(name="leaves", max_attempts=1)
def leaves(what: str) -> None:
    print(os.getpid())
    match what:
        case "environment":
            os.environ["LEFT"] = "something"
        case "umask":
            os.umask(0o077)
        case "sys.path":
            sys.path.insert(0, "/nowhere")
        case "locale":
            locale.setlocale(locale.LC_ALL, "C" if locale.setlocale(locale.LC_ALL) != "C" else "C.UTF-8")
        case "socket timeout":
            socket.setdefaulttimeout(5)
        case "clocks":
            time.time = lambda: 0.0
        case "what raises TypeError":
            setattr(os, "environ", None)  # noqa: B010
        case "what raises AttributeError":
            del sys.stdout


def send_off_a_daemon(context: JobContext) -> None:
    """As the books have it: a child of nobody, in a session of its own, which starts another."""
    if (between := os.fork()) == 0:
        os.setsid()
        if os.fork() == 0:
            child = subprocess.Popen(["sleep", "60"], start_new_session=True)
            note(context, f"child-{child.pid}")
            note(context, "daemon")
            time.sleep(60)
        os._exit(0)
    os.waitpid(between, 0)
    while not DIARY.exists() or "daemon" not in DIARY.read_text():
        time.sleep(0.01)


@durable_job(name="sends-off-a-daemon", max_attempts=1)
def sends_off_a_daemon(then: str, context: JobContext) -> None:
    send_off_a_daemon(context)
    match then:
        case "waits":
            note(context, "start")
            time.sleep(60)
        case "crashes":
            os.abort()
