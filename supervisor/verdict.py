"""What an ended attempt means: from what the child said, or how it died, and what we wanted, to what is recorded.

Pure functions. An attempt that did its work has succeeded, whatever was wanted of it meanwhile, unless its lease is
lost; what a job does after it noticed that it should end is giving up, and counts as what was wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import timedelta
from enum import StrEnum

from msgspec import Struct
from msgspec.structs import replace

from durablestack.options import CrashedRunPolicy, Secret, redact, without_known
from durablestack.runs import (
    NO_OUTPUT,
    Cancelled,
    EndedBy,
    Failed,
    Failure,
    Outcome,
    Output,
    Released,
    Run,
    Succeeded,
    Usage,
)
from durablestack.text import ERROR_DETAIL_LENGTH_MAX, clean

from . import wire
from .death import Death
from .terms import Terms

_STACK_LENGTH_MAX = ERROR_DETAIL_LENGTH_MAX * 2 // 3
_STDERR_FOLLOWS = "\nThe end of standard error:\n"
_MEBIBYTE = 1_048_576

_OF_ITS_OWN_DOING = frozenset(
    f"SIG{name}"
    for name in ("ILL", "TRAP", "ABRT", "BUS", "FPE", "SEGV", "SYS", "PIPE", "ALRM", "VTALRM", "PROF", "XCPU", "XFSZ")
)
"""Signals that a process gets for what it did, or asked for; the others come from somebody."""


class Ending(StrEnum):
    """Why we end an attempt that has not ended by itself."""

    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    STOPPING = "stopping"
    LEASE_LOST = "lease_lost"
    MEMORY_LIMIT = "memory_limit"
    CPU_LIMIT = "cpu_limit"


class Evidence(Struct, frozen=True, kw_only=True):
    """What is left of an attempt besides how it ended. `stack` is the last Python stack that its process told;
    `reached` is what it used when we ended it for a limit: bytes, or seconds of CPU time."""

    output: Output = NO_OUTPUT
    stack: str | None = None
    usage: Usage = Usage()
    reached: float | None = None


RetryAfter = Callable[[Run, float | None], "timedelta | None"]
"""The delay before the next attempt of a run, None if there is none; given what the job itself asked for."""


def of(
    run: Run,
    how: wire.Succeeded | wire.Failed | Death,
    ending: Ending | None,
    evidence: Evidence,
    *,
    terms: Terms,
    retry_after: RetryAfter,
    crashed_run_policy: CrashedRunPolicy,
) -> Outcome | None:
    """The outcome of an attempt; None if it is not ours to tell: its lease is lost, or is left to expire."""
    output = evidence.output
    if ending is Ending.LEASE_LOST:
        return None
    if isinstance(how, wire.Succeeded) and not (ending and how.noticed_cancel):
        return Succeeded(run.lease, output)
    match ending:
        case Ending.CANCELLED:
            return _cancelled(run, how, evidence)
        case Ending.STOPPING:
            return Released(run.lease)
        case Ending.TIMED_OUT | Ending.MEMORY_LIMIT | Ending.CPU_LIMIT:
            return Failed(run.lease, _ended(ending, how, evidence, terms), retry_after(run, None), output)
    match how:
        case wire.Failed():
            delay = retry_after(run, how.retry_after_seconds) if how.retryable else None
            return Failed(run.lease, _raised(how, evidence), delay, output)
        case Death() if crashed_run_policy is CrashedRunPolicy.RECORD:
            if _counts(how) and has_crashed_enough(run, terms):
                return Failed(run.lease, _crashed_enough(run, _crashed(how, evidence), terms), None, output)
            return Failed(run.lease, _crashed(how, evidence), retry_after(run, None), output)
    return None  # its lease is left to expire


def has_crashed_enough(run: Run, terms: Terms) -> bool:
    """Whether a run that has just crashed is not to be tried again, however many attempts it has left."""
    return terms.crash_limit is not None and run.crash_count + 1 >= terms.crash_limit


def _counts(death: Death) -> bool:
    """Where the fork server is gone nobody knows how its children ended: with it, most likely, not of their runs."""
    return death.exit_code is not None


def _cancelled(run: Run, how: wire.Succeeded | wire.Failed | Death, evidence: Evidence) -> Cancelled:
    death = how if isinstance(how, Death) else Death(None)
    return Cancelled(
        run.lease,
        evidence.output,
        death.signal_name,
        exit_code=death.code,
        ended_by=EndedBy.CANCEL,
        usage=evidence.usage,
    )


def _raised(reply: wire.Failed, evidence: Evidence) -> Failure:
    return Failure(
        error_type=reply.error_type,
        error_message=reply.error_message,
        error_detail=reply.error_detail,
        ended_by=EndedBy.ITSELF,
        usage=evidence.usage,
    )


def _ended(ending: Ending, how: wire.Succeeded | wire.Failed | Death, evidence: Evidence, terms: Terms) -> Failure:
    """By us, for it took more than it may."""
    detail, death = None, Death(None)
    match how:
        case wire.Succeeded():
            detail = "it returned when it was asked to leave"
        case wire.Failed():
            detail = how.error_detail
        case Death():
            detail, death = _last_words(evidence), how
    error_type, message, ended_by = _why_ended(ending, evidence.reached or 0, terms)
    by = f", ended by {death.signal_name}" if death.signal_name else ""
    return Failure(
        error_type=error_type,
        error_message=message + by,
        error_detail=detail,
        signal=death.signal_name,
        exit_code=death.code,
        ended_by=ended_by,
        usage=evidence.usage,
    )


def _why_ended(ending: Ending, reached: float, terms: Terms) -> tuple[str, str, EndedBy]:
    match ending:
        case Ending.MEMORY_LIMIT:
            limit = (terms.memory_limit or 0) / _MEBIBYTE
            used = f"{reached / _MEBIBYTE:.1f} MiB of memory, more than its limit of {limit:.1f} MiB"
            return "MemoryLimitExceeded", f"the attempt used {used}", EndedBy.MEMORY_LIMIT
        case Ending.CPU_LIMIT:
            used = f"{reached:.1f} s of CPU time, more than its limit of {terms.cpu_seconds or 0:g} s"
            return "CpuLimitExceeded", f"the attempt used {used}", EndedBy.CPU_LIMIT
        case _:
            message = f"the attempt ran longer than its timeout of {terms.timeout_seconds or 0:g} s"
            return "RunTimeout", message, EndedBy.TIMEOUT


def _crashed(death: Death, evidence: Evidence) -> Failure:
    error_type, message, ended_by = _why_crashed(death)
    return Failure(
        error_type=error_type,
        error_message=message,
        error_detail=_last_words(evidence),
        signal=death.signal_name,
        exit_code=death.code,
        ended_by=ended_by,
        usage=evidence.usage,
        crashed=_counts(death),
    )


def _why_crashed(death: Death) -> tuple[str, str, EndedBy | None]:
    name = death.signal_name
    if death.reason is not None:
        return "ProtocolError", f"the child process had to end: {death.reason}", EndedBy.SUPERVISOR
    if death.out_of_memory:
        message = f"the kernel was out of memory, and ended the child process by {name}"
        return "OutOfMemory", message, EndedBy.KERNEL
    if name is not None:
        ended_by = EndedBy.ITSELF if name in _OF_ITS_OWN_DOING else EndedBy.OUTSIDE
        return "ChildCrashed", f"the child process was ended by {name}", ended_by
    if death.exit_code is None:
        return "ChildCrashed", "the child process ended; its exit code could not be learnt", None
    message = f"the child process left with exit code {death.exit_code} and no result"
    return "ChildExited", message, EndedBy.ITSELF


def _crashed_enough(run: Run, failure: Failure, terms: Terms) -> Failure:
    times = f"this run has ended its process {run.crash_count + 1} times, and {terms.crash_limit} is the limit"
    return replace(failure, error_message=f"{failure.error_message}; {times}")


def _last_words(evidence: Evidence) -> str | None:
    """The Python stack that a process told when it crashed or was asked, and the end of its standard error."""
    stack = clean(evidence.stack, _STACK_LENGTH_MAX).rstrip() if evidence.stack else ""
    stderr = evidence.output.stderr_tail
    if not stderr:
        return stack or None
    head = stack + _STDERR_FOLLOWS if stack else ""
    return head + clean(stderr, ERROR_DETAIL_LENGTH_MAX - len(head))


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
