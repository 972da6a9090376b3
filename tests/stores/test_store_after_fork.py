"""A store that was used, and whose process was forked then: each side has connections of its own."""

import os
import sys
from collections.abc import Callable

import pytest
from exam import Place, enqueue

from durablestack.stores.contract import Store

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="where processes are forked")


def in_a_fork(call: Callable[[], object]) -> int:
    """What the forked process leaves with: 0 if `call` went well."""
    pid = os.fork()
    if pid == 0:
        try:
            call()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_both_sides_of_a_fork_go_on_with_a_store_that_was_used_before(place: Place) -> None:
    store: Store = place.open()
    store.migrate()
    before = enqueue(store)

    def use_it() -> None:
        assert store.get_run(before) is not None
        assert store.cancel_run(enqueue(store))
        store.close()

    if store.durable:
        assert [in_a_fork(use_it) for _ in range(3)] == [0, 0, 0]
    for _ in range(3):  # nobody has closed what is ours, or answered in our place
        assert store.get_run(enqueue(store)) is not None
    assert len(store.list_runs(take=100)) == (7 if store.durable else 4)
    store.close()
