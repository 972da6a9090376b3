"""A supervisor is driven by asyncio's own event loop, or by uvloop, and nobody else can tell the difference."""

import os
import signal
import sys
import textwrap

import pytest

from durablestack import RunStatus
from durablestack.errors import OptionsError
from durablestack.options import EventLoop
from durablestack.supervisor.event_loop import is_uvloop
from workers import Bench, Worker, eventually

TELLS_ITS_LOOP = """
    import asyncio
    from durablestack import DurableStack

    stack = DurableStack("chaos_jobs")

    @stack.on_supervisor_start
    def tell() -> None:
        print(f"driven by {type(asyncio.get_running_loop()).__module__}", flush=True)
"""


def on_uvloop(bench: Bench) -> Worker:
    return bench.worker(settings={"DURABLESTACK__EVENT_LOOP": "uvloop"})


@pytest.mark.parametrize("event_loop", ["asyncio", "uvloop"])
def test_the_supervisor_is_driven_by_what_the_options_say(sqlite_bench: Bench, event_loop: str) -> None:
    (sqlite_bench.folder / "tells_its_loop.py").write_text(textwrap.dedent(TELLS_ITS_LOOP))
    settings = {"DURABLESTACK__EVENT_LOOP": event_loop}
    worker = sqlite_bench.worker(settings=settings, target="tells_its_loop:stack")
    worker.until_logged(f"driven by {event_loop}")


def test_who_asks_for_uvloop_where_it_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert not is_uvloop(EventLoop.ASYNCIO)
    with pytest.raises(OptionsError, match=r"uvloop.*pip install 'durablestack\[uvloop\]'.*asyncio"):
        is_uvloop(EventLoop.UVLOOP)


def test_it_executes_runs_of_every_kind(any_bench: Bench) -> None:
    on_uvloop(any_bench)
    short = any_bench.client.enqueue_many("innocent", [None] * 300)
    slow = any_bench.client.enqueue("slow-at-first")
    raising, dying = any_bench.client.enqueue("raises", "no"), any_bench.client.enqueue("dies-once", "sigkill")
    for run_id in [*short, dying]:
        any_bench.until(run_id, RunStatus.SUCCEEDED)
    assert any_bench.until_terminal(raising).status is RunStatus.FAILED
    any_bench.client.cancel_run(slow)
    assert any_bench.until_terminal(slow).status is RunStatus.CANCELLED


def test_it_stops_in_good_order_when_asked_to(any_bench: Bench) -> None:
    worker = on_uvloop(any_bench)
    run_id = any_bench.client.enqueue("ticks-at-first")
    any_bench.until_noted(run_id, "start")
    worker.terminate()
    worker.until_logged("SIGTERM")
    os.kill(worker.pid, signal.SIGINT)  # and at once
    assert worker.exit_code() == 0
    assert any_bench.run(run_id).status is RunStatus.PENDING


def test_children_that_die_are_replaced(sqlite_bench: Bench) -> None:
    worker = on_uvloop(sqlite_bench)
    before = worker.until_ready(children=2)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: len(set(worker.children()) - set(before)) == 2, what="two new children")
    sqlite_bench.until(sqlite_bench.client.enqueue("innocent"), RunStatus.SUCCEEDED)


def test_what_a_killed_one_leaves_is_reclaimed(any_bench: Bench) -> None:
    worker = on_uvloop(any_bench)
    run_id = any_bench.client.enqueue("slow-at-first")
    any_bench.until_noted(run_id, "start")
    worker.kill()
    on_uvloop(any_bench)
    assert any_bench.until(run_id, RunStatus.SUCCEEDED).attempt == 2
