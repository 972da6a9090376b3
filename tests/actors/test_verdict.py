"""The truth table: what the child said or how it died, against what we wanted of it."""

from datetime import timedelta
from typing import Any

import pytest
from parts import leased_run

from durablestack.options import CrashedRunPolicy
from durablestack.runs import Cancelled, Failed, Outcome, Output, Released, Run, Succeeded
from durablestack.supervisor import verdict, wire
from durablestack.supervisor.process import Death
from durablestack.supervisor.verdict import Ending

RUN = leased_run()
OUTPUT = Output("out", "Current thread 0x1:\n  File shop.py")
SUCCEEDED = wire.Succeeded(1)
NOTICED = wire.Succeeded(1, noticed_cancel=True)
FAILED = wire.Failed(1, "ValueError", "no", "Traceback")
NO_RETRY = wire.Failed(1, "NoRetry", "enough", "Traceback", retryable=False)
ASKS = wire.Failed(1, "Retry", "later", "Traceback", retry_after_seconds=60.0)


def retry_after(run: Run, asked_seconds: float | None) -> timedelta | None:
    assert run is RUN
    return timedelta(seconds=5 if asked_seconds is None else asked_seconds)


def no_attempt_is_left(run: Run, asked_seconds: float | None) -> None:
    return None


def of(how: wire.Succeeded | wire.Failed | Death, ending: Ending | None = None, **changes: Any) -> Outcome | None:
    values: dict[str, Any] = {
        "timeout_seconds": 2.5,
        "output": OUTPUT,
        "retry_after": retry_after,
        "crashed_run_policy": CrashedRunPolicy.RECORD,
    }
    return verdict.of(RUN, how, ending, **{**values, **changes})


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
    (NOTICED, LOST, None),
    (FAILED, None, ("ValueError", 5.0)),
    (FAILED, CANCELLED, Cancelled),
    (FAILED, TIMED_OUT, ("RunTimeout", 5.0)),
    (FAILED, STOPPING, Released),
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

DEATHS = [
    # death         wanted      recorded
    (KILLED, None, ("ChildCrashed", 5.0)),
    (LEFT, None, ("ChildExited", 5.0)),
    (UNKNOWN, None, ("ChildCrashed", 5.0)),
    (PROTOCOL, None, ("ProtocolError", 5.0)),
    *[(death, CANCELLED, Cancelled) for death in (KILLED, LEFT, UNKNOWN, PROTOCOL)],
    *[(death, TIMED_OUT, ("RunTimeout", 5.0)) for death in (KILLED, LEFT, UNKNOWN, PROTOCOL)],
    *[(death, STOPPING, Released) for death in (KILLED, LEFT, UNKNOWN, PROTOCOL)],
    *[(death, LOST, None) for death in (KILLED, LEFT, UNKNOWN, PROTOCOL)],
]


@pytest.mark.parametrize(("death", "ending", "decided"), DEATHS)
def test_what_a_death_means(death: Death, ending: Ending | None, decided: object) -> None:
    assert short(of(death, ending)) == decided


@pytest.mark.parametrize("death", [KILLED, LEFT, UNKNOWN, PROTOCOL])
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


@pytest.mark.parametrize(
    ("death", "message", "signal"),
    [
        (KILLED, "the child process was ended by SIGKILL", "SIGKILL"),
        (Death(-11), "the child process was ended by SIGSEGV", "SIGSEGV"),
        (LEFT, "the child process left with exit code 3 and no result", None),
        (Death(0), "the child process left with exit code 0 and no result", None),
        (UNKNOWN, "the child process ended; its exit code could not be learnt", None),
        (PROTOCOL, "the child process had to end: a frame with a wrong checksum", "SIGKILL"),
    ],
)
def test_a_crash_tells_how_the_process_ended_and_its_last_words(death: Death, message: str, signal: str | None) -> None:
    outcome = of(death)
    assert isinstance(outcome, Failed)
    assert (outcome.failure.error_message, outcome.failure.signal) == (message, signal)
    assert outcome.failure.error_detail == OUTPUT.stderr_tail


def test_a_timeout_tells_its_length_and_whether_force_was_needed() -> None:
    left, killed = of(FAILED, TIMED_OUT), of(KILLED, TIMED_OUT)
    assert isinstance(left, Failed)
    assert isinstance(killed, Failed)
    assert left.failure.error_message == "the attempt ran longer than its timeout of 2.5 s"
    assert (left.failure.error_detail, left.failure.signal) == ("Traceback", None)
    assert killed.failure.error_message == "the attempt ran longer than its timeout of 2.5 s, ended by SIGKILL"
    assert (killed.failure.error_detail, killed.failure.signal) == (OUTPUT.stderr_tail, "SIGKILL")


def test_a_cancelled_run_tells_the_signal_that_ended_it() -> None:
    killed, left = of(KILLED, CANCELLED), of(FAILED, CANCELLED)
    assert isinstance(killed, Cancelled)
    assert isinstance(left, Cancelled)
    assert (killed.signal, left.signal) == ("SIGKILL", None)
    assert killed.failure.error_message == "Run was cancelled."


def test_a_child_that_died_in_silence_has_no_last_words() -> None:
    outcome = of(KILLED, output=Output())
    assert isinstance(outcome, Failed)
    assert outcome.failure.error_detail is None
