"""What goes wrong, and when: drawn from the seed alone, before anything has begun.

A fault strikes a target: a supervisor, its line to the database, the database, or a client. Faults of one target
follow each other, those of different targets may coincide.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from enum import StrEnum

from msgspec import Struct

FIRST_AT_SECONDS = 2.0
QUIET_AT_THE_END_SECONDS = 1.0
REST_SECONDS = 1.5
"""What a target is given to come back, before it is struck again."""


class Store(StrEnum):
    SQLITE = "sqlite"
    POSTGRES = "postgres"
    MYSQL = "mysql"


class Kind(StrEnum):
    KILL_SUPERVISOR = "kill supervisor"
    FREEZE_SUPERVISOR = "freeze supervisor"
    STOP_SUPERVISOR = "stop supervisor"
    KILL_GUARD = "kill guard"
    FREEZE_GUARD = "freeze guard"
    KILL_BOTH = "kill supervisor and guard"
    FREEZE_BOTH = "freeze supervisor and guard"
    KILL_CHILD = "kill child"
    FREEZE_CHILD = "freeze child"
    KILL_FORK_SERVER = "kill fork server"
    FREEZE_FORK_SERVER = "freeze fork server"
    KILL_CLIENT = "kill client"

    RESTART_DATABASE = "restart database"
    CRASH_DATABASE = "crash database"
    FREEZE_DATABASE = "freeze database"
    END_CONNECTIONS = "end connections"
    READ_ONLY = "read-only"
    LOCK_RUNS = "lock runs"
    FULL_DISK = "full disk"

    FREEZE_LINE = "freeze line"
    REFUSE_LINE = "refuse line"
    RESET_LINE = "reset line"
    DELAY_LINE = "delay line"
    THROTTLE_LINE = "throttle line"
    HOLD_ANSWERS = "hold answers"
    HOLD_REQUESTS = "hold requests"
    DROP_ANSWERS = "drop answers"
    CUT_BEFORE_COMMIT = "cut before commit"
    CUT_AFTER_COMMIT = "cut after commit"


class Target(StrEnum):
    SUPERVISOR = "supervisor"
    LINE = "line"
    DATABASE = "database"
    CLIENT = "client"


class Plan(Struct, frozen=True):
    """How often a kind comes, relative to the others, whom it strikes, and for how long (seconds, from and to)."""

    weight: int
    target: Target
    seconds: tuple[float, float]


PLANS = {
    Kind.KILL_SUPERVISOR: Plan(6, Target.SUPERVISOR, (0.0, 3.0)),
    Kind.FREEZE_SUPERVISOR: Plan(6, Target.SUPERVISOR, (0.5, 7.0)),
    Kind.STOP_SUPERVISOR: Plan(3, Target.SUPERVISOR, (0.0, 2.0)),
    Kind.KILL_GUARD: Plan(4, Target.SUPERVISOR, (0.0, 0.0)),
    Kind.FREEZE_GUARD: Plan(3, Target.SUPERVISOR, (0.5, 5.0)),
    Kind.KILL_BOTH: Plan(3, Target.SUPERVISOR, (0.0, 3.0)),
    Kind.FREEZE_BOTH: Plan(3, Target.SUPERVISOR, (0.5, 7.0)),
    Kind.KILL_CHILD: Plan(8, Target.SUPERVISOR, (0.0, 0.0)),
    Kind.FREEZE_CHILD: Plan(3, Target.SUPERVISOR, (0.2, 4.0)),
    Kind.KILL_FORK_SERVER: Plan(3, Target.SUPERVISOR, (0.0, 0.0)),
    Kind.FREEZE_FORK_SERVER: Plan(2, Target.SUPERVISOR, (0.5, 3.0)),
    Kind.KILL_CLIENT: Plan(4, Target.CLIENT, (0.0, 0.5)),
    Kind.RESTART_DATABASE: Plan(2, Target.DATABASE, (0.0, 2.0)),
    Kind.CRASH_DATABASE: Plan(3, Target.DATABASE, (0.0, 3.0)),
    Kind.FREEZE_DATABASE: Plan(3, Target.DATABASE, (0.3, 5.0)),
    Kind.END_CONNECTIONS: Plan(6, Target.DATABASE, (0.0, 0.0)),
    Kind.READ_ONLY: Plan(3, Target.DATABASE, (0.5, 4.0)),
    Kind.LOCK_RUNS: Plan(3, Target.DATABASE, (0.3, 5.0)),
    Kind.FULL_DISK: Plan(3, Target.DATABASE, (0.5, 4.0)),
    Kind.FREEZE_LINE: Plan(4, Target.LINE, (0.3, 6.0)),
    Kind.REFUSE_LINE: Plan(4, Target.LINE, (0.3, 5.0)),
    Kind.RESET_LINE: Plan(5, Target.LINE, (0.0, 0.0)),
    Kind.DELAY_LINE: Plan(3, Target.LINE, (1.0, 4.0)),
    Kind.THROTTLE_LINE: Plan(3, Target.LINE, (1.0, 4.0)),
    Kind.HOLD_ANSWERS: Plan(4, Target.LINE, (0.3, 6.0)),
    Kind.HOLD_REQUESTS: Plan(4, Target.LINE, (0.3, 6.0)),
    Kind.DROP_ANSWERS: Plan(4, Target.LINE, (0.3, 4.0)),
    Kind.CUT_BEFORE_COMMIT: Plan(6, Target.LINE, (1.0, 2.0)),
    Kind.CUT_AFTER_COMMIT: Plan(6, Target.LINE, (1.0, 2.0)),
}

ON_A_SERVER_ONLY = {
    Kind.RESTART_DATABASE,
    Kind.CRASH_DATABASE,
    Kind.FREEZE_DATABASE,
    Kind.END_CONNECTIONS,
    Kind.READ_ONLY,
    *(kind for kind, plan in PLANS.items() if plan.target is Target.LINE),
}
ON_SQLITE_ONLY = {Kind.FULL_DISK}

NOT_INJECTED = (
    "clock steps: they need the right to set the machine's clock, or a library that fakes it",
    "power loss: the servers here keep what they told the kernel, which a machine that dies would not",
)


class Fault(Struct, frozen=True, kw_only=True):
    """`number` says which one of its target's kind is struck; `pick`, 0 to 1, what of it, once it is to be seen."""

    at: float
    kind: Kind
    number: int
    seconds: float
    pick: float

    @property
    def target(self) -> Target:
        return PLANS[self.kind].target


