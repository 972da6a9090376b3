"""The heartbeat: extends what we hold, tells what is to be cancelled, and ends what is no longer ours."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import anyio
import pytest
from parts import Child, Clock, may_begin

from durablestack.errors import StoreUnavailable
from durablestack.ids import new_run_id
from durablestack.runs import Lease, NewRun
from durablestack.stores.contract import Claim, Extended
from durablestack.stores.memory import InMemoryStore
from durablestack.supervisor.heartbeat import Heartbeat, attempt_timeout_seconds
from durablestack.supervisor.leases import LeaseTable
from durablestack.supervisor.verdict import Ending

pytestmark = pytest.mark.anyio

LEASE = timedelta(seconds=10)
TRUST = 8.0


class AtOnce:
    """An event loop that calls what it is given right away."""

    def is_closed(self) -> bool:
        return False

    def call_soon_threadsafe(self, call: Callable[..., Any], *arguments: Any) -> None:
        call(*arguments)


class Ward:
    """A heartbeat that is driven by hand, one step at a time, by a clock that store, table and heartbeat share."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        monkeypatch.setattr("durablestack.supervisor.heartbeat.boottime", self.clock)
        self.store = InMemoryStore(lambda: datetime.fromtimestamp(self.clock.now, UTC))
        self.leases = LeaseTable(self.clock)
        self.killed: list[Lease] = []
        self.told: list[tuple[Ending, set[UUID]]] = []
        self.events: list[str] = []
        self.heartbeat = Heartbeat(
            self.store,
            self.leases,
            self._end_runs,
            lease_duration=LEASE,
            emit=lambda kind, *_, **__: self.events.append(kind),
        )
        self.heartbeat._loop = AtOnce()  # type: ignore[assignment]

    def _end_runs(self, run_ids: Collection[UUID], ending: Ending) -> None:
        self.told.append((ending, set(run_ids)))

    def executing(self) -> Lease:
        lease = claim_one(self.store)
        self.leases.hold([lease], self.clock.now, LEASE)
        assert may_begin(self.leases, lease, Child(lambda: self.killed.append(lease)))
        return lease

    def beat(self) -> None:
        self.heartbeat._next_beat_at = self.clock.now
        self.heartbeat._step()

    def check_requests(self) -> None:
        self.heartbeat._next_beat_at = self.clock.now + 1_000
        self.heartbeat._next_cancel_check_at = self.clock.now
        self.heartbeat._step()

    def lease_until(self, lease: Lease) -> float:
        run = self.store.get_run(lease.run_id)
        assert run is not None
        assert run.lease_until is not None
        return run.lease_until.timestamp()


def claim_one(store: InMemoryStore, lease_duration: timedelta = LEASE) -> Lease:
    store.enqueue([NewRun(id=new_run_id(), job_name="job")])
    claim = Claim(
        worker_name="worker-1", lease_token=uuid4(), job_names=("job",), batch_size=1, lease_duration=lease_duration
    )
    (run,) = store.claim_due_runs(claim).runs
    return run.lease


@pytest.fixture
def ward(monkeypatch: pytest.MonkeyPatch) -> Ward:
    return Ward(monkeypatch)


# --- one step


def test_a_beat_extends_every_lease_and_the_trust_in_it(ward: Ward) -> None:
    leases = [ward.executing(), ward.executing()]
    ward.clock.now += 5
    ward.beat()
    assert [ward.lease_until(lease) for lease in leases] == [ward.clock.now + 10] * 2
    assert ward.leases.seconds_to_deadline() == TRUST
    assert ward.told == []
    assert ward.killed == []


def test_a_beat_extends_what_has_ended_but_is_not_yet_recorded(ward: Ward) -> None:
    lease = ward.executing()
    ward.leases.finished(lease)
    ward.clock.now += 5
    ward.beat()
    assert ward.lease_until(lease) == ward.clock.now + 10


def test_what_is_no_longer_ours_is_killed_and_told_as_lost(ward: Ward) -> None:
    ours, gone = ward.executing(), ward.executing()
    ward.store.release_claim(gone.token)
    ward.beat()
    assert ward.killed == [gone]
    assert ward.told == [(Ending.LEASE_LOST, {gone.run_id})]
    assert ward.leases.held() == [ours]
    ward.beat()
    assert len(ward.told) == 1


def test_what_is_to_be_cancelled_is_told_until_it_has_ended(ward: Ward) -> None:
    """It may be on the way from its claim to whoever could end it."""
    lease = ward.executing()
    other = ward.executing()
    ward.store.cancel_run(lease.run_id)
    ward.beat()
    ward.check_requests()
    assert ward.told == [(Ending.CANCELLED, {lease.run_id})] * 2
    ward.store.cancel_run(other.run_id)
    ward.leases.drop([lease])
    ward.check_requests()
    assert ward.told[2:] == [(Ending.CANCELLED, {other.run_id})]
    assert ward.killed == []


def test_a_request_for_a_stack_is_told_until_it_is_answered(ward: Ward) -> None:
    asked, other = ward.executing(), ward.executing()
    told: list[Collection[UUID]] = []
    ward.heartbeat.on_stack_requested = told.append
    ward.check_requests()
    assert told == []
    ward.store.request_stack(asked.run_id)
    for _ in range(2):
        ward.check_requests()
    assert told == [{asked.run_id}] * 2
    ward.store.write_stack(asked, "Thread 0x01")
    ward.check_requests()
    assert len(told) == 2
    assert ward.told == []
    assert ward.leases.held() == [asked, other]


