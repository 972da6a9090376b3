"""The jobs that every contender executes. Needs nothing but the standard library.

Notes go to the folder that PEERS_NOTES names. Times are of CLOCK_MONOTONIC, which all processes of a machine share.
"""

import os
import time

FOLDER = os.environ.get("PEERS_NOTES", "")

_started = False


def no_op() -> None:
    """Nothing, but the first one that starts tells when; each process looks once, whether it is the first."""
    global _started
    if not _started:
        _started = True
        _note_start(time.monotonic())


def tell(sent_at: float) -> None:
    """Write down how many seconds it took from `sent_at` to here."""
    _append("latencies", f"{time.monotonic() - sent_at:.6f}")


def burn(rounds: int) -> None:
    """Pure Python on one core, the same work each time; its CPU time is written down, and when it ended."""
    _note_start(time.monotonic())
    began = time.thread_time()
    for _ in range(rounds):
        sum(range(1000))
    _append("burnt", f"{time.thread_time() - began:.6f}")
    _append("ended", f"{time.monotonic():.6f}")


JOBS = {job.__name__: job for job in (no_op, tell, burn)}


def _note_start(at: float) -> None:
    try:
        fd = os.open(f"{FOLDER}/first", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return
    os.write(fd, f"{at:.6f}\n".encode())
    os.close(fd)


def _append(name: str, line: str) -> None:
    fd = os.open(f"{FOLDER}/{name}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{line}\n".encode())
    os.close(fd)
