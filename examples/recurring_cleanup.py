"""A recurring job: deletes sessions that have expired, each hour in production, each second here.

python -m durablestack.supervisor examples.recurring_cleanup       executes it at each slot, until it is stopped
python -m examples.recurring_cleanup                               opens three sessions that expire at once
durablestack -a examples.recurring_cleanup schedules list          when it recurs, and when it is due next
"""

import os
import sqlite3
import time
from contextlib import closing

from durablestack import DurableStack, JobContext, durable_job, recurring_job

SESSIONS = os.environ.get("SESSIONS", "sessions.db")

stack = DurableStack(__name__, database_url=os.environ.get("DATABASE_URL", "sqlite:///recurring.db"))


def open_sessions() -> sqlite3.Connection:
    sessions = sqlite3.connect(SESSIONS)
    sessions.execute("create table if not exists sessions (user text, expires_at real)")
    return sessions


@durable_job(name="cleanup-expired-sessions", max_attempts=3, timeout_seconds=600)
@recurring_job(os.environ.get("CLEANUP_CRON", "* * * * * *"))  # in production: "0 * * * *"
def cleanup_expired_sessions(context: JobContext) -> None:
    with closing(open_sessions()) as sessions, sessions:
        deleted = sessions.execute("delete from sessions where expires_at <= ?", [time.time()]).rowcount
    print(f"{deleted} sessions deleted, for the slot at {context.scheduled_for:%H:%M:%S}")


if __name__ == "__main__":
    with closing(open_sessions()) as sessions, sessions:
        sessions.executemany(
            "insert into sessions values (?, ?)", [(user, time.time()) for user in ("ada", "bob", "cy")]
        )
    print("3 sessions, all of which have expired")
