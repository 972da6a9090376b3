"""On which terms a run is executed: as its job says, else as the options do."""

from __future__ import annotations

from msgspec import Struct

from durablestack.jobs import JobRegistration
from durablestack.options import DurableStackOptions


class Terms(Struct, frozen=True, kw_only=True):
    """What a run may take, in the words of the options; memory is in bytes. None: no limit."""

    timeout_seconds: float | None = None
    cpu_seconds: float | None = None
    memory_limit: int | None = None
    address_space_limit: int | None = None
    crash_limit: int | None = None
    fresh_process_per_run: bool = False


def terms_of(job: JobRegistration, options: DurableStackOptions) -> Terms:
    fresh = job.fresh_process_per_run
    return Terms(
        timeout_seconds=job.timeout_seconds or options.timeout_seconds,
        cpu_seconds=job.cpu_seconds or options.cpu_seconds,
        memory_limit=job.memory_limit or options.memory_limit,
        address_space_limit=job.address_space_limit or options.address_space_limit,
        crash_limit=job.crash_limit or options.crash_limit,
        fresh_process_per_run=options.fresh_process_per_run if fresh is None else fresh,
    )
