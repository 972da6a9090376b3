"""What an ended attempt means: from what the child said, or how it died, and what we wanted, to what is recorded.

Pure functions. An attempt that did its work has succeeded, whatever was wanted of it meanwhile; what a job does
after it noticed that it should end is giving up, and counts as what was wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from enum import StrEnum

from durablestack.options import CrashedRunPolicy
from durablestack.runs import Cancelled, Failed, Failure, Outcome, Output, Released, Run, Succeeded
from durablestack.text import ERROR_DETAIL_LENGTH_MAX, clean

from . import wire
from .process import Death


class Ending(StrEnum):
    """Why we end an attempt that has not ended by itself."""

    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    STOPPING = "stopping"
    LEASE_LOST = "lease_lost"


RetryAfter = Callable[[Run, float | None], "timedelta | None"]
"""The delay before the next attempt of a run, None if there is none; given what the job itself asked for."""


def of_reply(
    run: Run,
    reply: wire.Succeeded | wire.Failed,
    ending: Ending | None,
    *,
    timeout_seconds: float | None,
    output: Output,
    retry_after: RetryAfter,
) -> Outcome | None:
    """The outcome of an attempt whose child replied; None if it is no longer ours to tell."""
    if ending is Ending.LEASE_LOST:
        return None
    if isinstance(reply, wire.Succeeded) and not (ending and reply.noticed_cancel):
        return Succeeded(run.lease, output)
    if ending is not None:
        detail = reply.error_detail if isinstance(reply, wire.Failed) else "it returned when it was asked to leave"
        return _ended(run, ending, _timed_out(timeout_seconds, detail), output, retry_after)
    assert isinstance(reply, wire.Failed)
    failure = Failure(error_type=reply.error_type, error_message=reply.error_message, error_detail=reply.error_detail)
    delay = retry_after(run, reply.retry_after_seconds) if reply.retryable else None
    return Failed(run.lease, failure, delay, output)


def of_death(
    run: Run,
    death: Death,
    ending: Ending | None,
    *,
    timeout_seconds: float | None,
    output: Output,
    retry_after: RetryAfter,
    crashed_run_policy: CrashedRunPolicy,
) -> Outcome | None:
    """The outcome of an attempt whose child died with it; None if its lease is left to expire, or is lost."""
    if ending is Ending.LEASE_LOST:
        return None
    if ending is not None:
        timed_out = _timed_out(timeout_seconds, _stderr(output), death)
        return _ended(run, ending, timed_out, output, retry_after, death.signal_name)
    if crashed_run_policy is CrashedRunPolicy.EXPIRE:
        return None
    return Failed(run.lease, _crashed(death, output), retry_after(run, None), output)


def _ended(
    run: Run,
    ending: Ending,
    timed_out: Failure,
    output: Output,
    retry_after: RetryAfter,
    signal_name: str | None = None,
) -> Outcome:
    match ending:
        case Ending.CANCELLED:
            return Cancelled(run.lease, output, signal_name)
        case Ending.TIMED_OUT:
            return Failed(run.lease, timed_out, retry_after(run, None), output)
        case Ending.STOPPING | Ending.LEASE_LOST:
            return Released(run.lease)


def _timed_out(timeout_seconds: float | None, detail: str | None, death: Death | None = None) -> Failure:
    how = f", ended by {death.signal_name}" if death is not None and death.signal_name else ""
    return Failure(
        error_type="RunTimeout",
        error_message=f"the attempt ran longer than its timeout of {timeout_seconds or 0:g} s{how}",
        error_detail=detail,
        signal=death.signal_name if death is not None else None,
    )


def _crashed(death: Death, output: Output) -> Failure:
    if death.reason is not None:
        error_type, message = "ProtocolError", f"the child process had to end: {death.reason}"
    elif death.signal_name is not None:
        error_type, message = "ChildCrashed", f"the child process was ended by {death.signal_name}"
    elif death.exit_code is None:
        error_type, message = "ChildCrashed", "the child process ended; its exit code could not be learnt"
    else:
        error_type, message = "ChildExited", f"the child process left with exit code {death.exit_code} and no result"
    return Failure(error_type=error_type, error_message=message, error_detail=_stderr(output), signal=death.signal_name)


def _stderr(output: Output) -> str | None:
    """The end of standard error: after a crash or a dump request the Python stack stands there."""
    return clean(output.stderr_tail, ERROR_DETAIL_LENGTH_MAX) if output.stderr_tail else None
