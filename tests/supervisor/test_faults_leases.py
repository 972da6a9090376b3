"""Faults of leases and clocks: renewals that are late, lost or stolen, clocks that are wrong. See docs/faults.md, C."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from durablestack import RunStatus
from durablestack.ids import new_run_id
from durablestack.runs import Lease, NewRun, Run, Succeeded
from durablestack.stores.contract import Claim, Store
from durablestack.stores.providers import open_store
from durablestack.stores.sql import SqlStore
from durablestack.supervisor.leases import LeaseTable
from processes import still_running
from proxies import proxy_to, through
from workers import PATIENCE_SECONDS, Bench, eventually

JOB = "send_email"
A_TICK = timedelta(milliseconds=2)
"""SQLite tells the time in milliseconds."""


def claim(store: Store, lease_seconds: float, worker_name: str = "worker") -> list[Run]:
    request = Claim(
        worker_name=worker_name,
        lease_token=uuid4(),
        job_names=[JOB],
        batch_size=10,
        lease_duration=timedelta(seconds=lease_seconds),
    )
    return store.claim_due_runs(request).runs


def enqueue(store: Store) -> None:
    store.enqueue([NewRun(id=new_run_id(), job_name=JOB, max_attempts=3)])


# --- renewals


def test_renewals_that_are_held_up_for_a_moment_or_whose_answer_is_lost_cost_nothing(
    postgres_bench: Bench, postgres_settings: dict[str, str]
) -> None:
    lease_seconds = 4.0
    with proxy_to(postgres_settings) as proxy:
        worker = postgres_bench.worker(
            "--lease-duration-seconds", str(lease_seconds), settings=through(proxy, postgres_settings)
        )
        run_id = postgres_bench.client.enqueue("sleeps", {"seconds": 1.8 * lease_seconds})
        postgres_bench.until_noted(run_id, "start")
        proxy.cut_commit("after", b"set lease_until_utc")  # renewed, and the answer is lost
        assert proxy.cut_done.wait(PATIENCE_SECONDS)
        renewed_until = lease_until(postgres_bench.run(run_id))
        proxy.freeze()  # the next renewals get no answer, and there is time for one that does
        worker.until_logged("could not extend")
        proxy.thaw()
        eventually(lambda: lease_until(postgres_bench.run(run_id)) > renewed_until, what="a renewal")
        assert postgres_bench.until(run_id, RunStatus.SUCCEEDED).attempt == 1
        assert postgres_bench.executions()[run_id] == 1
        assert "lease lost" not in worker.log()
        worker.close()


def lease_until(run: Run) -> float:
    return run.lease_until.timestamp() if run.lease_until else 0.0


def test_a_lease_that_somebody_takes_away_ends_its_child_and_nothing_is_recorded(any_bench: Bench) -> None:
    worker = any_bench.worker()
    run_id = any_bench.client.enqueue("sleeps", {"seconds": 60.0})
    child = any_bench.until_noted(run_id, "start").pid
    held, taken = any_bench.run(run_id), uuid4()
    set_lease_token(any_bench, run_id, taken)
    eventually(lambda: not still_running(child), within_seconds=10, what="the end of the child")
    worker.until_logged("lease lost, no longer ours")
    left = any_bench.run(run_id)
    assert (left.status, left.attempt, left.lease_token) == (RunStatus.LEASED, held.attempt, taken)
    assert set(any_bench.stack.store.record([Succeeded(left.lease)])) == {run_id}
    assert any_bench.until(any_bench.client.enqueue("innocent"), RunStatus.SUCCEEDED).attempt == 1


def set_lease_token(bench: Bench, run_id: UUID, token: UUID) -> None:
    """As an operator would, with a SQL console."""
    store = bench.stack.store
    assert isinstance(store, SqlStore)
    statement = store.dialect.render("", "update {runs} set lease_token = :token where id = :id", store.prefix)
    with store._connections.transaction() as tx:
        tx.run(statement, store.dialect.bind({"token": token, "id": run_id}))


def test_a_renewal_and_an_outcome_that_arrive_after_the_run_was_reclaimed_change_nothing(
    postgres_bench: Bench, postgres_settings: dict[str, str]
) -> None:
    """What the proxy holds back is what a network would deliver late: statements of a lease that is another's now."""
    direct = postgres_bench.stack.store
    with proxy_to(postgres_settings) as proxy:
        settings = {**postgres_settings, **through(proxy, postgres_settings)}
        late = [open_store(type(postgres_bench.stack.options).from_environment(settings)) for _ in range(2)]
        enqueue(direct)
        (stale,) = claim(late[0], lease_seconds=0.2)
        assert late[1].now()  # connected already
        answers: list[object] = []
        calls: list[Callable[[], object]] = [
            lambda: answers.append(set(late[0].record([Succeeded(stale.lease)]))),
            lambda: answers.append(set(late[1].extend_leases([stale.lease], timedelta(seconds=30)).held)),
        ]
        proxy.freeze()
        threads = [threading.Thread(target=call) for call in calls]
        for thread in threads:
            thread.start()
        reclaimed = eventually(lambda: claim(direct, lease_seconds=30), what="the end of the lease")
        run = postgres_bench.run(stale.id)
        assert (run.status, run.attempt, run.lease) == (RunStatus.LEASED, 2, reclaimed[0].lease)
        proxy.thaw()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
        assert answers == [set(), set()]
        assert postgres_bench.run(stale.id) == run
        for store in late:
            store.close()


