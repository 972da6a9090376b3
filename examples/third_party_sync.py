"""Orders from somebody else's service, which is away at times, and at times asks to be left alone for a while.

python -m durablestack.supervisor examples.third_party_sync        in one terminal: executes runs
python -m examples.third_party_sync                                in another: enqueues a run, and shows its attempts

The service is played by `FlakyShop`, in this file: it breaks, then refuses, then answers.
"""

import os
import time
from pathlib import Path

from durablestack import DurableStack, JobContext, Retry, durable_job, recurring_job

ORDERS = Path(os.environ.get("ORDERS", "orders"))

stack = DurableStack(
    __name__,
    database_url=os.environ.get("DATABASE_URL", "sqlite:///sync.db"),
    poll_interval_seconds=0.2,
    retry_jitter_enabled=True,  # or all who failed together come back together
)


class TooManyRequests(Exception):
    def __init__(self, retry_after_seconds: float) -> None:
        super().__init__(f"come back in {retry_after_seconds} s")
        self.retry_after_seconds = retry_after_seconds


class FlakyShop:
    """Somebody else's service, on a bad day."""

    def orders(self, attempt: int) -> dict[str, int]:
        match attempt:
            case 1:
                raise ConnectionError("the shop does not answer")
            case 2:
                raise TooManyRequests(retry_after_seconds=0.5)
            case _:
                return {"A-1": 40, "A-2": 25}


@durable_job(
    name="sync-orders",
    max_attempts=6,
    retry_behavior="backoff",
    retry_initial_delay_seconds=0.3,  # in production rather 15
    timeout_seconds=120,
)
@recurring_job("*/10 * * * *")
def sync_orders(context: JobContext) -> None:
    try:
        orders = FlakyShop().orders(context.attempt)
    except TooManyRequests as refusal:
        raise Retry("the shop asked for a pause", delay_seconds=refusal.retry_after_seconds) from refusal
    for number, amount in orders.items():  # by their own number: what was taken in before is not taken in twice
        (ORDERS / number).write_text(str(amount))
    print(f"{len(orders)} orders, at attempt {context.attempt}")


@stack.on_child_start
def make_the_folder() -> None:
    ORDERS.mkdir(exist_ok=True)


if __name__ == "__main__":
    stack.migrate()
    run_id = stack.client.enqueue(sync_orders)
    print(f"run {run_id} is enqueued; waiting for a supervisor to execute it")
    while (run := stack.queries.get_run(run_id)) is not None and not run.status.terminal:
        time.sleep(0.1)
    for attempt in stack.queries.get_attempts(run_id):
        print(f"attempt {attempt.attempt} {attempt.outcome}: {attempt.error_message or ''}")
    print(run.status if run is not None else "gone")