def draw_schedule(
    seed: int, seconds: float, store: Store, *, supervisors: int, clients: int, every_seconds: float = 1.0
) -> list[Fault]:
    """The faults of one chaos run, earliest first. The same arguments give the same schedule.

    Each seed has its favourites among the kinds, so that different seeds are different kinds of bad weather.
    """
    rng = random.Random(seed)
    weights = {kind: plan.weight * rng.choice((0, 1, 1, 3)) for kind, plan in PLANS.items() if _exists(kind, store)}
    counts = {
        Target.SUPERVISOR: supervisors,
        Target.LINE: supervisors + 1,  # the last one is the clients'
        Target.DATABASE: 1,
        Target.CLIENT: clients,
    }
    return list(_faults(rng, seconds, weights, counts, every_seconds))


def _exists(kind: Kind, store: Store) -> bool:
    return kind not in (ON_A_SERVER_ONLY if store is Store.SQLITE else ON_SQLITE_ONLY)


def _faults(
    rng: random.Random, seconds: float, weights: dict[Kind, int], counts: dict[Target, int], every_seconds: float
) -> Iterator[Fault]:
    free_at: dict[tuple[Target, int], float] = {}
    at = FIRST_AT_SECONDS
    while at < seconds - QUIET_AT_THE_END_SECONDS:
        kind = rng.choices(list(weights), list(weights.values()))[0]
        plan = PLANS[kind]
        number, lasts, pick = rng.randrange(counts[plan.target]), rng.uniform(*plan.seconds), rng.random()
        if free_at.get((plan.target, number), 0.0) <= at:
            free_at[plan.target, number] = at + lasts + REST_SECONDS
            yield Fault(at=round(at, 3), kind=kind, number=number, seconds=round(lasts, 3), pick=round(pick, 6))
            at += rng.expovariate(1 / every_seconds)
        else:
            at += rng.expovariate(10 / every_seconds)
