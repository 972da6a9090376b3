"""A process that makes the runs of due slots until none is left, and prints them: `…process.py URL PREFIX JOB…`.

Every schedule has a slot each second until its `seen_at`, and catches up.
"""

import sys
from datetime import datetime, timedelta

from durablestack.options import DurableStackOptions
from durablestack.schedules import Schedule, Slot
from durablestack.stores.contract import Store
from durablestack.stores.providers import open_store


def until_seen(schedule: Schedule, now: datetime) -> Slot | None:
    slot = schedule.next_run_at
    return None if slot is None or slot > schedule.seen_at else Slot(slot, slot + timedelta(seconds=1))


def materialize_all(store: Store, job_names: list[str]) -> list[datetime]:
    """The slots that fell to us, of schedules that others are at too."""
    slots = []
    for job_name in job_names:
        while (schedule := store.get_schedule(job_name)) is not None and until_seen(schedule, schedule.seen_at):
            run = store.materialize_recurring_run(job_name, until_seen)
            if run is not None:
                assert run.slot is not None
                slots.append(run.slot)
    return slots


def main(database_url: str, table_prefix: str, *job_names: str) -> None:
    store = open_store(DurableStackOptions(database_url=database_url, database_table_prefix=table_prefix))
    store.now()
    print("ready", flush=True)
    sys.stdin.readline()
    print(*(slot.isoformat() for slot in materialize_all(store, list(job_names))), flush=True)
    store.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
