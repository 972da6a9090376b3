"""The truth table: what the child said or how it died, against what we wanted of it."""

from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace
from parts import leased_run

from durablestack.options import CrashedRunPolicy
from durablestack.runs import Cancelled, EndedBy, Failed, Outcome, Output, Released, Run, Succeeded, Usage
from durablestack.supervisor import verdict, wire
from durablestack.supervisor.death import Death
from durablestack.supervisor.terms import Terms
from durablestack.supervisor.verdict import Ending, Evidence
from durablestack.text import ERROR_DETAIL_LENGTH_MAX

RUN = leased_run()
OUTPUT = Output("out", "Warning: so it began")
STACK = "Current thread 0x1:\n  File shop.py"
USAGE = Usage(5_000, 1.5, 0.5)
TERMS = Terms(timeout_seconds=2.5, memory_limit=512 * 1_048_576, cpu_seconds=3, crash_limit=5)
SUCCEEDED = wire.Succeeded(1)
NOTICED = wire.Succeeded(1, noticed_cancel=True)
FAILED = wire.Failed(1, "ValueError", "no", "Traceback")
NO_RETRY = wire.Failed(1, "NoRetry", "enough", "Traceback", retryable=False)
ASKS = wire.Failed(1, "Retry", "later", "Traceback", retry_after_seconds=60.0)


def retry_after(run: Run, asked_seconds: float | None) -> timedelta | None:
    return timedelta(seconds=5 if asked_seconds is None else asked_seconds)


def no_attempt_is_left(run: Run, asked_seconds: float | None) -> None:
    return None


def of(
    how: wire.Succeeded | wire.Failed | Death, ending: Ending | None = None, run: Run = RUN, **changes: Any
) -> Outcome | None:
    values: dict[str, Any] = {
        "evidence": Evidence(output=OUTPUT, usage=USAGE),
        "terms": TERMS,
        "retry_after": retry_after,
        "crashed_run_policy": CrashedRunPolicy.RECORD,
    }
    return verdict.of(run, how, ending, **{**values, **changes})


def short(outcome: Outcome | None) -> object:
    """What is decided, in a word or two."""
    match outcome:
        case Failed(failure=failure, retry_after=None):
            return (failure.error_type, "for good")
        case Failed(failure=failure, retry_after=timedelta() as delay):
            return (failure.error_type, delay.total_seconds())
        case None:
            return None
        case _:
            return type(outcome)


CANCELLED, TIMED_OUT, STOPPING, LOST = Ending.CANCELLED, Ending.TIMED_OUT, Ending.STOPPING, Ending.LEASE_LOST
MEMORY, CPU = Ending.MEMORY_LIMIT, Ending.CPU_LIMIT

REPLIES = [
    # said          wanted      recorded
    (SUCCEEDED, None, Succeeded),
    (SUCCEEDED, CANCELLED, Succeeded),
    (SUCCEEDED, TIMED_OUT, Succeeded),
    (SUCCEEDED, STOPPING, Succeeded),
    (SUCCEEDED, LOST, None),
    (NOTICED, None, Succeeded),
    (NOTICED, CANCELLED, Cancelled),
    (NOTICED, TIMED_OUT, ("RunTimeout", 5.0)),
    (NOTICED, STOPPING, Released),
    (NOTICED, MEMORY, ("MemoryLimitExceeded", 5.0)),
    (NOTICED, CPU, ("CpuLimitExceeded", 5.0)),
    (SUCCEEDED, MEMORY, Succeeded),
    (SUCCEEDED, CPU, Succeeded),
    (NOTICED, LOST, None),
    (FAILED, None, ("ValueError", 5.0)),
    (FAILED, CANCELLED, Cancelled),
    (FAILED, TIMED_OUT, ("RunTimeout", 5.0)),
    (FAILED, STOPPING, Released),
    (FAILED, MEMORY, ("MemoryLimitExceeded", 5.0)),
    (FAILED, CPU, ("CpuLimitExceeded", 5.0)),
    (FAILED, LOST, None),
    (NO_RETRY, None, ("NoRetry", "for good")),
    (NO_RETRY, CANCELLED, Cancelled),
    (NO_RETRY, STOPPING, Released),
    (ASKS, None, ("Retry", 60.0)),
    (ASKS, TIMED_OUT, ("RunTimeout", 5.0)),
]


