"""The store in memory: for one process, for as long as it lives."""

from exam import all_runs, claim, enqueue

from durablestack import DurableStack, DurableStackOptions
from durablestack.stores.memory import InMemoryStore


def test_each_application_has_a_memory_of_its_own() -> None:
    one, other = (DurableStack(options=DurableStackOptions()).store for _ in range(2))
    assert isinstance(one, InMemoryStore)
    run_id = enqueue(one)
    assert all_runs(other) == {}
    assert claim(other) == []
    assert other.cancel_run(run_id) is False
    assert not one.durable
