"""How long a claimer rests that has found less than it could take."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable

REST_SECONDS_MIN = 0.01


class Pace:
    """As long as it has been quiet, between a hundredth of a second and the poll interval.

    So that work which follows on other work waits no longer than it came after it, at the price of as many looks as
    the interval can be halved.
    """

    def __init__(
        self, poll_interval_seconds: float, jitter_ratio: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._poll_interval_seconds = poll_interval_seconds
        self._jitter_ratio = jitter_ratio
        self._clock = clock
        self._stirred_at = -math.inf
        self.told = False  # we hear of what others enqueue; written by waking

    def found_work(self) -> None:
        """More may follow."""
        if not self.told:
            self.stir()

    def stir(self) -> None:
        """There may be more soon that is not told."""
        self._stirred_at = self._clock()

    def rest_seconds(self) -> float:
        """From now to the next look."""
        quiet_for_seconds = self._clock() - self._stirred_at
        rest_seconds = min(max(quiet_for_seconds, REST_SECONDS_MIN), self._poll_interval_seconds)
        return rest_seconds * (1 + random.uniform(-self._jitter_ratio, self._jitter_ratio))