@pytest.mark.parametrize(("reply", "ending", "decided"), REPLIES)
def test_what_a_reply_means(reply: wire.Succeeded | wire.Failed, ending: Ending | None, decided: object) -> None:
    assert short(of(reply, ending)) == decided


KILLED = Death(-9)
LEFT = Death(3)
UNKNOWN = Death(None)
PROTOCOL = Death(-9, "a frame with a wrong checksum")
STARVED = Death(-9, out_of_memory=True)
ALL_DEATHS = (KILLED, LEFT, UNKNOWN, PROTOCOL, STARVED)

DEATHS = [
    # death         wanted      recorded
    (KILLED, None, ("ChildCrashed", 5.0)),
    (LEFT, None, ("ChildExited", 5.0)),
    (UNKNOWN, None, ("ChildCrashed", 5.0)),
    (PROTOCOL, None, ("ProtocolError", 5.0)),
    (STARVED, None, ("OutOfMemory", 5.0)),
    *[(death, CANCELLED, Cancelled) for death in ALL_DEATHS],
    *[(death, TIMED_OUT, ("RunTimeout", 5.0)) for death in ALL_DEATHS],
    *[(death, MEMORY, ("MemoryLimitExceeded", 5.0)) for death in ALL_DEATHS],
    *[(death, CPU, ("CpuLimitExceeded", 5.0)) for death in ALL_DEATHS],
    *[(death, STOPPING, Released) for death in ALL_DEATHS],
    *[(death, LOST, None) for death in ALL_DEATHS],
]


@pytest.mark.parametrize(("death", "ending", "decided"), DEATHS)
def test_what_a_death_means(death: Death, ending: Ending | None, decided: object) -> None:
    assert short(of(death, ending)) == decided


@pytest.mark.parametrize("death", ALL_DEATHS)
def test_a_crash_is_left_to_lease_expiry_if_that_is_the_policy(death: Death) -> None:
    expire = {"crashed_run_policy": CrashedRunPolicy.EXPIRE}
    assert of(death, **expire) is None
    assert short(of(death, CANCELLED, **expire)) is Cancelled
    assert short(of(death, TIMED_OUT, **expire)) == ("RunTimeout", 5.0)
    assert short(of(death, STOPPING, **expire)) is Released


def test_after_the_last_attempt_there_is_no_other() -> None:
    last = {"retry_after": no_attempt_is_left}
    assert short(of(FAILED, **last)) == ("ValueError", "for good")
    assert short(of(ASKS, **last)) == ("Retry", "for good")
    assert short(of(NOTICED, TIMED_OUT, **last)) == ("RunTimeout", "for good")
    assert short(of(KILLED, **last)) == ("ChildCrashed", "for good")
    assert short(of(KILLED, TIMED_OUT, **last)) == ("RunTimeout", "for good")


def test_every_outcome_shows_the_lease_and_keeps_the_output() -> None:
    for outcome in (of(SUCCEEDED), of(FAILED), of(FAILED, CANCELLED), of(KILLED)):
        assert outcome is not None
        assert outcome.lease == RUN.lease
        assert not isinstance(outcome, Released)
        assert outcome.output == OUTPUT
    assert of(FAILED, STOPPING) == Released(RUN.lease)


def test_a_failure_tells_what_the_child_told() -> None:
    outcome = of(FAILED)
    assert isinstance(outcome, Failed)
    failure = outcome.failure
    assert (failure.error_type, failure.error_message, failure.error_detail) == ("ValueError", "no", "Traceback")
    assert failure.signal is None


SIGNALLED = "the child process was ended by "
EXITED = "the child process left with exit code "


