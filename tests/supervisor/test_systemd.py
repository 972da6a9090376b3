"""What systemd is told, over a real socket: by supervisors that start, run, freeze and stop."""

import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from durablestack import DurableStack, RunStatus
from durablestack.stores.contract import Requests
from durablestack.supervisor.embedded import supervise
from durablestack.supervisor.health import why_not_live
from durablestack.supervisor.systemd import Systemd
from workers import PATIENCE_SECONDS, Bench, eventually

WATCHDOG_SECONDS = 0.4


class Manager:
    """Listens where systemd would."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._socket.setblocking(False)
        self.told: list[str] = []

    @property
    def environment(self) -> dict[str, str]:
        return {"NOTIFY_SOCKET": self.address, "WATCHDOG_USEC": str(int(WATCHDOG_SECONDS * 1e6))}

    def hear(self) -> list[str]:
        """What has been said since this was last asked, message by message."""
        heard: list[str] = []
        while True:
            try:
                heard.append(self._socket.recv(65_536).decode())
            except BlockingIOError:
                self.told += heard
                return heard

    def until_told(self, word: str) -> str:
        """Wait for a message, from now on, with this line in it."""
        found: list[str] = []
        eventually(lambda: found.extend(m for m in self.hear() if word in m.split("\n")) or found, what=word)
        return found[0]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@durablestack-{secrets.token_hex(8)}"
    made = Manager(address)
    yield made
    made.close()


def test_a_worker_tells_that_it_is_ready_that_it_lives_and_that_it_stops(sqlite_bench: Bench, manager: Manager) -> None:
    settings = {**manager.environment, "DURABLESTACK__SHUTDOWN_DRAIN_TIMEOUT_SECONDS": "300"}
    worker = sqlite_bench.worker(settings=settings)
    manager.until_told("READY=1")
    assert "WATCHDOG=1" in manager.until_told("STATUS=ready: 0 of 2 slots busy, 0 succeeded, 0 retried, 0 failed")
    run_id = sqlite_bench.client.enqueue("sleeps", {"seconds": 60.0})
    sqlite_bench.until_noted(run_id, "start")
    manager.until_told("STATUS=ready: 1 of 2 slots busy, 0 succeeded, 0 retried, 0 failed")
    assert not [message for message in manager.told if "STOPPING" in message]
    worker.terminate()
    last = manager.until_told("STOPPING=1")
    assert "EXTEND_TIMEOUT_USEC=30000000" in last
    assert "WATCHDOG=1" in last
    assert "STATUS=it is stopping: 1 of 2" in last
    worker.terminate()
    assert worker.exit_code() == 0


def test_a_frozen_worker_says_nothing_and_goes_on_when_it_is_thawed(sqlite_bench: Bench, tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    worker = sqlite_bench.worker(settings=manager.environment)
    manager.until_told("WATCHDOG=1")
    worker.freeze()
    eventually(lambda: _is_stopped(worker.pid))
    manager.hear()
    time.sleep(3 * WATCHDOG_SECONDS)  # for what must not happen there is nothing to wait for
    assert manager.hear() == []
    worker.thaw()
    manager.until_told("WATCHDOG=1")
    manager.close()


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_children_are_not_told_where_systemd_listens(sqlite_bench: Bench, tmp_path: Path, start_method: str) -> None:
    manager = Manager(str(tmp_path / "notify"))
    worker = sqlite_bench.worker(settings={**manager.environment, "DURABLESTACK__START_METHOD": start_method})
    for pid in worker.until_ready(children=2):
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"CHAOS_DIARY=" in environment
        assert b"NOTIFY_SOCKET" not in environment
        assert b"WATCHDOG_USEC" not in environment
    manager.close()


def test_a_socket_where_nobody_listens_is_told_once_and_stops_nothing(sqlite_bench: Bench, tmp_path: Path) -> None:
    settings = {"NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "20000"}
    worker = sqlite_bench.worker(settings=settings)
    sqlite_bench.until(sqlite_bench.client.enqueue("innocent"), RunStatus.SUCCEEDED)
    worker.terminate()
    assert worker.exit_code() == 0
    assert worker.log().count("systemd cannot be told") == 1


# --- alone


def test_what_is_not_meant_for_us_is_not_taken_up() -> None:
    environ = {"NOTIFY_SOCKET": "vsock:2:1234", "WATCHDOG_USEC": "x", "HOME": "/"}
    assert Systemd.take_from(environ) is None
    assert environ == {"HOME": "/"}
    assert Systemd.take_from({}) is None
    for watchdog in ({}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "9", "WATCHDOG_PID": str(os.getpid() + 1)}):
        taken = Systemd.take_from({"NOTIFY_SOCKET": "@here", **watchdog})
        assert taken is not None
        assert not taken._watched
    taken = Systemd.take_from({"NOTIFY_SOCKET": "@here", "WATCHDOG_USEC": "600000", "WATCHDOG_PID": str(os.getpid())})
    assert taken is not None
    assert (taken._watched, taken._interval_seconds) == (True, 0.3)


@pytest.mark.anyio
async def test_a_blocked_event_loop_and_a_stuck_heartbeat_are_not_alive(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durablestack.supervisor.heartbeat._STUCK_AFTER_SECONDS_MIN", 0.5)
    stack = DurableStack("chaos_jobs", storage_provider="in_memory", max_concurrent_runs=1, lease_duration_seconds=1)
    gate = threading.Event()

    async def until_told(word: str) -> None:
        with anyio.fail_after(PATIENCE_SECONDS):
            while not any(word in message for message in manager.hear()):
                await anyio.sleep(0.01)

    async with supervise(stack) as supervisor, anyio.create_task_group() as tasks:
        tasks.start_soon(Systemd(manager.address, WATCHDOG_SECONDS).run, supervisor)
        await until_told("WATCHDOG=1")
        manager.hear()
        time.sleep(3 * WATCHDOG_SECONDS)  # the whole loop waits
        assert manager.hear() == []
        await until_told("WATCHDOG=1")

        monkeypatch.setattr(stack.store, "find_requests", lambda leases: gate.wait(PATIENCE_SECONDS) and Requests())
        with anyio.fail_after(PATIENCE_SECONDS):
            while not why_not_live(supervisor):
                await anyio.sleep(0.01)
        manager.hear()
        await until_told("STATUS=the heartbeat is stuck")
        stuck = [message for message in manager.told if "STATUS=the heartbeat is stuck" in message]
        assert not [message for message in stuck if "WATCHDOG" in message]
        gate.set()
        await until_told("WATCHDOG=1")
        tasks.cancel_scope.cancel()
