"""The first job of the documents, as it is written here: what it is told of its run, and both ways to execute it."""

from __future__ import annotations

import json
import textwrap
from datetime import UTC, datetime
from typing import Any

import pytest

from durablestack import DurableStack, Run, RunStatus
from durablestack.options import DurableStackOptions
from workers import Bench, eventually

INVOICES = """
    import asyncio, json, logging, sys
    from durablestack import DurableStack, JobContext, Services, durable_job, recurring_job

    services = Services()
    services.add_singleton(logging.Logger, lambda: logging.getLogger("invoices"))
    stack = DurableStack(__name__, services=services)
    logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO, force=True)

    @durable_job(name="invoice-sync", max_attempts=5, retry_behavior="backoff", retry_initial_delay_seconds=0.01)
    @recurring_job("{cron}", time_zone="UTC", enabled=True, allow_concurrent_runs=False)
    class InvoiceSync:
        def __init__(self, logger: logging.Logger) -> None:
            self.logger = logger

        async def execute(self, context: JobContext) -> None:
            self.logger.info(
                json.dumps(
                    {{
                        "run_id": str(context.run_id),
                        "job_name": context.job_name,
                        "attempt": context.attempt,
                        "max_attempts": context.max_attempts,
                        "scheduled_for": context.scheduled_for.isoformat(),
                        "started_at": context.started_at.isoformat(),
                        "cancelled": context.cancelled,
                        "logger": context.services.get(logging.Logger) is self.logger,
                    }}
                )
            )
            await asyncio.sleep(0.01)
            if context.attempt == 1:
                raise ConnectionError("the invoices do not answer")
    """


@pytest.fixture
def invoices(sqlite_bench: Bench) -> DurableStack:
    return DurableStack(options=DurableStackOptions.from_environment(sqlite_bench.settings))


def start_worker(bench: Bench, cron: str) -> None:
    (bench.folder / "invoices.py").write_text(textwrap.dedent(INVOICES.format(cron=cron)))
    bench.worker(target="invoices")


def told(run: Run) -> dict[str, Any]:
    """What the job was told at its latest attempt."""
    found: dict[str, Any] = json.loads(run.stdout_tail or "{}")
    return found


def ended(stack: DurableStack, status: RunStatus) -> list[Run]:
    return stack.queries.get_runs_by_status(status)


def test_a_job_is_told_of_its_run_at_each_attempt(sqlite_bench: Bench, invoices: DurableStack) -> None:
    before = datetime.now(UTC)
    start_worker(sqlite_bench, "0 0 1 1 *")
    eventually(lambda: invoices.store.get_schedule("invoice-sync"), what=sqlite_bench.logs())
    run_id = invoices.schedules.run_scheduled_job_now("invoice-sync")
    (run,) = eventually(lambda: ended(invoices, RunStatus.SUCCEEDED), what=sqlite_bench.logs())
    assert (run.id, run.attempt) == (run_id, 2), "the first failed, and was tried again"
    started_at = datetime.fromisoformat(told(run).pop("started_at"))
    assert {**told(run), "started_at": None} == {
        "run_id": str(run_id),
        "job_name": "invoice-sync",
        "attempt": 2,
        "max_attempts": 5,
        "scheduled_for": run.scheduled_for.isoformat(),
        "started_at": None,
        "cancelled": False,
        "logger": True,
    }
    assert before < run.scheduled_for < started_at < datetime.now(UTC)
    assert started_at.utcoffset() is not None


def test_the_same_job_recurs_and_is_enqueued_by_hand(sqlite_bench: Bench, invoices: DurableStack) -> None:
    start_worker(sqlite_bench, "* * * * * *")
    recurring = eventually(lambda: [run for run in ended(invoices, RunStatus.SUCCEEDED) if run.slot])
    assert told(recurring[0])["scheduled_for"] is not None
    invoices.schedules.set_scheduled_job_enabled("invoice-sync", False)
    invoices.add_job(lambda: None, name="invoice-sync")  # who enqueues need not have the code
    run_id = invoices.client.enqueue("invoice-sync")
    by_hand = eventually(lambda: [run for run in ended(invoices, RunStatus.SUCCEEDED) if run.id == run_id])
    assert (by_hand[0].slot, told(by_hand[0])["job_name"]) == (None, "invoice-sync")
