"""The watch: what is too much, and how long it rests."""

import pytest

from durablestack.runs import Usage
from durablestack.supervisor import dump
from durablestack.supervisor.terms import Terms
from durablestack.supervisor.usage import Sample
from durablestack.supervisor.verdict import Ending
from durablestack.supervisor.watch import exceeds, rest_seconds

SAMPLE = Sample(1_000, Usage(2_000, 1.5, 0.5))


@pytest.mark.parametrize(
    ("terms", "exceeded"),
    [
        (Terms(), None),
        (Terms(memory_limit=1_000, cpu_seconds=2), None),
        (Terms(memory_limit=999), (Ending.MEMORY_LIMIT, 1_000)),
        (Terms(cpu_seconds=1.9), (Ending.CPU_LIMIT, 2.0)),
        (Terms(memory_limit=999, cpu_seconds=1.9), (Ending.MEMORY_LIMIT, 1_000)),
    ],
)
def test_a_run_exceeds_what_it_uses_more_of_than_it_may(terms: Terms, exceeded: tuple[Ending, float] | None) -> None:
    assert exceeds(SAMPLE, terms) == exceeded


def test_the_watch_takes_less_than_a_hundredth_of_a_core_however_long_it_looks() -> None:
    assert rest_seconds(0.0001) == 0.25
    for look_seconds in (0.001, 0.01, 0.1):
        assert look_seconds / (look_seconds + rest_seconds(look_seconds)) < 0.01


def test_two_looks_at_a_stack_tell_whether_it_moves() -> None:
    assert dump.told("a\n", "a\n", "S", 0.2) == (
        "stuck, or waiting: both stacks are the same, 0.2 s apart\n--- first\na\n--- then\na"
    )
    assert dump.told("a\n", "b\n", "R", 0.2) == "moving: the two stacks differ, 0.2 s apart\n--- first\na\n--- then\nb"
    assert dump.told("", "", "T", 0.2) == "its process did not answer: it is stopped"
    assert dump.told("a\n", "", "", 0.2) == "its process did not answer: it is gone\na"
