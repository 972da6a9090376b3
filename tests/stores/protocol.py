"""The lease protocol as a state machine: workers, a real store, time that is moved, and requests that go astray.

LeaseProtocol ──move──> Worker ──Ask──> store, or a mutant of it ──> Witness: InvariantViolated
                └─────> VirtualClock ──> guards, deadlines, expiry
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from uuid import UUID

from exam import LEASE_DURATION, new_run
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from protocol_clock import Arena, VirtualClock
from protocol_invariants import (
    Ask,
    CancelRun,
    ClaimRuns,
    Enqueue,
    ExpireLeases,
    Extend,
    Record,
    ReleaseClaim,
    Witness,
    require,
)
from protocol_worker import Child, Fate, Worker

from durablestack.stores.contract import Store

LEASE_SECONDS = LEASE_DURATION.total_seconds()
RATES = (0.9, 1.0, 1.2)
"""Of a worker's clock, beside the database's. The guard, which is the last to act, tolerates 0.85."""
RUNS_MAX = 16
UNENDED_RUNS_MAX = 3
DELAYED_MAX = 8


class World:
    """What workers share: the store, the network and time. The lists say who can do what now."""

    def __init__(self, store: Store, clock: VirtualClock, arena: Arena) -> None:
        self.witness = Witness()
        self.workers: list[Worker] = []
        self._delayed: list[Ask] = []
        self._dead: list[UUID] = []
        self._store = store
        self._clock = clock
        self._arena = arena

    @property
    def seconds(self) -> float:
        return self._clock.seconds

    def __repr__(self) -> str:
        return "world"

    def carry_out(self, ask: Ask) -> Any:
        answer = ask.carry_out(self._store)
        self.witness.saw(ask, answer, self._arena.rows(), self._clock.now())
        return answer

    def delay(self, ask: Ask) -> None:
        """Let it be carried out later; the oldest of too many never will be."""
        self._delayed = [*self._delayed, ask][-DELAYED_MAX:]

    def request_arrives(self, number: int) -> None:
        self.carry_out(self._delayed.pop(number % len(self._delayed)))

    def bury(self, worker_id: UUID) -> None:
        self._dead.append(worker_id)

    def expire_leases_of_dead(self) -> None:
        """Its neighbours have the proof that it is dead; they need not wait for its leases."""
        self.carry_out(ExpireLeases(self._dead.pop(0)))

    def enqueue(self, max_attempts: int) -> None:
        self.carry_out(Enqueue(new_run(max_attempts=max_attempts)))

    def cancel(self, number: int) -> None:
        unended = self.unended()
        self.carry_out(CancelRun(unended[number % len(unended)]))

    def advance(self, lease_share: float) -> None:
        self._clock.seconds += LEASE_SECONDS * lease_share
        for worker in self.workers:
            worker.time_passed()

    def calm_down(self) -> None:
        """All is lost but for the database. Whoever comes then finds each run, and can end it."""
        for worker in self.workers:
            worker.crash()
        self.advance(lease_share=2.0)
        survivor = self.workers[0]
        survivor.begin_life(rate=1.0)
        survivor.claim(Fate.ANSWERED, batch_size=UNENDED_RUNS_MAX, begins=True, end_expired=True)
        for child in self.busy():
            child.finish(success=True, retry_after_seconds=0.0)
        if survivor.unwritten:
            survivor.write(Fate.ANSWERED)
        require(not self.unended(), "L6", f"not ended: {self.witness.rows}")

    def check_executing(self) -> None:
        executing = [child for worker in self.workers for child in worker.executing()]
        self.witness.check_executing(executing, self._clock.now())

    def unended(self) -> list[UUID]:
        return [run.id for run in self.witness.rows.values() if not run.status.terminal]

    # --- who can

    def always(self) -> list["World"]:
        return [self]

    def with_room(self) -> list["World"]:
        return [self] if len(self.witness.rows) < RUNS_MAX and len(self.unended()) < UNENDED_RUNS_MAX else []

    def with_unended(self) -> list["World"]:
        return [self] if self.unended() else []

    def with_delayed(self) -> list["World"]:
        return [self] if self._delayed else []

    def with_dead(self) -> list["World"]:
        return [self] if self._dead else []

    def claimers(self) -> list[Worker]:
        able = [worker for worker in self.workers if worker.may_ask(ClaimRuns) and worker.may_ask(ReleaseClaim)]
        return [worker for worker in able if not worker.stopping] if self.unended() else []

    def beginners(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.active and worker.waiting]

    def holders(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.may_ask(Extend) and len(worker.leases)]

    def writers(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.may_ask(Record) and worker.unwritten]

    def busy(self) -> list[Child]:
        return [child for worker in self.workers for child in worker.children if child.executing]

    def learners(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.active and worker.awaited]

    def active(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.active]

    def paused(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.paused and not worker.crashed]

    def ended(self) -> list[Worker]:
        return [w for w in self.workers if w.crashed or (w.active and w.stopping and not w.unwritten)]


@dataclass(frozen=True)
class Move:
    """What can happen: how often beside the others, to whom, and with what."""

    weight: int
    who: Callable[[World], Sequence[Any]]
    play: Callable[..., None]
    arguments: st.SearchStrategy[dict[str, Any]]


def move(weight: int, who: Callable[[World], Sequence[Any]], play: Callable[..., None], **arguments: Any) -> Move:
    drawn = {name: st.sampled_from(values) for name, values in arguments.items()}
    return Move(weight, who, play, st.fixed_dictionaries(drawn) if drawn else st.just({}))


EITHER = (False, True)
FATES = (*[Fate.ANSWERED] * 4, Fate.UNANSWERED, *[Fate.DELAYED] * 2, Fate.AWAITED)
CLAIM = {"batch_size": (1, 2), "begins": EITHER, "end_expired": (True, True, False)}
MOVES = {
    "claims": move(6, World.claimers, Worker.claim, fate=FATES, **CLAIM),
    "begins": move(12, World.beginners, Worker.begin),
    "finishes": move(
        12, World.busy, Child.finish, success=(True, True, False), retry_after_seconds=(0.0, LEASE_SECONDS)
    ),
    "writes": move(15, World.writers, Worker.write, fate=FATES),
    "heartbeat": move(12, World.holders, Worker.beat, fate=FATES),
    "time passes": move(15, World.always, World.advance, lease_share=(0.3, 0.5, 1.1)),
    "enqueues": move(15, World.with_room, World.enqueue, max_attempts=(1, 2, 3)),
    "answer arrives": move(10, World.learners, Worker.learn, arrives=EITHER),
    "request arrives": move(8, World.with_delayed, World.request_arrives, number=range(DELAYED_MAX)),
    "resumes": move(10, World.paused, Worker.resume, watches_first=EITHER),
    "is found dead": move(1, World.with_dead, World.expire_leases_of_dead),
    "calm": move(1, World.with_unended, World.calm_down),
    "restarts": move(12, World.ended, Worker.begin_life, rate=RATES),
}
MISHAPS = {
    "is cancelled": move(4, World.with_unended, World.cancel, number=range(UNENDED_RUNS_MAX)),
    "pauses": move(1, World.active, Worker.pause, guard_too=EITHER),
    "crashes": move(1, World.active, Worker.crash),
    "stops": move(1, World.active, Worker.stop),
}
"""Each schedule is spared some of them, and meets the others more often."""


class LeaseProtocol(RuleBasedStateMachine):
    """A schedule is a sequence of moves, each of them possible when it is made.

    One rule chooses among them, and not a rule for each: Hypothesis leaves out rules at random, and nothing much
    happens in a schedule without claims.
    """

    arena: ClassVar[Arena]
    worker_class: ClassVar[type[Worker]] = Worker

    @staticmethod
    def store_of(store: Store) -> Store:
        """The store as workers see it."""
        return store

    @initialize(workers=st.integers(2, 3), spared=st.sets(st.sampled_from(sorted(MISHAPS))))
    def begin_schedule(self, workers: int, spared: set[str]) -> None:
        store, clock = self.arena.begin()
        self.world = World(self.store_of(store), clock, self.arena)
        self.world.workers += [self.worker_class(f"worker-{n}", self.world, RATES[n]) for n in range(workers)]
        self.moves = MOVES | {name: mishap for name, mishap in MISHAPS.items() if name not in spared}

    @rule(data=st.data())
    def move(self, data: st.DataObject) -> None:
        possible = [
            (name, who) for name, move in self.moves.items() for who in move.who(self.world) for _ in range(move.weight)
        ]
        name, who = data.draw(st.sampled_from(possible), label="move")
        arguments = data.draw(self.moves[name].arguments, label="how")
        self.moves[name].play(who, **arguments)
        self.world.check_executing()