# --- lengths


@pytest.mark.parametrize("provider", ["sqlite", "postgres", "mysql"])
def test_a_lease_counts_from_when_it_is_given_and_not_from_when_the_claim_began_to_wait(
    request: pytest.FixtureRequest, provider: str
) -> None:
    made: Bench = request.getfixturevalue(f"{provider}_bench")
    store, other = made.stack.store, open_store(made.stack.options)
    enqueue(store)
    claimed: list[Run] = []
    with closing(other), locked(other, provider):
        thread = threading.Thread(target=lambda: claimed.extend(claim(store, lease_seconds=1.0)))
        thread.start()
        time.sleep(1.5)  # longer than the lease
        assert claimed == []
        unlocked_at = datetime.now(UTC)  # all of them have the clock of this machine
    thread.join(PATIENCE_SECONDS)
    run = made.run(claimed[0].id)
    assert run.lease_until is not None
    assert run.lease_until >= unlocked_at + timedelta(seconds=1) - A_TICK


@contextmanager
def locked(store: Store, provider: str) -> Iterator[None]:
    """All of the table, or of the file, for the block."""
    assert isinstance(store, SqlStore)
    lock, unlock = {
        "sqlite": ("", ""),  # to begin is enough
        "postgres": ("lock table {runs} in access exclusive mode", ""),
        "mysql": ("lock tables {runs} write", "unlock tables"),
    }[provider]
    with store._connections.transaction() as tx:
        if lock:
            tx.run(store.dialect.render("", lock, store.prefix), {})
            tx.fetch("select 1", {})
        yield
        if unlock:
            tx.run(unlock, {})


def test_workers_with_longer_and_shorter_leases_respect_each_other(any_bench: Bench) -> None:
    store = any_bench.stack.store
    enqueue(store)
    (patient,) = claim(store, lease_seconds=300, worker_name="patient")
    enqueue(store)
    (hasty,) = claim(store, lease_seconds=0.2, worker_name="hasty")
    eventually(lambda: hasty.id in [run.id for run in claim(store, lease_seconds=300)], what="the short lease to end")
    assert store.extend_leases([patient.lease, hasty.lease], timedelta(seconds=0.2)).held == {patient.id}
    eventually(lambda: patient.id in [run.id for run in claim(store, lease_seconds=0.2)], what="what it was cut to")


# --- clocks


class Child:
    """What executes a run, as far as a table of leases knows it."""

    def __init__(self, kill: Callable[[], None]) -> None:
        self.kill = kill

    def trust_until(self, boottime: float | None) -> None:
        pass


def test_however_slow_the_workers_clock_is_within_the_margin_its_child_is_dead_before_the_lease_ends() -> None:
    lease_seconds, rate = 10.0, 0.81
    real = [0.0]
    leases = LeaseTable(clock=lambda: real[0] * rate)
    lease = Lease(run_id=uuid4(), attempt=1, token=uuid4(), worker_name="slow")
    leases.hold([lease], asked_at=0.0, duration=timedelta(seconds=lease_seconds))
    killed: list[float] = []
    assert leases.all_executing([lease], Child(lambda: killed.append(real[0]))) == []
    while not killed:
        real[0] += 0.01
        leases.lose_distrusted()
    assert 0.8 * lease_seconds <= killed[0] < lease_seconds


SHIFTED = """
import datetime, runpy, sys, time
days = float(sys.argv[1]) * 86_400
real = time.time
time.time = lambda: real() + days

class Shifted(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().fromtimestamp(time.time(), tz)

datetime.datetime = Shifted
sys.argv = sys.argv[4:]
runpy.run_module("durablestack.supervisor", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("days", [-1, 1])
def test_a_worker_whose_clock_is_a_day_wrong_begins_nothing_early_and_nothing_late(
    postgres_bench: Bench, days: int
) -> None:
    store = postgres_bench.stack.store
    postgres_bench.worker(under=[sys.executable, "-c", SHIFTED, str(days)])
    due_at = store.now() + timedelta(seconds=2)
    run_id = postgres_bench.client.schedule("innocent", run_at=due_at)
    retried = postgres_bench.client.enqueue("dies-once", "exit-3")
    assert postgres_bench.until(retried, RunStatus.SUCCEEDED).attempt == 2
    run = postgres_bench.until(run_id, RunStatus.SUCCEEDED)
    assert run.attempt == 1
    assert run.started_at is not None
    assert run.started_at >= due_at
