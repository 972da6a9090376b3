"""Work for later: a reminder in half an hour, which is cancelled when it is no longer needed.

python -m examples.delayed                                 schedules two reminders, and cancels one of them
python -m durablestack.supervisor examples.delayed         executes the other once it is due, two seconds later
"""

import os
from datetime import UTC, datetime, timedelta

from msgspec import Struct

from durablestack import DurableStack, durable_job

stack = DurableStack(
    __name__,
    database_url=os.environ.get("DATABASE_URL", "sqlite:///delayed.db"),
    poll_interval_seconds=0.5,
)


class Reminder(Struct):
    to: str
    text: str


@durable_job(name="remind")
def remind(reminder: Reminder) -> None:
    print(f"to {reminder.to}: {reminder.text}")


if __name__ == "__main__":
    stack.migrate()
    soon = stack.client.schedule(
        remind, Reminder("ada@example.com", "your basket waits"), run_at=datetime.now(UTC) + timedelta(seconds=2)
    )
    later = stack.client.schedule(
        remind, Reminder("bob@example.com", "your basket waits"), run_at=datetime.now(UTC) + timedelta(minutes=30)
    )
    print(f"soon: run {soon}")
    print(f"later: run {later}")
    print(f"bob has paid; cancelled: {stack.client.cancel_run(later)}, again: {stack.client.cancel_run(later)}")
    for run in stack.queries.get_enqueued_runs():
        print(f"due at {run.scheduled_for:%H:%M:%S}: run {run.id}")
