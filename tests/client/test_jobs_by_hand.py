"""Jobs that are registered by a call, with their schedules, and what every process of the application knows of them."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from durablestack import DurableStack, DurableStackOptions, JobDefinitionError, RetryBehavior
from durablestack.jobs import JobRegistration, JobRegistry
from durablestack.scheduling.recurring import Recurrence

Application = Callable[[dict[str, str]], None]

SHOP = """
from durablestack import DurableStack, JobContext, durable_job
stack = DurableStack(__name__, batch_size=7)

class InvoiceSync:
    def execute(self, context: JobContext) -> None: ...

stack.add_job(
    InvoiceSync,
    name="invoice-sync",
    cron="*/5 * * * *",
    time_zone="Asia/Tokyo",
    allow_concurrent_runs=True,
    enabled=False,
    max_attempts=5,
    retry_behavior="backoff",
    retry_initial_delay_seconds=10,
)

@durable_job
def declared_below() -> None: ...
"""


class Job:
    def execute(self) -> None: ...


def new_stack() -> DurableStack:
    return DurableStack(options=DurableStackOptions())


def test_a_job_added_with_its_schedule_is_known_to_clients_supervisors_and_children(application: Application) -> None:
    application({"shop.py": SHOP, "client.py": "from shop import stack\n"})
    registries: list[JobRegistry] = [
        DurableStack.load(["client"]).jobs,
        DurableStack.load(["shop:stack"]).jobs,
        DurableStack.load(["shop"], batch_size=9).jobs,
        DurableStack.load_application(["shop:stack"]).jobs,
    ]
    for registry in registries:
        added = registry.find("invoice-sync")
        assert registry.names == ("declared_below", "invoice-sync")
        assert (added.max_attempts, added.retry_behavior) == (5, RetryBehavior.BACKOFF)
        assert added.retry_initial_delay == timedelta(seconds=10)
        assert added.recurrence == Recurrence(
            cron="*/5 * * * *", time_zone="Asia/Tokyo", enabled=False, allow_concurrent_runs=True
        )


def test_a_job_is_added_before_and_after_the_others_were_looked_for() -> None:
    stack = new_stack()
    stack.add_job(Job, name="before")
    assert stack.jobs.names == ("before",)
    stack.add_job(lambda: None, name="after")
    assert stack.jobs.names == ("after", "before")


def test_what_is_added_goes_before_what_its_decorator_says(application: Application) -> None:
    application({"shop.py": SHOP + "\nstack.add_job(declared_below, name='added', max_attempts=9)\n"})
    jobs: list[JobRegistration] = list(DurableStack.load(["shop"]).jobs)
    assert [(job.name, job.max_attempts) for job in jobs] == [("invoice-sync", 5), ("added", 9)]


def test_a_job_that_is_refused_later_on_is_not_remembered() -> None:
    stack = new_stack()
    assert stack.jobs.names == ()
    with pytest.raises(JobDefinitionError, match="max_attempts is 0"):
        stack.add_job(Job, max_attempts=0)
    stack.add_job(Job, max_attempts=1)
    assert stack.jobs.names == ("Job",)