@pytest.mark.parametrize(
    ("death", "message", "signal", "exit_code", "ended_by"),
    [
        (KILLED, f"{SIGNALLED}SIGKILL", "SIGKILL", None, EndedBy.OUTSIDE),
        (Death(-15), f"{SIGNALLED}SIGTERM", "SIGTERM", None, EndedBy.OUTSIDE),
        (Death(-11), f"{SIGNALLED}SIGSEGV", "SIGSEGV", None, EndedBy.ITSELF),
        (Death(-6), f"{SIGNALLED}SIGABRT", "SIGABRT", None, EndedBy.ITSELF),
        (Death(-7), f"{SIGNALLED}SIGBUS", "SIGBUS", None, EndedBy.ITSELF),
        (Death(-8), f"{SIGNALLED}SIGFPE", "SIGFPE", None, EndedBy.ITSELF),
        (Death(-4), f"{SIGNALLED}SIGILL", "SIGILL", None, EndedBy.ITSELF),
        (Death(-31), f"{SIGNALLED}SIGSYS", "SIGSYS", None, EndedBy.ITSELF),
        (Death(-24), f"{SIGNALLED}SIGXCPU", "SIGXCPU", None, EndedBy.ITSELF),
        (LEFT, f"{EXITED}3 and no result", None, 3, EndedBy.ITSELF),
        (Death(0), f"{EXITED}0 and no result", None, 0, EndedBy.ITSELF),
        (UNKNOWN, "the child process ended; its exit code could not be learnt", None, None, None),
        (PROTOCOL, "the child process had to end: a frame with a wrong checksum", "SIGKILL", None, EndedBy.SUPERVISOR),
        (
            STARVED,
            "the kernel was out of memory, and ended the child process by SIGKILL",
            "SIGKILL",
            None,
            EndedBy.KERNEL,
        ),
    ],
)
def test_a_crash_tells_how_the_process_ended_and_by_whom(
    death: Death, message: str, signal: str | None, exit_code: int | None, ended_by: EndedBy | None
) -> None:
    outcome = of(death)
    assert isinstance(outcome, Failed)
    failure = outcome.failure
    assert (failure.error_message, failure.signal, failure.exit_code) == (message, signal, exit_code)
    assert (failure.ended_by, failure.usage, failure.crashed) == (ended_by, USAGE, death != UNKNOWN)


@pytest.mark.parametrize(
    ("stack", "stderr", "detail"),
    [
        (STACK + "\n", "oh\n", f"{STACK}\nThe end of standard error:\noh\n"),
        (STACK, None, STACK),
        (None, "oh", "oh"),
        (None, None, None),
    ],
)
@pytest.mark.parametrize("ending", [None, TIMED_OUT, MEMORY, CPU])
def test_a_death_tells_the_stack_and_then_the_last_words(
    stack: str | None, stderr: str | None, detail: str | None, ending: Ending | None
) -> None:
    outcome = of(KILLED, ending, evidence=Evidence(output=Output(None, stderr), stack=stack))
    assert isinstance(outcome, Failed)
    assert outcome.failure.error_detail == detail


def test_neither_stack_nor_last_words_crowd_out_the_other() -> None:
    outcome = of(KILLED, evidence=Evidence(output=Output(None, "w" * 100_000 + "last"), stack="s" * 100_000 + "deep"))
    assert isinstance(outcome, Failed)
    detail = outcome.failure.error_detail or ""
    assert len(detail) <= ERROR_DETAIL_LENGTH_MAX
    assert "deep\nThe end of standard error:\nw" in detail
    assert detail.endswith("last")


def test_only_what_nobody_of_us_wanted_is_a_crash() -> None:
    for death in ALL_DEATHS:
        for ending in (TIMED_OUT, MEMORY, CPU):
            outcome = of(death, ending)
            assert isinstance(outcome, Failed)
            assert not outcome.failure.crashed
    raised = of(FAILED)
    assert isinstance(raised, Failed)
    assert (raised.failure.crashed, raised.failure.ended_by, raised.failure.usage) == (False, EndedBy.ITSELF, USAGE)


