"""Our side of the guard, with a real guard and real processes: who is ended, who is not, and what if it dies."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress

import anyio
import pytest

from durablestack.options import GuardKind
from durablestack.supervisor import guard as guard_process
from durablestack.supervisor import guarding, wire
from durablestack.supervisor.guarding import Guard
from durablestack.supervisor.incarnation import MARKER, marker
from durablestack.supervisor.leases import boottime
from processes import still_running
from workers import PATIENCE_SECONDS

pytestmark = pytest.mark.anyio

FAR_OFF_SECONDS = 3600.0


class Sleeper:
    """A process that does nothing, and leads its own session as a child does."""

    def __init__(self, *command: str) -> None:
        self.process = subprocess.Popen(command or ("sleep", "3600"), start_new_session=True, stdout=subprocess.PIPE)
        self.pid = self.process.pid
        self.pidfd: int | None = os.pidfd_open(self.pid)
        self.killed_by_guard = False
        self.orders: list[wire.Order] = []

    def send(self, order: wire.Order) -> None:
        self.orders.append(order)

    def said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        assert self.pidfd is not None
        os.close(self.pidfd)


Start = Callable[..., Sleeper]


@pytest.fixture
def start() -> Iterator[Start]:
    sleepers: list[Sleeper] = []

    def start_one(*command: str) -> Sleeper:
        sleepers.append(Sleeper(*command))
        return sleepers[-1]

    yield start_one
    for sleeper in sleepers:
        sleeper.close()


@asynccontextmanager
async def guarding_with(guard: Guard) -> AsyncIterator[Guard]:
    async with anyio.create_task_group() as tasks:
        await tasks.start(guard.run)
        yield guard
        tasks.cancel_scope.cancel()


@pytest.fixture
async def guard() -> AsyncIterator[Guard]:
    async with guarding_with(Guard(GuardKind.PROCESS)) as made:
        yield made


async def until(look: Callable[[], object], every_seconds: float = 0.01) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        while not look():
            await anyio.sleep(every_seconds)


async def until_gone(guard: Guard) -> None:
    """Looks in each turn of the event loop: on a busy machine its successor might be there before a later look."""
    await until(lambda: guard.pid is None, every_seconds=0)


def pid_of(guard: Guard) -> int:
    assert guard.pid is not None
    return guard.pid


async def all_was_heard(guard: Guard, start: Start) -> None:
    """What the guard was told before has been seen to."""
    last = start()
    guard.adopt(last)
    guard.trust_until(last, boottime())
    await until(lambda: not still_running(last.pid))


async def lives_when_a_near_deadline_is_put_off(child: Sleeper, guard: Guard, start: Start) -> None:
    due_at = boottime() + 0.5
    guard.trust_until(child, due_at)
    guard.trust_until(child, None)
    await anyio.sleep(due_at - boottime())
    await all_was_heard(guard, start)
    assert still_running(child.pid)


async def test_a_child_is_ended_at_its_deadline_and_this_is_told(guard: Guard, start: Start) -> None:
    child = start()
    guard.adopt(child)
    guard.trust_until(child, boottime() + 0.2)
    assert child.process.wait(PATIENCE_SECONDS) == -signal.SIGKILL
    await until(lambda: child.killed_by_guard)
    assert child.orders == []


async def test_a_child_lives_whose_deadline_is_put_off_or_dropped_or_that_was_forgotten(
    guard: Guard, start: Start
) -> None:
    put_off, dropped, forgotten, untold = start(), start(), start(), start()
    for child in (put_off, dropped, forgotten, untold):
        guard.adopt(child)
    due_at = boottime() + 0.5
    for child in (put_off, dropped, forgotten):
        guard.trust_until(child, due_at)
    guard.trust_until(put_off, due_at + FAR_OFF_SECONDS)
    guard.trust_until(dropped, None)
    guard.forget(forgotten)
    await anyio.sleep(due_at - boottime())
    await all_was_heard(guard, start)
    assert all(still_running(child.pid) for child in (put_off, dropped, forgotten, untold))
    for child in (put_off, dropped, untold):
        guard.forget(child)


async def test_deadlines_that_come_and_go_with_short_runs_are_told_together(guard: Guard, start: Start) -> None:
    child = start()
    guard.adopt(child)
    process = guard._process
    assert process is not None
    packets: list[bytes] = []
    send = process.send

    def counted(packet: bytes, pidfd: int | None = None) -> None:
        packets.append(packet)
        send(packet, pidfd)

    process.send = counted  # type: ignore[method-assign]
    due_at = boottime() + 1.0
    for number in range(1_000):
        guard.trust_until(child, due_at + number / 1_000)
        guard.trust_until(child, None)
    assert len(packets) == 1, "the first deadline; none of the others is earlier"
    await anyio.sleep(due_at - boottime())
    await all_was_heard(guard, start)
    assert still_running(child.pid), "the last word was that it may live"
    guard.trust_until(child, boottime())
    await until(lambda: not still_running(child.pid))


async def test_a_deadline_that_is_near_is_put_off_before_those_that_are_far_off(guard: Guard, start: Start) -> None:
    far_off, near = start(), start()
    for child in (far_off, near):
        guard.adopt(child)
    for seconds in (FAR_OFF_SECONDS, 2 * FAR_OFF_SECONDS):
        guard.trust_until(far_off, boottime() + seconds)
    await lives_when_a_near_deadline_is_put_off(near, guard, start)
    for child in (far_off, near):
        guard.forget(child)


async def test_a_deadline_that_is_near_is_put_off_though_one_of_the_same_child_was_far_off(
    guard: Guard, start: Start
) -> None:
    child = start()
    guard.adopt(child)
    guard.trust_until(child, boottime() + FAR_OFF_SECONDS)
    guard.trust_until(child, None)
    await lives_when_a_near_deadline_is_put_off(child, guard, start)
    guard.forget(child)


async def test_the_heartbeat_does_not_wait_for_the_event_loop(guard: Guard, start: Start) -> None:
    child = start()
    guard.adopt(child)
    due_at = boottime() + 0.5
    guard.trust_until(child, due_at)
    heartbeat = threading.Thread(target=guard.trust_until, args=(child, due_at + FAR_OFF_SECONDS))
    heartbeat.start()
    heartbeat.join()
    time.sleep(due_at + 0.1 - boottime())  # the loop is blocked
    await all_was_heard(guard, start)
    assert still_running(child.pid)
    guard.forget(child)


async def test_a_child_is_ended_with_its_family_though_it_is_stopped(guard: Guard, start: Start) -> None:
    child = start("sh", "-c", "setsid sh -c 'sleep 3600 & echo $!; wait' & sleep 3600 & echo $!; wait")
    family = [int(child.said()), int(child.said())]
    os.kill(child.pid, signal.SIGSTOP)
    guard.adopt(child)
    guard.trust_until(child, boottime())
    await until(lambda: not any(map(still_running, [child.pid, *family])))


async def test_the_family_of_a_child_that_died_before_its_deadline_ends_too(guard: Guard) -> None:
    marked = {**os.environ, MARKER: marker()}
    script = "sleep 3600 >/dev/null & echo $!"
    process = subprocess.Popen(["sh", "-c", script], start_new_session=True, stdout=subprocess.PIPE, env=marked)
    child = Sleeper.__new__(Sleeper)
    child.process, child.pid, child.pidfd = process, process.pid, os.pidfd_open(process.pid)
    child.killed_by_guard, child.orders = False, []
    left = int(child.said())
    try:
        process.wait(PATIENCE_SECONDS)
        guard.adopt(child)
        guard.trust_until(child, boottime())
        await until(lambda: not still_running(left))
        assert not child.killed_by_guard
    finally:
        guard.forget(child)
        child.close()


async def test_a_family_that_executes_one_program_after_the_other_ends_too(guard: Guard) -> None:
    """Nothing is told of the environment of a process while it begins to execute a program."""
    for _ in range(10):
        marked = {**os.environ, MARKER: marker()}
        script = 'again=\'exec sh -c "$again"\'; export again; sh -c "$again" >/dev/null & echo $!'
        child = Sleeper.__new__(Sleeper)
        child.process = subprocess.Popen(
            ["sh", "-c", script], start_new_session=True, stdout=subprocess.PIPE, env=marked
        )
        child.pid, child.pidfd = child.process.pid, os.pidfd_open(child.process.pid)
        child.killed_by_guard, child.orders = False, []
        left = int(child.said())
        try:
            child.process.wait(PATIENCE_SECONDS)
            guard.adopt(child)
            guard.trust_until(child, boottime())
            await until(lambda left=left: not still_running(left))
        finally:
            with suppress(ProcessLookupError):
                os.kill(left, signal.SIGKILL)
            guard.forget(child)
            child.close()


async def test_what_makes_no_sense_is_ignored(guard: Guard, start: Start) -> None:
    child = start()
    guard.adopt(child)
    process = guard._process
    assert process is not None
    before = pid_of(guard)
    key = guard._wards[child].key
    record = guard_process.RECORD
    for packet in (
        b"x",
        b"z" * record.size,
        record.pack(guard_process.DEADLINE, key, float("nan")),
        record.pack(guard_process.DEADLINE, key + 1_000, 0.0),
        record.pack(guard_process.FORGET, key + 1_000, 0.0),
        record.pack(guard_process.ADOPT, key + 1_000, float(child.pid)),  # without a pidfd
        record.pack(guard_process.LEAVE, 0, 0.0)[:-1],
        record.pack(guard_process.DEADLINE, key, 0.0) + b"x",
    ):
        process.send(packet)
    for no_pid in (0.0, 1.0, -5.0, float("nan"), float("inf")):
        process.send(record.pack(guard_process.ADOPT, key + 1_000, no_pid), child.pidfd)
    await all_was_heard(guard, start)
    assert still_running(child.pid)
    assert pid_of(guard) == before
    guard.forget(child)


async def test_a_guard_that_was_killed_is_replaced_and_the_new_one_knows_all_deadlines(
    guard: Guard, start: Start
) -> None:
    due, put_off = start(), start()
    for child in (due, put_off):
        guard.adopt(child)
        guard.trust_until(child, boottime() + FAR_OFF_SECONDS)
    first = pid_of(guard)
    os.kill(first, signal.SIGKILL)
    await until_gone(guard)
    guard.trust_until(due, boottime())  # while there is none
    with anyio.fail_after(PATIENCE_SECONDS):
        await guard.up()
    assert pid_of(guard) != first
    assert guard.restarts == 1
    await until(lambda: not still_running(due.pid))
    assert still_running(put_off.pid)
    guard.forget(put_off)


async def test_nothing_is_claimed_while_there_is_no_guard(guard: Guard) -> None:
    await guard.up()
    os.kill(pid_of(guard), signal.SIGKILL)
    await until_gone(guard)
    with anyio.move_on_after(0) as at_once:
        await guard.up()
    assert at_once.cancelled_caught
    with anyio.fail_after(PATIENCE_SECONDS):
        await guard.up()


async def test_a_guard_that_dies_again_and_again_is_replaced_later_and_later(
    guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays: list[int] = []
    monkeypatch.setattr(guarding, "restart_delay_seconds", lambda deaths: delays.append(deaths) or 0.0)
    for _ in range(3):
        os.kill(pid_of(guard), signal.SIGKILL)
        await until_gone(guard)
        await guard.up()
    assert delays == [1, 2, 3]


async def test_a_guard_that_cannot_be_started_again_is_tried_again(
    guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(guard_process, "__file__", "/nowhere/guard.py")
        tried: list[int] = []
        broken.setattr(guarding, "restart_delay_seconds", lambda deaths: tried.append(deaths) or 0.01)
        os.kill(pid_of(guard), signal.SIGKILL)
        await until(lambda: len(tried) >= 3)
        assert guard.pid is None
    with anyio.fail_after(PATIENCE_SECONDS):
        await guard.up()
    assert guard.restarts == 1


async def test_a_stopped_guard_holds_nobody_up_and_is_replaced_when_it_takes_no_more(
    guard: Guard, start: Start
) -> None:
    child = start()
    guard.adopt(child)
    first = pid_of(guard)
    os.kill(first, signal.SIGSTOP)
    far_off_at = boottime() + FAR_OFF_SECONDS
    for count in range(10_000):
        guard.trust_until(child, far_off_at - count / 1_000)  # each earlier than the last, so it is told at once
    await until(lambda: guard.pid not in (first, None))
    guard.trust_until(child, boottime())
    await until(lambda: not still_running(child.pid))


async def test_signals_that_mean_the_supervisor_do_not_end_the_guard(guard: Guard, start: Start) -> None:
    before = pid_of(guard)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(before, number)
    await all_was_heard(guard, start)
    assert pid_of(guard) == before
    assert os.getsid(before) == before


async def test_a_guard_that_is_not_needed_any_more_leaves_and_nothing_of_it_is_left(start: Start) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    forgotten = start()
    async with guarding_with(Guard(GuardKind.PROCESS)) as guard:
        guard.adopt(forgotten)
        guard.forget(forgotten)
        pid = pid_of(guard)
    assert not os.path.exists(f"/proc/{pid}"), "a zombie, at least"
    assert still_running(forgotten.pid)
    assert len(os.listdir("/proc/self/fd")) == descriptors + 2  # those of the sleeper


async def test_what_is_still_guarded_when_the_guard_leaves_is_ended(start: Start) -> None:
    child = start()
    async with guarding_with(Guard(GuardKind.PROCESS)) as guard:
        guard.adopt(child)
    assert child.process.wait(PATIENCE_SECONDS) == -signal.SIGKILL


async def test_many_children_are_ended_at_once(guard: Guard, start: Start) -> None:
    children = [start() for _ in range(300)]
    before = pid_of(guard)
    for child in children:
        guard.adopt(child)
        guard.trust_until(child, boottime() + FAR_OFF_SECONDS)
    due_at = boottime()
    for child in children:
        guard.trust_until(child, due_at)
    await until(lambda: not any(still_running(child.pid) for child in children))
    await until(lambda: all(child.killed_by_guard for child in children))
    assert pid_of(guard) == before


async def test_where_no_guard_can_be_had_children_are_told_their_deadlines(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard_process, "__file__", "/nowhere/guard.py")
    child = start()
    async with guarding_with(Guard(GuardKind.PROCESS)) as guard:
        await guard.up()
        guard.adopt(child)
        guard.trust_until(child, 1234.5)
        guard.trust_until(child, None)
        guard.forget(child)
    assert child.orders == [wire.Trust(1234.5), wire.Trust(None)]
    assert still_running(child.pid)


async def test_a_child_without_a_pidfd_is_told_its_deadlines_itself(guard: Guard, start: Start) -> None:
    child = start()
    pidfd, child.pidfd = child.pidfd, None
    guard.adopt(child)
    guard.trust_until(child, 0.0)
    await all_was_heard(guard, start)
    assert child.orders == [wire.Trust(0.0)]
    assert still_running(child.pid)
    child.pidfd = pidfd
