"""Jobs that bring one kind of death to one point in the life of a child, and jobs that damage their own last word."""

import ctypes
import gc
import importlib
import multiprocessing
import os
import signal
import struct
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

from msgspec import Struct

from chaos_jobs import note
from durablestack import DurableStack, JobContext, durable_job
from durablestack.supervisor import child, wire

stack = DurableStack(__name__)

DEATH_AT_IMPORT = Path(os.environ.get("DEATH_AT_IMPORT", "/nowhere"))
"""While this file is there, it says of what a new child dies."""

IDLE_AFTER_SECONDS = 0.1
"""By then a child has told what became of a run that has returned."""


# --- deaths


def exhaust_the_c_stack() -> None:
    """Iterators in iterators: not even Python itself counts how deep that goes."""
    nested = iter([1])
    for _ in range(500_000):
        nested = filter(None, nested)
    next(nested)


def recurse() -> None:
    recurse()


def raises(error: Callable[[], BaseException]) -> Callable[[], None]:
    def die() -> None:
        raise error()

    return die


DEATHS: dict[str, Callable[[], object]] = {
    "sigkill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "exit-0": lambda: os._exit(0),
    "sys-exit": lambda: sys.exit(0),
    "exception": raises(lambda: LookupError("nothing there")),
    "memory-error": raises(MemoryError),
    "recursion": recurse,
    "stack-overflow": exhaust_the_c_stack,
}


def die(how: str) -> None:
    DEATHS[how]()


# --- points in the life of a child


class DiesWhenDecoded(Struct):
    how: str

    def __post_init__(self) -> None:
        if multiprocessing.parent_process() is not None:  # whoever enqueues it lives on
            die(self.how)


@durable_job(name="dies-when-its-arguments-are-decoded", max_attempts=1)
def dies_when_its_arguments_are_decoded(args: DiesWhenDecoded) -> None:
    pass


@durable_job(name="dies-running", max_attempts=1)
def dies_running(how: str) -> None:
    die(how)


@durable_job(name="dies-when-its-error-is-printed", max_attempts=1)
def dies_when_its_error_is_printed(how: str) -> None:
    class Deadly(Exception):
        def __str__(self) -> str:
            die(how)
            return ""

        __repr__ = __str__

    raise Deadly


@durable_job(name="dies-when-it-is-looked-at-what-is-left", max_attempts=1)
def dies_when_it_is_looked_at_what_is_left(how: str) -> None:
    class Deadly:
        def flush(self) -> None:
            pass

        def __getattr__(self, name: str) -> Any:
            die(how)

    sys.stdout = Deadly()


class DiesWhenForgotten:
    def __init__(self, how: str) -> None:
        self.how, self.itself = how, self

    def __del__(self) -> None:
        die(self.how)


@durable_job(name="dies-when-its-garbage-is-collected", max_attempts=1)
def dies_when_its_garbage_is_collected(how: str) -> None:
    DiesWhenForgotten(how)
    gc.collect()


@durable_job(name="dies-when-it-returns", max_attempts=1)
def dies_when_it_returns(how: str) -> None:
    local = DiesWhenForgotten(how)
    del local.itself  # so that it ends with this frame


@durable_job(name="dies-in-an-exit-handler", max_attempts=1, fresh_process_per_run=True)
def dies_in_an_exit_handler(how: str) -> None:
    import atexit

    atexit.register(die, how)


@durable_job(name="dies-in-a-finalizer", max_attempts=1, fresh_process_per_run=True)
def dies_in_a_finalizer(how: str) -> None:
    weakref.finalize(stack, die, how)


@durable_job(name="dies-in-a-thread-that-it-leaves", max_attempts=1)
def dies_in_a_thread_that_it_leaves(how: str) -> None:
    threading.Thread(target=die, args=(how,)).start()


def _idle_then(call: Callable[[], object]) -> None:
    def wait_and_call() -> None:
        time.sleep(IDLE_AFTER_SECONDS)
        call()

    threading.Thread(target=wait_and_call, daemon=True).start()


@durable_job(name="dies-idle", max_attempts=1)
def dies_idle(how: str) -> None:
    print(os.getpid())
    _idle_then(lambda: die(how))


@durable_job(name="dies-idle-when-its-garbage-is-collected", max_attempts=1)
def dies_idle_when_its_garbage_is_collected(how: str) -> None:
    print(os.getpid())
    kept = [DiesWhenForgotten(how)]

    def forget() -> None:
        kept.clear()
        gc.collect()

    _idle_then(forget)


def import_what_may_be_deadly() -> None:
    if DEATH_AT_IMPORT.exists():
        importlib.import_module("dies_when_imported")


# --- last words


def control_pipe() -> child._ControlPipe:
    """The end of the pipe to the supervisor that a job has no business with."""
    return next(found for found in gc.get_objects() if type(found) is child._ControlPipe)


class Cut(Struct):
    after_bytes: int
    fails: bool = False


@durable_job(name="is-cut-short", max_attempts=1)
def is_cut_short(args: Cut, context: JobContext) -> None:
    """Its process is killed when it has sent so many bytes of its reply."""
    pipe = control_pipe()

    def send(reply: wire.Reply) -> None:
        frame = wire.frame(reply)
        note(context, f"frame-of-{len(frame)}")
        pipe._socket.sendall(frame[: args.after_bytes])
        os.kill(os.getpid(), signal.SIGKILL)

    pipe.send = send  # type: ignore[method-assign]
    if args.fails:
        raise ValueError


@durable_job(name="ends-with-its-reply", max_attempts=1)
def ends_with_its_reply(how: str, context: JobContext) -> None:
    """Its process ends in the moment in which its reply is sent."""
    pipe = control_pipe()
    send_to_the_end = pipe.send

    def send(reply: wire.Reply) -> None:
        send_to_the_end(reply)
        die(how)

    pipe.send = send  # type: ignore[method-assign]


@durable_job(name="talks-nonsense", max_attempts=1, timeout_seconds=20)
def talks_nonsense(what: str) -> None:
    body = wire.frame(wire.Succeeded(1))[8:]
    whole = struct.pack("<II", len(body), crc32(body)) + body
    nested = b"\x91" * 100_000
    said = {
        "claims 4 GiB": struct.pack("<II", 2**32 - 1, 0),
        "is cut short": whole[:-1],
        "a wrong checksum": struct.pack("<II", len(body), crc32(body) ^ 1) + body,
        "no reply": struct.pack("<II", 4, crc32(b"\x93abc")) + b"\x93abc",
        "nested too deep": struct.pack("<II", len(nested), crc32(nested)) + nested,
        "an older reply": wire.frame(wire.Succeeded(0)),
    }
    control_pipe()._socket.sendall(said[what])
    if what == "is cut short":
        die("sigkill")
    if what == "an older reply":
        raise LookupError("nothing there")
    time.sleep(60)


@durable_job(name="promises-more-than-it-says", max_attempts=1, timeout_seconds=0.3)
def promises_more_than_it_says() -> None:
    """So that its true reply is taken for a part of what was promised."""
    control_pipe()._socket.sendall(struct.pack("<II", 200 * 1024, 0))
