"""How long a run waits for its next attempt: as the job asked, else as its registration and the options say."""

from __future__ import annotations

from datetime import timedelta

from durablestack.jobs import JobRegistry
from durablestack.options import DurableStackOptions
from durablestack.runs import Run
from durablestack.scheduling.retry import RetryPolicy


class Retries:
    def __init__(self, options: DurableStackOptions, jobs: JobRegistry) -> None:
        self._options = options
        self._jobs = jobs

    def after(self, run: Run, asked_seconds: float | None) -> timedelta | None:
        """The delay before the next attempt; None if this was the last."""
        if run.attempt >= run.max_attempts:
            return None
        options = self._options
        if asked_seconds is not None:
            return timedelta(seconds=min(max(asked_seconds, 0.0), options.retry_max_delay.total_seconds()))
        registration = self._jobs.find(run.job_name)
        policy = RetryPolicy(
            behavior=registration.retry_behavior,
            base_delay=registration.retry_initial_delay or options.retry_delay,
            max_delay=options.retry_max_delay,
            jitter_ratio=options.retry_jitter_ratio if options.retry_jitter_enabled else 0.0,
        )
        return policy.delay_after(run.attempt)
