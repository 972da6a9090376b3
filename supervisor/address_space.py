"""Limits the address space of a child while a run lasts, and tells whether the run came near the limit."""

from __future__ import annotations

import resource
from contextlib import suppress
from types import TracebackType

from .usage import status, status_bytes

_NEAR_RATIO = 0.9


class AddressSpace:
    """A job that needs more gets a MemoryError; one that catches it cannot be told from one that met none, unless
    it came near. None: no limit."""

    was_near = False

    def __init__(self, limit_bytes: int | None) -> None:
        self._limit_bytes = limit_bytes

    def __enter__(self) -> None:
        if self._limit_bytes is not None:
            self._before = soft, hard = resource.getrlimit(resource.RLIMIT_AS)
            finite = [limit for limit in (self._limit_bytes, soft, hard) if limit != resource.RLIM_INFINITY]
            resource.setrlimit(resource.RLIMIT_AS, (min(finite), hard))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._limit_bytes is not None:
            with suppress(ValueError, OSError):  # the job has set a lower one for good
                resource.setrlimit(resource.RLIMIT_AS, self._before)
            peak_bytes = status_bytes(status(), b"VmPeak") or 0
            self.was_near = peak_bytes >= _NEAR_RATIO * self._limit_bytes
