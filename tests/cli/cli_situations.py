"""What the tests of the console script put into a database, or where there is none."""

import socket
from datetime import timedelta
from uuid import UUID, uuid4

from durablestack import DurableStack, Run
from durablestack.runs import Outcome
from durablestack.stores.contract import Claim

PASSWORD = "hunter22secret"


def unreachable_url() -> str:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    return f"postgresql://ada:{PASSWORD}@127.0.0.1:{port}/orders"


def claim_one(stack: DurableStack) -> Run:
    """As a supervisor of both jobs does it."""
    claim = Claim(
        worker_name="worker-7",
        lease_token=uuid4(),
        job_names=["send-email", "tidy-up"],
        batch_size=1,
        lease_duration=timedelta(minutes=1),
    )
    return stack.store.claim_due_runs(claim).runs[0]


def end(stack: DurableStack, outcome: Outcome) -> UUID:
    (run_id,) = stack.store.record([outcome])
    return run_id
