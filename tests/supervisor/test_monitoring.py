"""What a supervisor tells of itself over HTTP, while things happen to it."""

import re
import signal
import socket
import sys
import threading
import urllib.request
from collections.abc import Callable, Mapping
from http import HTTPStatus
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

import anyio
import pytest

from durablestack import DurableStack, RunStatus
from durablestack.stores.contract import Requests
from durablestack.supervisor.embedded import supervise
from durablestack.supervisor.health import why_not_live, why_not_ready
from durablestack.supervisor.monitoring import answers
from durablestack.supervisor.tree import Supervisor
from proxy import TcpProxy
from workers import PATIENCE_SECONDS, Bench, Worker, eventually

LONG = {"seconds": 60.0}
MONITORED = ("--monitoring-port", "0")


class Probe:
    """Asks a worker, at the port that it has logged."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        found = eventually(
            lambda: re.search(r"listening on http://127\.0\.0\.1:(\d+)", worker.log()), what=worker.log()
        )
        self.port = int(found[1])

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=PATIENCE_SECONDS) as response:
                return response.status, response.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def until(self, path: str, answer: tuple[int, str]) -> None:
        eventually(lambda: self.get(path) == answer, what=f"{answer} of {path}; {self.worker.log()}")

    def metrics(self) -> Mapping[str, float]:
        status, text = self.get("/metrics")
        assert status == 200, text
        lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in lines}

    def until_metrics(self, wanted: Mapping[str, float]) -> None:
        def there() -> bool:
            told = self.metrics()
            return all(told.get(name) == value for name, value in wanted.items())

        eventually(there, what=f"{wanted} in {self.get('/metrics')[1]}")


def of(metric: str, job_name: str) -> str:
    return f'durablestack_{metric}{{job_name="{job_name}"}}'


def test_metrics_move_with_the_runs(any_bench: Bench) -> None:
    probe = Probe(any_bench.worker(*MONITORED, "--lease-duration-seconds", "1"))
    probe.until("/ready", (200, "ready\n"))
    assert probe.get("/live") == (200, "live\n")
    assert probe.metrics()[of("runs_succeeded_total", "innocent")] == 0
    for _ in range(3):
        any_bench.client.enqueue("innocent")
    any_bench.client.enqueue("raises", "no")  # two attempts
    any_bench.client.enqueue("dies", "sigkill")
    probe.until_metrics(
        {
            of("runs_claimed_total", "innocent"): 3,
            of("runs_started_total", "innocent"): 3,
            of("runs_succeeded_total", "innocent"): 3,
            of("runs_failed_total", "innocent"): 0,
            of("run_duration_seconds_count", "innocent"): 3,
            of("queue_wait_seconds_count", "innocent"): 3,
            of("retries_total", "raises"): 1,
            of("runs_failed_total", "raises"): 1,
            of("run_duration_seconds_count", "raises"): 2,
            of("children_crashed_total", "dies"): 1,
            "durablestack_slots": 2,
            "durablestack_runs_in_flight": 0,
            "durablestack_outcomes_unrecorded": 0,
            'durablestack_events_dropped_total{sink="RunTally"}': 0,
        }
    )
    held = any_bench.client.enqueue("waits-until-told")
    any_bench.until_noted(held, "start")
    probe.until_metrics({"durablestack_runs_in_flight": 1})
    eventually(lambda: probe.metrics()["durablestack_lease_extensions_total"] > 0)
    any_bench.client.cancel_run(held)
    probe.until_metrics({of("runs_cancelled_total", "waits-until-told"): 1, "durablestack_runs_in_flight": 0})


def test_the_backlog_is_what_waits_for_a_slot(sqlite_bench: Bench) -> None:
    settings = {"DURABLESTACK__MONITORING__PORT": "0", "DURABLESTACK__MONITORING__BACKLOG_INTERVAL_SECONDS": "0.05"}
    probe = Probe(sqlite_bench.worker(settings=settings))
    probe.until_metrics({"durablestack_due_runs": 0, "durablestack_oldest_due_age_seconds": 0})
    run_ids = [sqlite_bench.client.enqueue("waits-until-told") for _ in range(5)]
    probe.until_metrics({"durablestack_due_runs": 3, "durablestack_runs_in_flight": 2})
    assert probe.metrics()["durablestack_oldest_due_age_seconds"] > 0
    for run_id in run_ids:
        sqlite_bench.client.cancel_run(run_id)
    probe.until_metrics({"durablestack_due_runs": 0, "durablestack_runs_in_flight": 0})


def test_it_is_not_ready_while_the_database_is_away_and_lives_on(
    postgres_bench: Bench, postgres_settings: dict[str, str]
) -> None:
    url = postgres_settings["DURABLESTACK__DATABASE_URL"]
    parts = urlsplit(url)
    with TcpProxy(parts.hostname or "127.0.0.1", parts.port or 5432) as proxy:
        through = re.sub(r"(127\.0\.0\.1|localhost):\d+", f"127.0.0.1:{proxy.port}", url)
        worker = postgres_bench.worker(*MONITORED, settings={"DURABLESTACK__DATABASE_URL": through})
        probe = Probe(worker)
        probe.until("/ready", (200, "ready\n"))
        proxy.refuse()
        probe.until("/ready", (503, "the database does not answer\n"))
        assert probe.get("/live") == (200, "live\n")
        proxy.pass_through()
        probe.until("/ready", (200, "ready\n"))
        worker.close()


def test_the_database_is_missed_also_when_every_slot_is_busy(
    postgres_bench: Bench, postgres_settings: dict[str, str]
) -> None:
    url = postgres_settings["DURABLESTACK__DATABASE_URL"]
    parts = urlsplit(url)
    with TcpProxy(parts.hostname or "127.0.0.1", parts.port or 5432) as proxy:
        through = re.sub(r"(127\.0\.0\.1|localhost):\d+", f"127.0.0.1:{proxy.port}", url)
        settings = {"DURABLESTACK__DATABASE_URL": through, "DURABLESTACK__LEASE_DURATION_SECONDS": "4"}
        worker = postgres_bench.worker(*MONITORED, "--max-concurrent-runs", "1", settings=settings)
        probe = Probe(worker)
        postgres_bench.until_noted(postgres_bench.client.enqueue("sleeps", LONG), "start")
        probe.until("/ready", (200, "ready\n"))
        proxy.refuse()
        probe.until("/ready", (503, "the database does not answer\n"))
        worker.close()


def test_it_is_not_ready_while_it_stops_and_tells_of_itself_until_the_end(sqlite_bench: Bench) -> None:
    settings = {"DURABLESTACK__SHUTDOWN_DRAIN_TIMEOUT_SECONDS": "300"}
    worker = sqlite_bench.worker(*MONITORED, settings=settings)
    probe = Probe(worker)
    sqlite_bench.until_noted(sqlite_bench.client.enqueue("sleeps", LONG), "start")
    worker.terminate()
    probe.until("/ready", (503, "it is stopping\n"))
    assert probe.get("/live") == (200, "live\n")
    assert probe.metrics()["durablestack_runs_in_flight"] == 1
    worker.terminate()
    assert worker.exit_code() == 0
    with pytest.raises(URLError):
        probe.get("/live")


def test_it_is_not_ready_while_children_die_too_often(sqlite_bench: Bench) -> None:
    probe = Probe(sqlite_bench.worker(*MONITORED, settings={"DURABLESTACK__RESTART_LIMIT": "2"}))
    probe.until("/ready", (200, "ready\n"))
    sqlite_bench.client.enqueue_many("dies", ["sigkill"] * 3)
    eventually(lambda: "children die more often than the restart limit allows\n" in probe.get("/ready")[1])
    assert probe.get("/ready")[0] == 503
    assert probe.get("/live")[0] == 200


def test_a_port_that_is_taken_is_told_in_one_sentence_and_nothing_is_claimed(sqlite_bench: Bench) -> None:
    run_id = sqlite_bench.client.enqueue("innocent")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        worker = sqlite_bench.worker("--monitoring-port", str(port))
        assert worker.exit_code() == 2
    assert f"error: monitoring.port = {port}: cannot listen on '127.0.0.1'" in worker.log()
    assert "Traceback" not in worker.log()
    assert (sqlite_bench.run(run_id).status, sqlite_bench.run(run_id).attempt) == (RunStatus.PENDING, 0)


def test_hostile_clients_disturb_neither_probes_nor_runs(sqlite_bench: Bench) -> None:
    probe = Probe(sqlite_bench.worker(*MONITORED))
    clients = [socket.create_connection(("127.0.0.1", probe.port), timeout=PATIENCE_SECONDS) for _ in range(60)]
    for number, client in enumerate(clients):
        try:
            client.sendall((b"GET /live HTTP/1.1\r\nX-Slow: ", b"\x16\x03\x01" + b"\xff" * 50_000)[number % 2])
        except OSError:  # it has had to make room already
            continue
    for _ in range(5):
        assert probe.get("/live") == (200, "live\n")
        run_id = sqlite_bench.client.enqueue("innocent")
        sqlite_bench.until(run_id, RunStatus.SUCCEEDED)
    assert "Traceback" not in probe.worker.log()
    for client in clients:
        client.close()


def test_children_do_not_hold_the_port(sqlite_bench: Bench) -> None:
    probe = Probe(sqlite_bench.worker(*MONITORED))
    run = sqlite_bench.until(sqlite_bench.client.enqueue("tells-its-descriptors"), RunStatus.SUCCEEDED)
    assert "tcp 0" in (run.stdout_tail or "")
    probe.worker.process.send_signal(signal.SIGKILL)
    probe.worker.exit_code()
    eventually(lambda: _refuses(probe.port), what="the end of the port")


def _refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


# --- inside an application's loop


def stack(**options: object) -> DurableStack:
    return DurableStack("chaos_jobs", max_concurrent_runs=1, storage_provider="in_memory", **options)


async def until(look: Callable[[], bool]) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        while not look():
            await anyio.sleep(0.01)


@pytest.mark.anyio
async def test_a_supervisor_in_an_application_is_asked_in_the_same_way() -> None:
    async with supervise(stack(monitoring={"port": 0})) as supervisor:
        assert supervisor.endpoint is not None
        await until(lambda: why_not_ready(supervisor) == [])
        url = f"http://127.0.0.1:{supervisor.endpoint.port}/ready"
        assert await anyio.to_thread.run_sync(lambda: urllib.request.urlopen(url, timeout=30).read()) == b"ready\n"


@pytest.mark.anyio
async def test_nothing_listens_and_nobody_counts_unless_a_port_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "opentelemetry.trace", raising=False)  # other tests may have loaded it
    async with supervise(stack()) as supervisor:
        assert supervisor.endpoint is None
        await until(lambda: why_not_ready(supervisor) == [])
        assert supervisor.backlog.latest is None
        assert supervisor.bus.dropped == {}


@pytest.mark.anyio
async def test_a_heartbeat_that_is_stuck_is_no_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durablestack.supervisor.heartbeat._STUCK_AFTER_SECONDS_MIN", 0.5)
    mine = stack(lease_duration_seconds=1, poll_interval_seconds=0.1)
    gate = threading.Event()
    async with supervise(mine) as supervisor:
        await until(lambda: why_not_ready(supervisor) == [])
        monkeypatch.setattr(mine.store, "find_requests", lambda leases: gate.wait(PATIENCE_SECONDS) and Requests())
        await until(lambda: why_not_live(supervisor) == ["the heartbeat is stuck"])
        assert why_not_ready(supervisor) == ["the heartbeat is stuck"]
        gate.set()
        await until(lambda: why_not_live(supervisor) == [])


@pytest.mark.anyio
async def test_without_the_package_the_metrics_say_which_one_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "durablestack.supervisor.metrics", raising=False)
    supervisor = Supervisor(stack())
    answer = answers(supervisor)["/metrics"]()
    assert answer.status is HTTPStatus.NOT_IMPLEMENTED
    assert b"durablestack[prometheus]" in answer.body
    assert answers(supervisor)["/ready"]().body == b"it is starting\n"
