"""What an ended attempt means: from what the child said, or how it died, and what we wanted, to what is recorded.

Pure functions. An attempt that did its work has succeeded, whatever was wanted of it meanwhile; what a job does
after it noticed that it should end is giving up, and counts as what was wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import timedelta
from enum import StrEnum

from msgspec.structs import replace

from durablestack.options import CrashedRunPolicy, Secret, redact, without_known
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


def of(
    run: Run,
    how: wire.Succeeded | wire.Failed | Death,
    ending: Ending | None,
    *,
    timeout_seconds: float | None,
    output: Output,
    retry_after: RetryAfter,
    crashed_run_policy: CrashedRunPolicy,
) -> Outcome | None:
    """The outcome of an attempt; None if it is not ours to tell: its lease is lost, or is left to expire."""
    if ending is Ending.LEASE_LOST:
        return None
    if isinstance(how, wire.Succeeded) and not (ending and how.noticed_cancel):
        return Succeeded(run.lease, output)
    match ending:
        case Ending.CANCELLED:
            return Cancelled(run.lease, output, how.signal_name if isinstance(how, Death) else None)
        case Ending.TIMED_OUT:
            return Failed(run.lease, _timed_out(timeout_seconds, how, output), retry_after(run, None), output)
        case Ending.STOPPING:
            return Released(run.lease)
    match how:
        case wire.Failed():
            delay = retry_after(run, how.retry_after_seconds) if how.retryable else None
            return Failed(run.lease, _raised(how), delay, output)
        case Death() if crashed_run_policy is CrashedRunPolicy.RECORD:
            return Failed(run.lease, _crashed(how, output), retry_after(run, None), output)
    return None  # its lease is left to expire


def _raised(reply: wire.Failed) -> Failure:
    return Failure(error_type=reply.error_type, error_message=reply.error_message, error_detail=reply.error_detail)


def _timed_out(timeout_seconds: float | None, how: wire.Succeeded | wire.Failed | Death, output: Output) -> Failure:
    detail, signal_name = _stderr(output), None
    match how:
        case wire.Succeeded():
            detail = "it returned when it was asked to leave"
        case wire.Failed():
            detail = how.error_detail
        case Death():
            signal_name = how.signal_name
    ended_by = f", ended by {signal_name}" if signal_name else ""
    return Failure(
        error_type="RunTimeout",
        error_message=f"the attempt ran longer than its timeout of {timeout_seconds or 0:g} s{ended_by}",
        error_detail=detail,
        signal=signal_name,
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


def redacted(outcome: Outcome, secrets: Collection[Secret]) -> Outcome:
    """The outcome without our own secrets: a job may have met them in its environment, and told."""
    match outcome:
        case Failed(failure=failure):
            told = replace(
                failure,
                error_message=redact(failure.error_message, secrets),
                error_detail=failure.error_detail and redact(failure.error_detail, secrets),
            )
            return replace(outcome, failure=told, output=_redacted_output(outcome.output, secrets))
        case Succeeded() | Cancelled() if outcome.output:
            return replace(outcome, output=_redacted_output(outcome.output, secrets))
        case _:
            return outcome


def _redacted_output(output: Output, secrets: Collection[Secret]) -> Output:
    stdout, stderr = output.stdout_tail, output.stderr_tail
    return Output(stdout and without_known(stdout, secrets), stderr and without_known(stderr, secrets))
