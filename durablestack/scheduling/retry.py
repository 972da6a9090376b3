"""How long a failed attempt waits before the next one."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from enum import StrEnum

from msgspec import Struct


class RetryBehavior(StrEnum):
    FIXED_DELAY = "fixed_delay"
    BACKOFF = "backoff"


class RetryPolicy(Struct, frozen=True, kw_only=True):
    """What decides the delay: the job's behavior and base delay, the limits of the options."""

    behavior: RetryBehavior = RetryBehavior.FIXED_DELAY
    base_delay: timedelta = timedelta(seconds=5)
    max_delay: timedelta = timedelta(hours=1)
    jitter_ratio: float = 0.0
    """0 for none; 0.2 spreads the delay evenly over 80 % to 120 % of itself."""

    def delay_after(self, attempt: int, uniform: Callable[[float, float], float] = random.uniform) -> timedelta:
        """The delay after the failure of attempt number `attempt` (1 is the first): growth, jitter, then the clamp."""
        delay_seconds = self.base_delay.total_seconds()
        max_seconds = self.max_delay.total_seconds()
        if self.behavior is RetryBehavior.BACKOFF and delay_seconds > 0:
            # past 64 doublings any base delay is beyond any clamp; a larger power would only overflow
            delay_seconds *= 2.0 ** min(max(attempt, 1) - 1, 64)
        if self.jitter_ratio:
            delay_seconds *= 1 + uniform(-self.jitter_ratio, self.jitter_ratio)
        return timedelta(seconds=min(delay_seconds, max_seconds))
