"""The lease protocol on every store: random schedules keep its invariants, and seven mistakes are found out.

`pytest -m soak tests/stores/test_store_protocol.py` plays 2,000 schedules per store. A schedule that breaks an
invariant is told step by step, and in a soak made as short as possible before.
"""

import secrets
from collections.abc import Iterator

import pytest
from exam import Place
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from protocol import LeaseProtocol
from protocol_clock import Arena, open_arena
from protocol_invariants import InvariantViolated
from protocol_mutants import MUTANTS, Mutant

SCHEDULES_IN_CI = 20
SCHEDULES_PER_SOAK = 500
SCHEDULES_PER_MUTANT_MAX = 300


@pytest.fixture(scope="module", params=["memory", "sqlite", "postgres", "mysql", "sqlserver"])
def arena(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    provider: str = request.param
    match provider:
        case "memory":
            url = None
        case "sqlite":
            url = f"sqlite:///{tmp_path_factory.mktemp('protocol') / 'runs.db'}"
        case _:
            url = request.getfixturevalue(f"{provider}_dsn")
    with open_arena(Place(provider, url, f"t{secrets.token_hex(5)}_")) as arena:
        yield arena


def play(
    arena: Arena, schedules: int, *, random_seed: int, mutant: Mutant | None = None, tell_shortest: bool = False
) -> None:
    """Play that many schedules, or as many as it takes to break an invariant; that one is told step by step."""

    class Schedule(LeaseProtocol):
        pass

    Schedule.arena = arena
    if mutant is not None:
        Schedule.worker_class = mutant.worker
        if mutant.store is not None:
            Schedule.store_of = mutant.store
    phases = (Phase.generate, Phase.shrink) if tell_shortest else (Phase.generate,)
    run_state_machine_as_test(
        seed(random_seed)(Schedule),
        settings=settings(
            max_examples=schedules,
            stateful_step_count=120,
            phases=phases,
            deadline=None,
            database=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_random_schedules_keep_the_invariants(arena: Arena) -> None:
    play(arena, SCHEDULES_IN_CI, random_seed=1)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_machine_finds_the_mistake(arena: Arena, mutant: Mutant) -> None:
    with pytest.raises(InvariantViolated) as violated:
        play(arena, SCHEDULES_PER_MUTANT_MAX, random_seed=1, mutant=mutant)
    assert str(violated.value).partition(":")[0] in mutant.invariants


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("random_seed", range(2, 6))
def test_thousands_of_schedules_keep_the_invariants(arena: Arena, random_seed: int) -> None:
    play(arena, SCHEDULES_PER_SOAK, random_seed=random_seed, tell_shortest=True)
