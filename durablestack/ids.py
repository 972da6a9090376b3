"""Run ids: UUIDv7 (RFC 9562), so that ids sort by the time they were drawn and indexes stay compact."""

from __future__ import annotations

import os
import threading
import time
from uuid import UUID

_lock = threading.Lock()
_latest = 0


def new_run_id() -> UUID:
    """A fresh UUIDv7. Ids drawn in one process increase strictly."""
    return new_run_ids(1)[0]


def new_run_ids(count: int) -> list[UUID]:
    """So many, in their order."""
    global _latest
    with _lock:
        # 48 bits of milliseconds, then 12 bits of the millisecond's fraction: RFC 9562, 6.2, method 3
        milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
        first = max((milliseconds << 12) | (nanoseconds * 4096 // 1_000_000), _latest + 1)
        _latest = first + count - 1
    random = memoryview(os.urandom(8 * count)).cast("Q")
    return [
        UUID(int=(stamp >> 12) << 80 | 0x7 << 76 | (stamp & 0xFFF) << 64 | 0b10 << 62 | random_64_bits >> 2)
        for stamp, random_64_bits in zip(range(first, first + count), random, strict=True)
    ]
