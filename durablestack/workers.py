"""Who executes runs: one life of a supervisor, told so exactly that another can say whether it is over."""

from __future__ import annotations

from uuid import UUID

from msgspec import Struct


class Worker(Struct, frozen=True, kw_only=True):
    """One life of a supervisor.

    Attributes:
        id: drawn at its start.
        name: for people; the `lease_owner` of what it claims.
        boot_id: of the machine's kernel, drawn when that started; "" where it cannot be known.
        pid_namespace: within which `pid` means something.
        user_id: whose process it is.
        process_started: clock ticks from the start of the machine to that of the process; a later process of the same
            `pid` has another.
        marker: in the environment of its processes, by which they are told from those of others.
    """

    id: UUID
    name: str
    boot_id: str
    pid_namespace: str
    user_id: int
    pid: int
    process_started: int
    marker: str
