"""The job of `benchmarks.latency`: it notes when it began."""

from __future__ import annotations

import os
import struct
import time

from durablestack import durable_job

STARTS_VARIABLE = "BENCHMARK_STARTS"
NOTE = struct.Struct("=qd")
"""The number of a run, and the time at which it began, by the clock that all processes of a machine share."""

_notes: list[int] = []  # the descriptor of the file, once it is open


@durable_job(name="note-the-start")
def note_the_start(number: int) -> None:
    began_at = time.monotonic()
    if not _notes:
        _notes.append(os.open(os.environ[STARTS_VARIABLE], os.O_WRONLY | os.O_APPEND))
    os.write(_notes[0], NOTE.pack(number, began_at))
