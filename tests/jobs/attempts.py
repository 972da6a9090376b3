"""Attempts that are executed here, with services, as a child executes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from durablestack import JobContext, Services
from durablestack.ids import new_run_id
from durablestack.jobs import JobRegistry
from durablestack.jobs.context import CancelFlag
from durablestack.jobs.execution import Raised, Returned, execute
from durablestack.jobs.scope import open_services
from durablestack.options import JobActivation


class Child:
    """One process of an application, as far as its jobs and services are concerned."""

    def __init__(
        self,
        services: Services,
        *jobs: Callable[..., Any],
        activation: JobActivation = JobActivation.SCOPED_PER_EXECUTION,
    ) -> None:
        self.jobs = JobRegistry(jobs)
        self.runner = asyncio.Runner()
        self.container = open_services(services, self.jobs, activation, self.runner)

    def execute(self, job: Callable[..., Any], flag: CancelFlag | None = None) -> Returned | Raised:
        flag = flag or CancelFlag()
        registration = self.jobs.find(job) if job in self.jobs else self.jobs.add(job, name=f"job {len(self.jobs)}")
        context = JobContext(
            run_id=new_run_id(),
            job_name=registration.name,
            attempt=1,
            max_attempts=3,
            scheduled_for=datetime(2030, 1, 2, tzinfo=UTC),
            _cancel_flag=flag,
        )
        if self.container is not None:
            context.services = self.container.scope(context)
        return execute(registration, None, context, flag, self.runner)

    def succeed(self, job: Callable[..., Any]) -> None:
        result = self.execute(job)
        assert isinstance(result, Returned), result

    def fail(self, job: Callable[..., Any]) -> Raised:
        result = self.execute(job)
        assert isinstance(result, Raised)
        return result

    def close(self) -> None:
        if self.container is not None:
            self.container.close()
        self.runner.close()
