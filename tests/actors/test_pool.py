"""The pool: what becomes of a token when the child behind it is replaced at the wrong moment."""

from datetime import timedelta

import pytest
from parts import leased_run

from durablestack.jobs import JobRegistry
from durablestack.options import CrashedRunPolicy, StartMethod
from durablestack.runs import Outcome, Released, Run
from durablestack.supervisor.bus import NOT_BEGUN
from durablestack.supervisor.executor import Ended, Limits
from durablestack.supervisor.in_hand import Assignment
from durablestack.supervisor.leases import LeaseTable, boottime
from durablestack.supervisor.pool import Pool
from durablestack.supervisor.process import Death
from durablestack.supervisor.restarts import Restarts
from durablestack.supervisor.starter import Starter
from durablestack.supervisor.terms import Terms
from durablestack.supervisor.verdict import Ending, Evidence

pytestmark = pytest.mark.anyio

LIMITS = Limits(startup_timeout_seconds=10, cancel_grace_seconds=1, terminate_grace_seconds=1, output_bytes_max=1024)


def job() -> None:
    return


class Parts:
    """A pool of one slot, whose child has not been started."""

    def __init__(self) -> None:
        self.recorded: list[Outcome] = []
        self.leases = LeaseTable()
        registry = JobRegistry()
        registry.add(job, name="job")
        self.pool = Pool(
            1,
            Starter(StartMethod.SPAWN, ()),
            LIMITS,
            registry,
            self.leases,
            Restarts(10, 60.0),
            terms_of=lambda job: Terms(),
            crashed_run_policy=CrashedRunPolicy.RECORD,
            retry_after=lambda run, asked: None,
            record=lambda run, outcome, seconds: self.recorded.append(outcome),
            emit=lambda *_, **__: None,
        )
        self.executor = self.pool.executors[0]

    def claimed(self) -> Run:
        run = leased_run()
        self.leases.hold([run.lease], boottime(), timedelta(seconds=30))
        return run


async def test_an_executor_that_got_a_run_is_no_token_even_if_its_child_was_replaced_meanwhile() -> None:
    parts = Parts()
    parts.pool.idle(parts.executor)
    (taken,) = await parts.pool.take_idle(1)
    parts.pool.idle(parts.executor)  # the child died while the claim was under way, and another one is ready
    parts.pool.assign(taken, parts.claimed())
    assert not parts.pool._idle


async def test_a_token_that_is_given_back_while_its_child_starts_comes_back_with_the_child() -> None:
    parts = Parts()
    parts.pool.idle(parts.executor)
    taken = await parts.pool.take_idle(1)
    parts.pool.give_back(taken)  # there is no child now
    assert not parts.pool._idle
    parts.pool.idle(parts.executor)
    parts.pool.idle(parts.executor)
    assert list(parts.pool._idle) == [parts.executor]


@pytest.mark.parametrize("ending", [Ending.STOPPING, Ending.CANCELLED])
async def test_a_run_that_no_child_has_seen_is_given_back_when_it_is_to_end(ending: Ending) -> None:
    parts = Parts()
    run = parts.claimed()
    parts.pool.assign(parts.executor, run)
    parts.pool.end_run(run.id, ending)
    assert parts.recorded == [Released(run.lease)]
    await parts.pool.quiet()


async def test_a_stop_at_once_does_not_wait_for_a_run_that_no_child_has_seen() -> None:
    parts = Parts()
    run = parts.claimed()
    parts.pool.assign(parts.executor, run)
    parts.pool.kill_all(Ending.STOPPING)
    assert parts.recorded == [Released(run.lease)]


@pytest.mark.parametrize("cause", ["the guard killed it", "its lease is not trusted"])
async def test_a_death_that_the_end_of_trust_brought_is_no_crash(cause: str) -> None:
    parts = Parts()
    held_for = timedelta(seconds=30)
    run = leased_run()
    asked_at = boottime() if cause == "the guard killed it" else boottime() - held_for.total_seconds()
    parts.leases.hold([run.lease], asked_at, held_for)
    death = Death(-9, by_guard=cause == "the guard killed it")
    parts.pool.ended(
        Ended(assignment=Assignment(run, Terms()), how=death, ending=None, evidence=Evidence(), course=NOT_BEGUN, pid=1)
    )
    assert parts.recorded == []
    assert parts.pool.children_lost == 0
    assert parts.leases.held() == []
