"""Enqueues and cancels until it is told to stop, or is killed; writes down before and after what it asks for.

python -m benchmarks.chaos.client SEED RATE
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec

from benchmarks.chaos_jobs import Work, boottime
from durablestack import DurableStack
from durablestack.errors import EnqueueUncertain, StoreError
from durablestack.ids import new_run_id
from durablestack.options import DurableStackOptions

CANCEL_RATIO = 0.06
LATER_RATIO = 0.1
MANY_RATIO = 0.1
CANCELLABLE_MAX = 50
WEIGHTS = {
    "sleeps": 34,
    "burns": 20,
    "raises": 12,
    "crashes": 6,
    "exits": 3,
    "hangs": 2,
    "gives-up": 3,
    "tries-once": 8,
    "looks-whether-told": 12,
}
LONG_RATIO = 0.25
BACKLOG_MAX = 60
"""Beyond it a client waits: what heaps up while little works would take longer to do than anyone cares to wait."""


class Diary:
    """Lines that are in the kernel's hands before the next thing happens."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(self, what: str, **facts: Any) -> None:
        os.write(self._file, msgspec.json.encode({"what": what, "at": boottime(), **facts}) + b"\n")


class ChaosClient:
    def __init__(self, stack: DurableStack, diary: Diary, rng: random.Random) -> None:
        self._client = stack.client
        self._queries = stack.queries
        self._job_names = stack.jobs.names
        self._diary = diary
        self._rng = rng
        self._enqueued: list[UUID] = []

    def has_room(self) -> bool:
        """Whether there is not too much to do already. Who cannot tell goes on: that is when it becomes interesting."""
        try:
            return self._queries.count_due(self._job_names, BACKLOG_MAX) < BACKLOG_MAX
        except StoreError:
            return True

    def step(self) -> None:
        if self._enqueued and self._rng.random() < CANCEL_RATIO:
            self._cancel(self._enqueued.pop(self._rng.randrange(len(self._enqueued))))
        else:
            self._enqueue(
                self._rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0],
                many=self._rng.random() < MANY_RATIO,
                later=self._rng.uniform(0.2, 3.0) if self._rng.random() < LATER_RATIO else 0.0,
            )

    def _enqueue(self, job_name: str, *, many: bool, later: float) -> None:
        works = [self._work(job_name) for _ in range(3 if many else 1)]
        run_ids = [new_run_id() for _ in works]
        due_at = boottime() + later if later and not many else 0.0
        self._diary.note("intent", run_ids=run_ids, job_name=job_name, due_at=due_at)
        try:
            if many:
                self._client.enqueue_many(job_name, works, run_ids=run_ids)
            elif later:
                run_at = datetime.now(UTC) + timedelta(seconds=due_at - boottime())
                self._client.schedule(job_name, works[0], run_at=run_at, run_id=run_ids[0])
            else:
                self._client.enqueue(job_name, works[0], run_id=run_ids[0])
        except EnqueueUncertain:
            self._diary.note("uncertain", run_ids=run_ids)
        except StoreError as error:
            self._diary.note("refused", run_ids=run_ids, why=str(error))
        else:
            self._diary.note("acknowledged", run_ids=run_ids)
            self._enqueued = [*self._enqueued, *run_ids][-CANCELLABLE_MAX:]

    def _work(self, job_name: str) -> Work:
        if job_name == "sleeps" and self._rng.random() < LONG_RATIO:
            return Work(self._rng.uniform(2.0, 6.0))
        longest = 0.08 if job_name == "burns" else 0.6
        return Work(self._rng.uniform(0.0, longest), wrong_until=self._rng.choice((1, 1, 2, 9)))

    def _cancel(self, run_id: UUID) -> None:
        self._diary.note("cancel", run_ids=[run_id])
        try:
            self._client.cancel_run(run_id)
        except StoreError:
            return  # it may have been done


def main() -> None:
    seed, rate = sys.argv[1:]
    rng = random.Random(seed)
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    with DurableStack("benchmarks.chaos_jobs", options=DurableStackOptions.from_environment()) as stack:
        client = ChaosClient(stack, Diary(os.environ["CHAOS_INTENTS"]), rng)
        while not told:
            if client.has_room():
                client.step()
            time.sleep(rng.expovariate(float(rate)))


if __name__ == "__main__":
    main()