def test_a_request_for_a_stack_that_nobody_listens_for_does_no_harm(ward: Ward) -> None:
    ward.store.request_stack(ward.executing().run_id)
    ward.check_requests()
    assert ward.told == []


def test_cancel_requests_are_found_between_beats_and_extend_nothing(ward: Ward) -> None:
    lease = ward.executing()
    until = ward.lease_until(lease)
    ward.store.cancel_run(lease.run_id)
    ward.clock.now += 1
    ward.check_requests()
    assert ward.told == [(Ending.CANCELLED, {lease.run_id})]
    assert ward.lease_until(lease) == until


def no_answer(*_: object) -> Extended:
    raise StoreUnavailable("away")


def test_no_answer_is_neither_success_nor_loss_until_the_time_of_trust_is_up(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ward.store, "extend_leases", no_answer)
    lease = ward.executing()
    ward.clock.now += 5
    ward.beat()
    assert ward.heartbeat._next_beat_at == ward.clock.now + attempt_timeout_seconds(LEASE) == ward.clock.now + 1
    assert ward.leases.held() == [lease]
    ward.clock.now += TRUST - 5
    ward.beat()
    assert ward.killed == [lease]
    assert ward.told == [(Ending.LEASE_LOST, {lease.run_id})]


def test_a_child_whose_earliest_lease_has_ended_may_go_on_for_longer_though_the_database_is_away(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ward.store, "extend_leases", no_answer)
    child, leases = Child(lambda: None), list[Lease]()
    for _ in range(2):
        leases.append(claim_one(ward.store))
        ward.leases.hold(leases[-1:], ward.clock.now, LEASE)
        assert may_begin(ward.leases, leases[-1], child)
        ward.clock.now += 3
    (at_first,) = child.trusted
    ward.leases.finished(leases[0])
    ward.beat()
    assert child.trusted == [at_first, pytest.approx((at_first or 0.0) + 3)]


def test_what_is_not_renewed_in_time_is_killed_before_the_database_is_asked(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = ward.executing()
    killed_when_asked: list[list[Lease]] = []

    def asked(*_: object) -> Extended:
        killed_when_asked.append(list(ward.killed))
        raise StoreUnavailable("away")

    monkeypatch.setattr(ward.store, "extend_leases", asked)
    ward.executing()
    ward.leases.extend({lease.run_id}, [lease], ward.clock.now - 1, LEASE)  # the one that ends first
    ward.clock.now += TRUST - 1
    ward.beat()
    assert killed_when_asked == [[lease]]


def test_the_heartbeat_sleeps_no_longer_than_until_the_first_lease_ends(ward: Ward) -> None:
    ward.heartbeat._next_beat_at = ward.heartbeat._next_cancel_check_at = ward.clock.now + 1_000
    assert ward.heartbeat._seconds_to_next() == 1_000
    ward.executing()
    assert ward.heartbeat._seconds_to_next() == TRUST
    ward.clock.now += 100
    assert ward.heartbeat._seconds_to_next() == 0


def test_after_an_answer_the_next_beat_comes_at_half_the_lease(ward: Ward) -> None:
    ward.executing()
    ward.beat()
    assert ward.heartbeat._next_beat_at == ward.clock.now + 5


def test_with_nothing_held_the_database_is_not_asked(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object) -> Extended:
        raise AssertionError("there was nothing to ask for")

    monkeypatch.setattr(ward.store, "extend_leases", asked)
    ward.beat()
    assert ward.events == ["worker_heartbeat"], "it lives all the same"


@pytest.mark.parametrize("seconds", [1, 3, 10, 30, 3_600])
def test_three_tries_fit_between_half_the_lease_and_the_end_of_trust(seconds: float) -> None:
    lease_duration = timedelta(seconds=seconds)
    assert 3 * attempt_timeout_seconds(lease_duration) <= seconds * 0.8 - seconds / 2 + 1e-9


# --- as a thread


async def test_a_living_heartbeat_keeps_leases_alive_and_stops_when_cancelled() -> None:
    store, leases = InMemoryStore(), LeaseTable()
    lease_duration = timedelta(seconds=0.6)
    beats = threading.Semaphore(0)
    extend = store.extend_leases

    def counted(*arguments: Any) -> Extended:
        extended = extend(*arguments)
        beats.release()
        return extended

    store.extend_leases = counted  # type: ignore[method-assign]
    killed: list[str] = []
    heartbeat = Heartbeat(
        store,
        leases,
        lambda ids, ending: killed.append(ending),
        lease_duration=lease_duration,
        emit=lambda *_, **__: None,
    )
    lease = claim_one(store, lease_duration)
    leases.hold([lease], leases._clock(), lease_duration)
    may_begin(leases, lease, Child(lambda: killed.append("killed")))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(heartbeat.run)
        for _ in range(2):
            assert await anyio.to_thread.run_sync(beats.acquire, True, 10)
        tasks.cancel_scope.cancel()
    assert "durablestack-heartbeat" not in {thread.name for thread in threading.enumerate()}
    assert leases.held() == [lease] or killed  # on a machine too busy to beat in time the run was ended, as it must


async def test_a_heartbeat_that_breaks_ends_the_supervisor_and_not_only_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heartbeat = Heartbeat(
        InMemoryStore(), LeaseTable(), lambda ids, ending: None, lease_duration=LEASE, emit=lambda *_, **__: None
    )

    def broken() -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(heartbeat, "_step", broken)
    with anyio.fail_after(10), pytest.RaisesGroup(ZeroDivisionError, allow_unwrapped=True):
        await heartbeat.run()
