"""Is a worker of this host dead for certain? Asked of real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest
from msgspec.structs import replace

from durablestack.supervisor.incarnation import MARKER, marked_environment, marker, proven_dead, this_worker
from durablestack.workers import Worker
from processes import stat_fields
from workers import eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who is who")

_TELL_AND_WAIT = """
import msgspec, sys
from durablestack.supervisor.incarnation import this_worker
print(msgspec.json.encode(this_worker("other")).decode(), flush=True)
sys.stdin.read()
"""


@contextmanager
def another_process() -> Iterator[tuple[subprocess.Popen[str], Worker]]:
    process = subprocess.Popen(
        [sys.executable, "-c", _TELL_AND_WAIT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        yield process, msgspec.json.decode(process.stdout.readline(), type=Worker)
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@contextmanager
def left_running(environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"], env={**os.environ, **environment})
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def one_who_is_dead() -> Worker:
    """Its number is ours now."""
    me = this_worker("gone")
    return replace(me, process_started=me.process_started - 1, marker="of one who is dead")


def test_a_worker_is_dead_once_its_process_has_ended_and_not_before() -> None:
    with another_process() as (process, worker):
        assert not proven_dead(worker)
        process.kill()
        eventually(lambda: stat_fields(process.pid)[0] == "Z", what="a process that nobody has waited for")
        assert proven_dead(worker)
        process.wait()
        assert proven_dead(worker)


def test_a_frozen_worker_is_alive() -> None:
    with another_process() as (process, worker):
        os.kill(process.pid, signal.SIGSTOP)
        eventually(lambda: stat_fields(process.pid)[0] == "T", what="a frozen process")
        assert not proven_dead(worker)


def test_a_number_that_another_process_has_now_is_told_by_when_that_started() -> None:
    me = this_worker("me")
    assert not proven_dead(me)
    assert proven_dead(replace(me, process_started=me.process_started - 1, marker="nobody's"))


def test_a_worker_is_alive_while_anything_is_left_that_carries_its_marker() -> None:
    with another_process() as (process, worker), left_running({MARKER: worker.marker}) as left:
        process.kill()
        process.wait()
        assert not proven_dead(worker)
        left.kill()
        left.wait()
        assert proven_dead(worker)


@pytest.mark.parametrize(
    "elsewhere", [{"boot_id": "of another machine"}, {"pid_namespace": "pid:[1] time:[1]"}, {"boot_id": ""}]
)
def test_of_a_worker_elsewhere_nothing_can_be_told(elsewhere: dict[str, str]) -> None:
    me = this_worker("gone")
    assert not proven_dead(replace(me, process_started=me.process_started - 1, marker="nobody's", **elsewhere))


def test_what_is_started_in_the_marked_environment_carries_the_marker_and_nothing_else_does() -> None:
    with marked_environment(), left_running({}) as marked:
        pass_on = f"{MARKER}={marker()}".encode()
        eventually(lambda: b"sleep" in _file(marked.pid, "cmdline"), what="the start of sleep")
        assert pass_on in _file(marked.pid, "environ").split(b"\0")
    assert MARKER not in os.environ


def test_an_environment_that_was_marked_by_another_is_as_it_was_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MARKER, "the supervisor's whose job we are")
    with marked_environment():
        assert os.environ[MARKER] == marker()
    assert os.environ[MARKER] == "the supervisor's whose job we are"


def _file(pid: int, name: str) -> bytes:
    with open(f"/proc/{pid}/{name}", "rb") as file:
        return file.read()


def test_whoever_executes_one_program_after_the_other_is_not_missed() -> None:
    """In between its environment reads empty."""
    again = "import os, sys; os.execv(sys.executable, sys.orig_argv)"
    worker = one_who_is_dead()
    process = subprocess.Popen(
        [sys.executable, "-S", "-I", "-c", again], env={**os.environ, MARKER: worker.marker}, stdin=subprocess.DEVNULL
    )
    try:
        eventually(lambda: b"-I" in _file(process.pid, "cmdline"), what="its start")
        assert not any(proven_dead(worker) for _ in range(50))
    finally:
        process.kill()
        process.wait()


def test_a_process_whose_first_thread_has_ended_is_not_missed() -> None:
    thread = "threading.Thread(target=threading.Event().wait).start()"
    script = f"import ctypes, threading; {thread}; ctypes.CDLL(None).pthread_exit(0)"
    worker = one_who_is_dead()
    process = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, MARKER: worker.marker})
    try:
        eventually(lambda: stat_fields(process.pid)[0] == "Z", what="the end of the first thread")
        assert not proven_dead(worker)
    finally:
        process.kill()
        process.wait()
