"""The jobs that the benchmarks execute."""

from __future__ import annotations

import time

from durablestack import durable_job


@durable_job(name="no-op")
def no_op() -> None:
    return


@durable_job(name="burn")
def burn(rounds: int) -> None:
    """Pure Python on one core, the same work each time; its CPU time is printed, for whoever adds it up."""
    began = time.process_time()
    for _ in range(rounds):
        sum(range(1000))
    print(time.process_time() - began)
