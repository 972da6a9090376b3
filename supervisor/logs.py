"""Log lines are written by a thread of their own: whoever reads them, or does not, holds up nobody else."""

from __future__ import annotations

import logging
import queue
from collections.abc import Collection
from logging.handlers import QueueHandler, QueueListener

from durablestack.options import Secret, redact

_LINES_WAITING_MAX = 10_000
_LAST_LINES_WITHIN_SECONDS = 2.0
_ESCAPED = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}
_ESCAPED |= {ord("\n"): "\n    ", 0x2028: "\\u2028", 0x2029: "\\u2029"}


class _DroppingHandler(QueueHandler):
    """Lets a line go rather than wait, and says so once there is room."""

    def __init__(self, lines: queue.Queue[logging.LogRecord]) -> None:
        super().__init__(lines)
        self._lines = lines
        self._dropped = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(record)
        except queue.Full:
            self._dropped += 1
            return
        if self._dropped and self._lines.qsize() < _LINES_WAITING_MAX // 2:
            dropped, self._dropped = self._dropped, 0
            logging.getLogger(__name__).warning("%d log lines were dropped: nobody read them in time", dropped)


class LineFormatter(logging.Formatter):
    """What a job says of its error can neither pass for a line of ours nor speak to the terminal; nor does any line
    tell a secret, tracebacks included. `secrets` are written once they are known."""

    secrets: Collection[Secret] = ()

    def formatMessage(self, record: logging.LogRecord) -> str:
        return redact(super().formatMessage(record), self.secrets).translate(_ESCAPED)


class LogThread:
    """Sends all logging of this process through `handler`, in a thread. Close it before the process ends."""

    def __init__(self, handler: logging.Handler, level: int) -> None:
        lines: queue.Queue[logging.LogRecord] = queue.Queue(_LINES_WAITING_MAX)
        self._listener = QueueListener(lines, handler)
        self._listener.start()
        logging.basicConfig(level=level, format="%(message)s", handlers=[_DroppingHandler(lines)], force=True)

    def close(self) -> None:
        """Write what is waiting, as far as somebody reads it."""
        thread = self._listener._thread
        self._listener.enqueue_sentinel()
        if thread is not None:
            thread.join(_LAST_LINES_WITHIN_SECONDS)
