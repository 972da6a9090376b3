"""How a child process ended."""

from __future__ import annotations

import signal

from msgspec import Struct


class Death(Struct, frozen=True):
    """`exit_code` as multiprocessing has it: negative for a signal; None if it is not known.

    `reason` is what made us end it, if the pipe was at fault.
    """

    exit_code: int | None
    reason: str | None = None
    by_guard: bool = False
    out_of_memory: bool = False

    @property
    def code(self) -> int | None:
        """What it left with by itself."""
        return self.exit_code if self.exit_code is None or self.exit_code >= 0 else None

    @property
    def signal_name(self) -> str | None:
        if self.exit_code is None or self.exit_code >= 0:
            return None
        try:
            return signal.Signals(-self.exit_code).name
        except ValueError:
            return f"SIG{-self.exit_code}"

    @property
    def how(self) -> str:
        return self.signal_name or f"exit code {self.exit_code}"
