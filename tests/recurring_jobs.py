"""Jobs that recur, for tests with real supervisors. Each writes down the slot that it was told."""

import time
from datetime import timedelta

from chaos_jobs import note
from durablestack import JobContext, durable_job, recurring_job


def note_slot(context: JobContext) -> None:
    note(context, context.scheduled_for.strftime("%Y-%m-%dT%H:%M:%S%z"))


@durable_job(name="every-second", max_attempts=20)
@recurring_job("* * * * * *")
def every_second(context: JobContext) -> None:
    note_slot(context)
    time.sleep(0.3)  # so that a supervisor may be killed meanwhile


@durable_job(name="every-second-overlapping", max_attempts=20)
@recurring_job("* * * * * *", allow_concurrent_runs=True)
def every_second_overlapping(context: JobContext) -> None:
    note_slot(context)


@durable_job(name="every-1500-ms")
@recurring_job(every=timedelta(milliseconds=1500), args="tick")
def every_1500_ms(args: str, context: JobContext) -> None:
    note(context, args)


@durable_job(name="yearly")
@recurring_job("0 0 1 1 *", args=[1, 2])
def yearly(args: list[int], context: JobContext) -> None:
    note(context, f"yearly{args[1]}")