@pytest.mark.parametrize(
    ("ending", "reached", "message", "ended_by"),
    [
        (
            MEMORY,
            600 * 1_048_576 + 300_000,
            "the attempt used 600.3 MiB of memory, more than its limit of 512.0 MiB",
            EndedBy.MEMORY_LIMIT,
        ),
        (CPU, 3.26, "the attempt used 3.3 s of CPU time, more than its limit of 3 s", EndedBy.CPU_LIMIT),
    ],
)
def test_a_limit_tells_what_it_is_and_what_was_reached(
    ending: Ending, reached: float, message: str, ended_by: EndedBy
) -> None:
    killed = of(KILLED, ending, evidence=Evidence(reached=reached, usage=USAGE))
    left = of(FAILED, ending, evidence=Evidence(reached=reached))
    assert isinstance(killed, Failed)
    assert isinstance(left, Failed)
    assert killed.failure.error_message == f"{message}, ended by SIGKILL"
    assert (killed.failure.ended_by, killed.failure.usage) == (ended_by, USAGE)
    assert (left.failure.error_message, left.failure.error_detail) == (message, "Traceback")


def test_a_run_that_has_crashed_as_often_as_it_may_is_not_tried_again() -> None:
    fourth, fifth = leased_run(crash_count=3), leased_run(crash_count=4)
    assert short(of(KILLED, run=fourth)) == ("ChildCrashed", 5.0)
    outcome = of(KILLED, run=fifth)
    assert isinstance(outcome, Failed)
    assert outcome.retry_after is None
    assert outcome.failure.error_message == (
        "the child process was ended by SIGKILL; this run has ended its process 5 times, and 5 is the limit"
    )
    assert short(of(FAILED, run=fifth)) == ("ValueError", 5.0)  # an error is no crash
    assert short(of(KILLED, TIMED_OUT, run=fifth)) == ("RunTimeout", 5.0)  # nor is what we did ourselves
    assert short(of(KILLED, run=fifth, terms=Terms())) == ("ChildCrashed", 5.0)


def test_a_timeout_tells_its_length_and_whether_force_was_needed() -> None:
    left, killed = of(FAILED, TIMED_OUT), of(KILLED, TIMED_OUT)
    assert isinstance(left, Failed)
    assert isinstance(killed, Failed)
    assert left.failure.error_message == "the attempt ran longer than its timeout of 2.5 s"
    assert (left.failure.error_detail, left.failure.signal) == ("Traceback", None)
    assert killed.failure.error_message == "the attempt ran longer than its timeout of 2.5 s, ended by SIGKILL"
    assert (killed.failure.error_detail, killed.failure.signal) == (OUTPUT.stderr_tail, "SIGKILL")
    assert (left.failure.ended_by, killed.failure.ended_by) == (EndedBy.TIMEOUT, EndedBy.TIMEOUT)


def test_a_cancelled_run_tells_the_signal_that_ended_it() -> None:
    killed, left = of(KILLED, CANCELLED), of(FAILED, CANCELLED)
    assert isinstance(killed, Cancelled)
    assert isinstance(left, Cancelled)
    assert (killed.signal, left.signal) == ("SIGKILL", None)
    assert (killed.ended_by, killed.usage, killed.failure.usage) == (EndedBy.CANCEL, USAGE, USAGE)
    assert killed.failure.error_message == "Run was cancelled."


def test_a_death_that_nobody_can_tell_is_not_held_against_its_run() -> None:
    """The fork server is gone, and its children with it."""
    often_crashed = replace(RUN, crash_count=100)
    outcome = of(Death(None), run=often_crashed)
    assert short(outcome) == ("ChildCrashed", 5)
    assert isinstance(outcome, Failed)
    assert not outcome.failure.crashed
    assert short(of(Death(-9), run=often_crashed)) == ("ChildCrashed", "for good")
