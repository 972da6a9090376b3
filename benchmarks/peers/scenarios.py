"""The faults. Each brings a peer into the middle of its work, does it harm, and says when that was."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.peers.bench import Bench, Work
from benchmarks.peers.bench import boottime as now
from benchmarks.peers.measures import Fault

CONCURRENCY = 5
SHORT_JOBS = 20
SHORT_SECONDS = 0.02

BOUND_SECONDS = 120.0

FROZEN_SECONDS = 70.0
FROZEN_RUN_SECONDS = 40.0
GRACE_SECONDS = 45.0
CANCEL_AFTER_SECONDS = 5.0
READY_SECONDS = 5.0
"""What a second worker is given to start; it has nothing to do that would tell."""


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    what: str
    inflict: Callable[[Bench], Fault]


def killed(bench: Bench) -> Fault:
    worker = bench.worker()
    bench.enqueue(_works("running", 10, 5.0))
    bench.until_noted("start", CONCURRENCY)
    time.sleep(1)
    worker.signal(signal.SIGKILL)
    at = now()
    bench.enqueue(_short())
    return Fault(at, BOUND_SECONDS)


def frozen(bench: Bench) -> Fault:
    return _freeze(bench, whole=False)


def paused(bench: Bench) -> Fault:
    return _freeze(bench, whole=True)


def _freeze(bench: Bench, whole: bool) -> Fault:
    first = bench.worker()
    bench.enqueue(_works("running", CONCURRENCY, FROZEN_RUN_SECONDS))
    bench.until_noted("start", CONCURRENCY)
    bench.worker()
    time.sleep(READY_SECONDS)
    send = first.signal_family if whole else first.signal
    send(signal.SIGSTOP)
    at = now()
    _later(FROZEN_SECONDS, lambda: send(signal.SIGCONT))
    bench.enqueue(_short())
    return Fault(at, BOUND_SECONDS, look_seconds_min=FROZEN_SECONDS + FROZEN_RUN_SECONDS)


def segfault(bench: Bench) -> Fault:
    return _beside_innocents(bench, "segfault")


def exits(bench: Bench) -> Fault:
    return _beside_innocents(bench, "exit")


def hangs_beside_a_second_worker(bench: Bench) -> Fault:
    fault = hangs(bench)
    bench.worker()
    return fault


def hangs(bench: Bench) -> Fault:
    fault = _beside_innocents(bench, "hang")
    _later(CANCEL_AFTER_SECONDS, lambda: bench.cancel("hostile"))
    return fault


def _beside_innocents(bench: Bench, kind: str) -> Fault:
    bench.worker()
    bench.enqueue([*_works("beside", CONCURRENCY - 1, 5.0), Work(key="hostile", kind=kind, seconds=0)])
    at = bench.until_noted("fault")
    bench.enqueue(_short())
    return Fault(at, BOUND_SECONDS, special="hostile")


def database(bench: Bench) -> Fault:
    bench.worker()
    bench.enqueue(_works("running", 10, 4.0))
    bench.until_noted("start", CONCURRENCY)
    time.sleep(1)
    bench.cut_connections()
    at = now()
    time.sleep(2)
    bench.server.stop()
    time.sleep(3)
    bench.server.start()
    bench.enqueue(_short())
    return Fault(at, BOUND_SECONDS)


def deploy(bench: Bench) -> Fault:
    first = bench.worker()
    bench.enqueue([Work(key="patient", kind="patient", seconds=60.0)])
    bench.until_noted("start")
    bench.worker()
    time.sleep(READY_SECONDS)
    first.stop(GRACE_SECONDS)
    at = now()
    bench.enqueue(_short())
    return Fault(at, BOUND_SECONDS, special="patient", harmless=True)


SCENARIOS = (
    Scenario("killed", "The worker is killed (`SIGKILL`) with 5 of 10 runs in hand, and started again at once", killed),
    Scenario(
        "frozen",
        f"The worker's process is frozen (`SIGSTOP`) for {FROZEN_SECONDS:g} seconds with 5 runs in hand; a second "
        "worker is alive",
        frozen,
    ),
    Scenario("paused", "The same, with all processes of the worker frozen, as with the pause of a machine", paused),
    Scenario("segfault", "A job crashes its process (`SIGSEGV`) beside 4 others; 20 wait", segfault),
    Scenario("exit", "A job calls `os._exit(0)` beside 4 others; 20 wait", exits),
    Scenario(
        "hang",
        "A job hangs in C code that holds the GIL, beside 4 others; 20 wait; it is cancelled after "
        f"{CANCEL_AFTER_SECONDS:g} seconds",
        hangs,
    ),
    Scenario(
        "hang, two workers",
        "The same, and a second worker is started when it hangs",
        hangs_beside_a_second_worker,
    ),
    Scenario(
        "database",
        "All connections are cut with 5 of 10 runs in hand; the database goes 2 seconds later, for 3 seconds",
        database,
    ),
    Scenario(
        "deploy",
        f"`SIGTERM` with a run of 60 seconds in hand, `SIGKILL` {GRACE_SECONDS:g} seconds later; a second worker is "
        "alive",
        deploy,
    ),
)


def _works(name: str, count: int, seconds: float) -> list[Work]:
    return [Work(key=f"{name}-{number}", kind="work", seconds=seconds) for number in range(count)]


def _short() -> list[Work]:
    return _works("short", SHORT_JOBS, SHORT_SECONDS)


def _later(seconds: float, act: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()
