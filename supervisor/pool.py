"""The executors: as many as runs may be in flight at once.

An idle executor is a token. Whoever wants work done takes tokens out, and hands each a run or gives it back; an
executor without a child that is ready is no token, so that nothing is claimed while no child can start.

Where runs are short there is room for more than one behind each: see `windows`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from time import monotonic
from uuid import UUID

import anyio
from msgspec import Struct

from durablestack.jobs import JobRegistration, JobRegistry
from durablestack.runs import Lease, Run

from .executor import Executor
from .in_hand import Assignment
from .leases import LeaseTable
from .line import Line
from .process import ChildProcess
from .reports import Reports
from .slots import Limits
from .starter import Starter
from .terms import Terms
from .verdict import Ending
from .watch import Watch
from .windows import Windows, is_short

_LOOK_SECONDS = 0.025
_GENEROUS_TIMES = 3  # as many as a child should have, for what is claimed already
_BY_THE_ANSWER = 2  # windows: that which is being done, and the one after it
_LOOK_FOR_REPLIES_SECONDS = 0.001
_MORE_ROOM_WITHIN_SECONDS = 0.001
_ALL_CHILDREN_WITHIN_SECONDS = 0.1


class Room(Struct, frozen=True):
    """For so many runs: one for each of these executors, which have none, and some that wait behind short ones."""

    idle: list[Executor]
    behind: int

    @property
    def size(self) -> int:
        return len(self.idle) + self.behind


NO_ROOM = Room([], 0)


class Pool:
    def __init__(
        self,
        size: int,
        starter: Starter,
        limits: Limits,
        jobs: JobRegistry,
        leases: LeaseTable,
        windows: Windows,
        reports: Reports,
        *,
        terms_of: Callable[[JobRegistration], Terms],
    ) -> None:
        self.executors = [Executor(number, self, reports, starter, limits) for number in range(size)]
        self.job_names = frozenset(jobs.names)
        self.has_started = False
        self.on_room: Callable[[], None] = lambda: None
        self._watch = Watch(lambda: self.busy, starter.oom_kills)
        self._jobs = jobs
        self._leases = leases
        self._windows = windows
        self._reports = reports
        self._terms_of = terms_of
        self._terms: dict[str, Terms] = {}
        self._waiting = 0  # behind others, when that was last counted, less those that have begun since
        self._waiting_min = 0  # below that it is time for more
        self._lets_wait = True
        self._some_wait = asyncio.Event()
        self._idle: deque[Executor] = deque()
        self._fed: list[Line] = []  # what they were given is to be delivered
        self._some_room = asyncio.Event()
        self._some_short = asyncio.Event()
        self._no_more_room_soon: asyncio.Event | None = None
        self._quiet: asyncio.Event | None = None
        reports.on_told = self._check_quiet

    async def run(self) -> None:
        async with anyio.create_task_group() as executors:
            executors.start_soon(self._watch.run, name="watch")
            executors.start_soon(self._look_after_short_runs, name="short runs")
            executors.start_soon(self._look_for_replies, name="replies")
            for executor in self.executors:
                executors.start_soon(executor.run, name=f"executor {executor.number}")

    # --- the claimer's side

    async def wait_for_room(self) -> None:
        while not self.has_room:
            self._some_room = asyncio.Event()
            await self._some_room.wait()

    async def wait_for_children(self) -> None:
        """Wait for the first child, and a moment for the others, which are started one after the other: to claim for
        each by itself would keep those that follow from their start."""
        await self.wait_for_room()
        with anyio.move_on_after(_ALL_CHILDREN_WITHIN_SECONDS):
            while len(self._idle) < len(self.executors):
                self._some_room = asyncio.Event()
                await self._some_room.wait()

    async def wait_for_more_room(self) -> None:
        """Wait a moment for those that are about to be idle, where short runs are done one at a time."""
        if self._windows.size > 1 or not self._some_end_soon:
            return
        self._no_more_room_soon = asyncio.Event()
        moment = asyncio.get_running_loop().call_later(_MORE_ROOM_WITHIN_SECONDS, self._no_more_room_soon.set)
        try:
            await self._no_more_room_soon.wait()
        finally:
            moment.cancel()
            self._no_more_room_soon = None

    @property
    def _some_end_soon(self) -> bool:
        return any(executor.line.ends_soon for executor in self.executors)

    def take_room(self, at_most: int) -> Room:
        """The room that there is for runs, if there is any; `hand_out` is to follow."""
        if not self.has_room:
            return NO_ROOM
        idle = [self._idle.popleft() for _ in range(min(at_most, len(self._idle)))]
        return Room(idle, min(at_most - len(idle), self._room_behind(len(idle))))

    @property
    def has_room(self) -> bool:
        """Whether it is time to claim: an executor is idle, or half of what may wait behind others has begun."""
        return bool(self._idle) or (self._waiting < self._waiting_min and self._room_behind(0) > 0)

    @property
    def short_jobs(self) -> list[str]:
        """Whose runs may wait behind others."""
        return [name for name in self._windows.short_jobs if not self._terms[name].fresh_process_per_run]

    def _room_behind(self, idle: int, times: int = 1) -> int:
        """For how many there is room behind others, and behind those that these idle ones are about to get. `times` as
        much as there is by now."""
        each = self._windows.size - 1
        if not each or not self._lets_wait:
            return 0
        usable = len(self._idle) + sum(executor.line.lets_follow for executor in self.executors)
        return max(0, times * min(self._windows.limit, (idle + usable) * each) - self._waiting)

    def room_after(self, rooms: Collection[Room], at_most: int) -> Room:
        """For how many more runs there will be room, once as many as fit have been handed out into these. Until the
        database has answered children will have done as much again."""
        if self._windows.size == 1:
            return NO_ROOM
        idle, behind = sum([len(room.idle) for room in rooms]), sum([room.behind for room in rooms])
        return Room([], max(0, min(at_most, self._room_behind(idle, times=_BY_THE_ANSWER) - behind)))

    def hand_out(self, room: Room, runs: Sequence[Run], passed_over: int = 0) -> None:
        """Give runs to the executors that were taken for them; what is left of either goes back.

        `passed_over` are those that were due, and not claimed since they could not begin at once.
        """
        idle = [executor for executor in room.idle if executor.assignment is None]  # none has been placed meanwhile
        assignments = self._assignments(runs)
        if len(assignments) > len(idle):  # some will have to wait: not those that are not to
            assignments.sort(key=lambda assignment: assignment.may_wait)
        for executor, assignment in zip(idle, assignments, strict=False):
            self._assign(executor, assignment)
        self._give_back(idle[len(assignments) :])
        behind = assignments[len(idle) :]
        if behind or passed_over:
            self._windows.claimed(len(behind) + passed_over, self.place(behind) + passed_over)
        self._deliver()

    def place(self, assignments: Sequence[Assignment]) -> int:
        """Find a place for runs that no child has begun; return for how many there is none, which are given back."""
        if not self._lets_wait:
            for assignment in assignments:
                self._reports.never_begun(assignment.run)
            return len(assignments)
        idle = min(len(assignments), len(self._idle))
        for assignment in assignments[:idle]:
            self._assign(self._idle.popleft(), assignment)
        without_place = self._place_behind(assignments[idle:])
        self._deliver()
        return without_place

    def _deliver(self) -> None:
        fed, self._fed = self._fed, []
        for line in fed:
            line.deliver()
        self._count_waiting()

    def _place_behind(self, assignments: Sequence[Assignment]) -> int:
        """Evenly over those that let others follow; nothing is sent yet. Return for how many there is no room."""
        lines = [executor.line for executor in self.executors if executor.line.lets_follow]
        lines.sort(key=lambda line: len(line.behind))
        self._fed += lines
        waiting = deque[Assignment]()
        without_place: list[Assignment] = []
        for assignment in assignments:
            (waiting if assignment.may_wait else without_place).append(assignment)
        for times in (1, _GENEROUS_TIMES):  # the second time for what was claimed on too high hopes
            left = lines
            while waiting and left:
                share = -(-len(waiting) // len(left))
                left = [line for line in left if line.add(waiting, share, times)]
        for assignment in (*without_place, *waiting):
            self._reports.never_begun(assignment.run)
        return len(without_place) + len(waiting)

    def _count_waiting(self) -> None:
        self._waiting = sum([executor.behind for executor in self.executors])
        self._waiting_min = (self._waiting + self._room_behind(0)) // 2
        if self._waiting:
            self._some_wait.set()

    async def _look_for_replies(self) -> None:
        """While runs wait behind others, now and then: to be woken by each reply would cost more than to handle it."""
        while True:
            await self._some_wait.wait()
            self._some_wait = asyncio.Event()
            while sum([executor.line.look_for_replies() for executor in self.executors]):  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_FOR_REPLIES_SECONDS)

    def _give_back(self, executors: Iterable[Executor]) -> None:
        """Return tokens that no work was found for."""
        for executor in executors:
            if executor.assignment is None and executor.pid is not None:
                self._put_idle(executor)

    def _assign(self, executor: Executor, assignment: Assignment) -> None:
        self.busy_or_gone(executor)  # its child may have been replaced since the token was taken, which made another
        executor.line.assign(assignment)
        self._fed.append(executor.line)
        if assignment.short:
            self._some_short.set()

    def _assignments(self, runs: Sequence[Run]) -> list[Assignment]:
        expected = {job_name: self._expected(job_name) for job_name in {run.job_name for run in runs}}
        return [Assignment(run, *expected[run.job_name]) for run in runs]

    def _expected(self, job_name: str) -> tuple[Terms, float, bool]:
        """Of the runs of a job: what they may take, how many seconds they will take, and whether that is short."""
        terms = self._terms.get(job_name)
        if terms is None:
            terms = self._terms[job_name] = self._terms_of(self._jobs.find(job_name))
        seconds = self._windows.expected_seconds(job_name)
        return terms, seconds, is_short(seconds) and not terms.fresh_process_per_run

    async def _look_after_short_runs(self) -> None:
        """Those that take their time keep nobody waiting."""
        while True:
            await self._some_short.wait()
            self._some_short = asyncio.Event()
            while any(executor.assignment is not None and executor.assignment.short for executor in self.executors):
                await anyio.sleep(_LOOK_SECONDS)
                now = monotonic()
                for executor in self.executors:
                    executor.line.look_after(now)

    def let_go_of_waiting(self) -> None:
        """Nothing is to wait behind another run any more: what does is given back."""
        self._lets_wait = False
        for executor in self.executors:
            executor.line.let_go_of_waiting()

    # --- the executors' side

    def idle(self, executor: Executor) -> None:
        self.has_started = True
        self._put_idle(executor)
        self.on_room()
        if self._no_more_room_soon is not None and not self._some_end_soon:
            self._no_more_room_soon.set()

    def _put_idle(self, executor: Executor) -> None:
        if executor not in self._idle:
            self._idle.append(executor)
        self._some_room.set()
        self._check_quiet()

    def moved_on(self, times: int) -> None:
        """Runs that waited behind another have begun."""
        self._waiting -= times
        if self._waiting < self._waiting_min:
            self._some_room.set()

    def busy_or_gone(self, executor: Executor) -> None:
        if executor in self._idle:
            self._idle.remove(executor)

    def not_to_begin(self, leases: Sequence[Lease], child: ChildProcess) -> list[Lease]:
        """The child is about to begin these, but for those returned, which are not to be trusted any more."""
        return self._leases.all_executing(leases, child)

    # --- ending runs

    def end_run(self, run_id: UUID, ending: Ending) -> None:
        for executor in self.executors:
            if (run := executor.run_of(run_id)) is None:
                continue
            if ending is not Ending.LEASE_LOST or self._leases.is_lost(run.lease):  # else it was claimed anew meanwhile
                executor.escalation.end(run_id, ending)

    def end_runs(self, run_ids: Collection[UUID], ending: Ending) -> None:
        for run_id in run_ids:
            self.end_run(run_id, ending)

    def end_all(self, ending: Ending) -> None:
        for executor in self.executors:
            executor.escalation.end_run(ending)

    def kill_all(self, ending: Ending) -> None:
        for executor in self.executors:
            executor.escalation.kill_run(ending)

    # --- all of them

    async def leave(self) -> None:
        """Let all children leave in good order, as long as they need."""
        for executor in self.executors:
            executor.leave()
        for executor in self.executors:
            await executor.left.wait()

    @property
    def busy(self) -> list[Executor]:
        return [executor for executor in self.executors if executor.assignment is not None]

    async def quiet(self) -> None:
        """Wait until no run is in hand."""
        while self.busy:
            self._quiet = asyncio.Event()
            await self._quiet.wait()

    def _check_quiet(self) -> None:
        if self._quiet is not None and not self.busy:
            self._quiet.set()
