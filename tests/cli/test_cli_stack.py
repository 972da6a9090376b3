"""durablestack runs stack: of runs that are not executing, and of one whose worker does not answer."""

import re
import threading
from uuid import uuid4

import pytest
from cli_situations import claim_one

from durablestack import DurableStack


def test_a_run_that_is_not_executing_has_no_stack(console, on_sqlite):
    run_id = on_sqlite.client.enqueue("tidy-up")
    ended = console("runs", "stack", run_id)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == f"{run_id} is pending; only a run that is executing has a stack\n"
    nobody = uuid4()
    assert console("runs", "stack", nobody).err == f"{nobody} is unknown\n"


def test_a_worker_that_does_not_answer_is_named(console, on_sqlite):
    on_sqlite.client.enqueue("tidy-up")
    run = claim_one(on_sqlite)
    ended = console("runs", "stack", run.id, "--within-seconds", 0)
    assert (ended.code, ended.out) == (2, "")
    assert re.fullmatch(f"{run.id} is leased by {run.lease_owner}, which did not answer within 0 s: .*\n", ended.err)


@pytest.mark.parametrize("database", ["sqlite", "postgres", "mysql"])
def test_what_the_holder_of_the_run_writes_is_shown(console, database, request):
    stack: DurableStack = request.getfixturevalue(f"on_{database}")
    stack.migrate()
    stack.client.enqueue("tidy-up")
    run = claim_one(stack)

    def answer() -> None:
        while not stack.store.find_requests([run.lease]).stack:
            pass
        stack.store.write_stack(run.lease, "in tidy_up, line 7: stuck")

    holder = threading.Thread(target=answer)
    holder.start()
    ended = console("runs", "stack", run.id)
    holder.join()
    assert (ended.code, ended.out) == (0, "in tidy_up, line 7: stuck\n")
