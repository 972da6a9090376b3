"""A pool whose children are doubles: what they are given waits, until the test has it taken."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from msgspec.structs import replace
from parts import leased_run

from durablestack.events import EventType
from durablestack.jobs import JobRegistry
from durablestack.options import CrashedRunPolicy, StartMethod
from durablestack.runs import Outcome, Output, Released, Run
from durablestack.supervisor import wire
from durablestack.supervisor.death import Death
from durablestack.supervisor.executor import Executor
from durablestack.supervisor.leases import LeaseTable, boottime
from durablestack.supervisor.pool import Pool
from durablestack.supervisor.reports import Reports
from durablestack.supervisor.restarts import Restarts
from durablestack.supervisor.slots import Limits
from durablestack.supervisor.starter import Starter
from durablestack.supervisor.terms import Terms
from durablestack.supervisor.windows import Windows

LIMITS = Limits(startup_timeout_seconds=10, cancel_grace_seconds=1, terminate_grace_seconds=1, output_bytes_max=1024)


NO_TERMS = Terms()


def job() -> None:
    return


def long_job() -> None:
    return


class Parts:
    """A pool, of one slot unless the test says so, whose children have not been started."""

    def __init__(self, size: int = 1, limits: Limits = LIMITS, terms: Terms = NO_TERMS) -> None:
        self.recorded: list[Outcome] = []
        self.told: list[tuple[EventType, UUID | None]] = []
        self.leases = LeaseTable()
        self.held_for = timedelta(seconds=30)
        registry = JobRegistry()
        registry.add(job, name="job")
        registry.add(long_job, name="long job")
        self.windows = Windows(size, limits.runs_at_once_max)
        self.reports = Reports(
            self.leases,
            self.windows,
            Restarts(10, 60.0),
            crashed_run_policy=CrashedRunPolicy.RECORD,
            retry_after=lambda run, asked: None,
            record=lambda ended: self.recorded.extend(outcome for _, outcome, _ in ended),
            emit=lambda event_type, run=None, **_: self.told.append((event_type, None if run is None else run.id)),
        )
        self.pool = Pool(
            size,
            Starter(StartMethod.SPAWN, ()),
            limits,
            registry,
            self.leases,
            self.windows,
            self.reports,
            terms_of=lambda job: terms,
        )
        self.executor = self.pool.executors[0]

    def claimed(self, **fields: Any) -> Run:
        run = leased_run(**fields)
        self.leases.hold([run.lease], boottime(), self.held_for)
        return run


SHORT_SECONDS = 0.0006
WINDOW_MAX = 32
WINDOWS = replace(LIMITS, window_max=WINDOW_MAX)


class ShortChild:
    """As much of a child and its pipes as an executor knows: what it is given waits, until the test has it taken."""

    pid = 1
    gone = False
    tells_beginnings = False

    def __init__(self, room_for: int = 1_000) -> None:
        self.waiting: list[wire.Execute] = []
        self.windows: list[int] = []  # how many orders came with each
        self.sent: list[wire.Order] = []
        self.killed = False
        self.listens = True
        self.trusted: list[float | None] = []
        self._room_for = room_for

    @property
    def orders(self) -> ShortChild:
        return self

    @property
    def control(self) -> ShortChild:
        return self

    def put(self, orders: Sequence[wire.Execute]) -> int:
        self.windows.append(len(orders))
        put = orders[: max(0, self._room_for - len(self.waiting))]
        self.waiting += put
        return len(put)

    def take_back(self) -> int:
        count = len(self.waiting)
        self.waiting.clear()
        return count

    @property
    def has_untaken(self) -> bool:
        return bool(self.waiting)

    def kill(self) -> None:
        self.killed = True

    def send(self, order: wire.Order) -> None:
        self.sent.append(order)

    def trust_until(self, boottime: float | None) -> None:
        self.trusted.append(boottime)

    def listens_to_output(self, listens: bool) -> None:
        self.listens = listens

    def hears(self, at_once: bool) -> None:
        return

    def look(self) -> None:
        return

    def take_output(self) -> Output:
        return Output()

    def told_outputs(self, replies: Sequence[wire.Succeeded | wire.Failed]) -> list[Output]:
        return [Output(reply.stdout.decode() or None) for reply in replies]

    def take_stack(self) -> str | None:
        return None

    def forget_stack(self) -> None:
        return

    def ask_for_stack(self) -> None:
        return


class ShortParts(Parts):
    """A pool whose children are ready, and have done many short runs of all jobs but one."""

    def __init__(self, size: int, *, limits: Limits = WINDOWS, terms: Terms = NO_TERMS, room_for: int = 1_000) -> None:
        super().__init__(size, limits, terms)
        self.children = [ShortChild(room_for) for _ in range(size)]
        for executor, child in zip(self.pool.executors, self.children, strict=True):
            self.gets(executor, child)
        self.windows.ended([("job", SHORT_SECONDS)] * 100)

    def gets(self, executor: Executor, child: ShortChild) -> None:
        self.children[executor.number] = child
        executor.pid = child.pid
        executor.line.open(child)  # type: ignore[arg-type]

    def claims(self, count: int, **fields: Any) -> list[Run]:
        return [self.claimed(**fields) for _ in range(count)]

    def has(self, executor: Executor) -> list[Run]:
        """The run in hand, and those behind it."""
        held = [] if executor.line.in_hand is None else [executor.line.in_hand]
        return [each.run for each in [*held, *executor.line.behind]]

    @property
    def released(self) -> set[UUID]:
        return {outcome.lease.run_id for outcome in self.recorded if isinstance(outcome, Released)}

    def takes(self, executor: Executor) -> wire.Execute:
        """Its child takes the next order. Of a short run it does not say so."""
        return self.children[executor.number].waiting.pop(0)

    def began(self, run_id: UUID) -> int:
        """How often that was told of a run."""
        return self.told.count((EventType.JOB_STARTED, run_id))

    def succeeds(self, executor: Executor, order: wire.Execute, **fields: Any) -> None:
        executor._on_replies([wire.Succeeded(order.number, seconds=SHORT_SECONDS, **fields)])

    def dies(self, executor: Executor, death: Death = Death(-11)) -> None:  # noqa: B008
        child = self.children[executor.number]
        child.gone = True
        executor._bury(child, death)  # type: ignore[arg-type]
        executor.line.child = executor.pid = None


def ids(runs: Iterable[Run]) -> list[UUID]:
    return [run.id for run in runs]
