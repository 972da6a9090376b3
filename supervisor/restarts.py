"""How soon a child is started again, and when so many have died that somebody should look."""

from __future__ import annotations

from collections import deque

import anyio

_DELAY_SECONDS_FIRST = 0.1
_DELAY_SECONDS_MAX = 30.0


def restart_delay_seconds(deaths_in_a_row: int) -> float:
    """At once after the first death, then 0.1 s, doubling up to 30 s while the slot gets nothing done."""
    if deaths_in_a_row <= 1:
        return 0.0
    return float(min(_DELAY_SECONDS_FIRST * 2.0 ** min(deaths_in_a_row - 2, 32), _DELAY_SECONDS_MAX))


class Restarts:
    """OTP's restart intensity. Past it the worker is degraded: it goes on, with its delays, and says so."""

    def __init__(self, limit: int, period_seconds: float) -> None:
        self._limit = limit
        self._period_seconds = period_seconds
        self._recent: deque[float] = deque(maxlen=limit + 1)

    def record(self) -> bool:
        """Count a death; return whether it is the one that exceeds the limit."""
        was_degraded = self.degraded
        self._recent.append(anyio.current_time())
        return self.degraded and not was_degraded

    @property
    def degraded(self) -> bool:
        now = anyio.current_time()
        while self._recent and self._recent[0] < now - self._period_seconds:
            self._recent.popleft()
        return len(self._recent) > self._limit
