"""What may recur, however it is declared, and what is said to whoever declares what cannot."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from durablestack import durable_job, recurring_job
from durablestack.errors import JobDefinitionError
from durablestack.jobs import JobRegistration, JobRegistry, import_targets, jobs_in
from durablestack.scheduling.recurring import Recurrence

NIGHTLY = "0 2 * * *"
HOUR = timedelta(hours=1)


@dataclass
class Email:
    to: str


def registered(job: Any, **changes: Any) -> JobRegistration:
    return JobRegistry().add(job, **changes)


def recurs(registration: JobRegistration) -> Recurrence:
    assert registration.recurrence is not None
    return registration.recurrence


# --- the decorator


def test_both_decorators_in_either_order_make_a_recurring_job() -> None:
    @durable_job(name="above", max_attempts=7)
    @recurring_job(NIGHTLY)
    def above() -> None: ...

    @recurring_job(NIGHTLY)
    @durable_job(name="below", max_attempts=7)
    def below() -> None: ...

    for job in (above, below):
        registration = registered(job)
        assert (registration.name, registration.max_attempts) == (job.__name__, 7)
        assert recurs(registration).cron == NIGHTLY


def test_recurring_job_alone_declares_a_job_of_its_own_name() -> None:
    @recurring_job(every=HOUR)
    class Tidy:
        def execute(self) -> None: ...

    registration = registered(Tidy)
    assert (registration.name, registration.max_attempts) == ("Tidy", 3)
    assert recurs(registration) == Recurrence(every=HOUR)


def test_all_that_the_decorator_was_told_is_kept() -> None:
    @recurring_job(
        NIGHTLY, time_zone="Europe/Berlin", enabled=False, allow_concurrent_runs=True, args=Email("ada@example.com")
    )
    def remind(args: Email) -> None: ...

    registration = registered(remind)
    assert recurs(registration) == Recurrence(
        cron=NIGHTLY,
        time_zone="Europe/Berlin",
        enabled=False,
        allow_concurrent_runs=True,
        args=Email("ada@example.com"),
    )
    assert registration.recurring_payload == '{"to":"ada@example.com"}'


def test_the_job_is_returned_as_it_was_and_the_last_word_counts() -> None:
    def tidy() -> str:
        return "tidied"

    declared = recurring_job(NIGHTLY)(recurring_job(every=HOUR)(tidy))
    assert declared is tidy
    assert declared() == "tidied"
    assert recurs(registered(declared)).cron == NIGHTLY


def test_a_job_that_takes_nothing_has_no_payload() -> None:
    @recurring_job(NIGHTLY)
    def tidy() -> None: ...

    assert registered(tidy).recurring_payload is None


def test_a_job_that_does_not_recur_has_no_recurrence() -> None:
    @durable_job
    def send(args: Email) -> None: ...

    assert registered(send).recurrence is None
    assert registered(send).recurring_payload is None


def test_a_subclass_does_not_recur_because_its_parent_does() -> None:
    @durable_job
    @recurring_job(NIGHTLY)
    class Parent:
        def execute(self) -> None: ...

    @durable_job
    class Child(Parent): ...

    class Undeclared(Parent): ...

    assert registered(Child).recurrence is None
    assert registered(Undeclared).recurrence is None


def test_discovery_finds_what_only_recurs(application: Callable[[dict[str, str]], None]) -> None:
    application(
        {
            "nightly.py": """
                from durablestack import recurring_job

                @recurring_job("0 2 * * *")
                def tidy(): ...

                def not_a_job(): ...
            """
        }
    )
    assert JobRegistry(jobs_in(import_targets(["nightly"]))).names == ("tidy",)


# --- what is refused, at once

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "a cron expression or every="),
    ({"cron": NIGHTLY, "every": HOUR}, "one of the two"),
    ({"cron": "0 2 * *"}, "has 4 fields"),
    ({"cron": "61 * * * *"}, "minute"),
    ({"cron": "0 0 30 2 *"}, "never fires"),
    ({"cron": "@daily"}, "write '0 0 * * *'"),
    ({"cron": 5}, "not a int"),
    ({"cron": NIGHTLY, "time_zone": "Atlantis"}, "'Atlantis' is not known"),
    ({"cron": NIGHTLY, "time_zone": "Eastern Standard Time"}, "America/New_York"),
    ({"cron": NIGHTLY, "time_zone": None}, "a time zone is an IANA id"),
    ({"every": HOUR, "time_zone": "x" * 65}, "65 characters long"),
    ({"every": 3600}, "an interval is a timedelta"),
    ({"every": timedelta(0)}, "from 1 second"),
    ({"every": timedelta(days=5000)}, "to 10 years"),
    ({"every": timedelta(seconds=1, microseconds=1)}, "whole milliseconds"),
    ({"cron": NIGHTLY, "enabled": "no"}, "enabled is 'no'"),
    ({"cron": NIGHTLY, "allow_concurrent_runs": 1}, "allow_concurrent_runs is 1"),
]


def clear_sentence(error: pytest.ExceptionInfo[JobDefinitionError], part: str, subject: str) -> None:
    text = str(error.value)
    assert part in text
    assert text.startswith(subject)
    assert "\n" not in text
    assert len(text) < 300


@pytest.mark.parametrize(("told", "part"), REFUSED)
def test_the_decorator_refuses_what_cannot_be_meant(told: dict[str, Any], part: str) -> None:
    keywords = {name: value for name, value in told.items() if name != "cron"}
    with pytest.raises(JobDefinitionError) as error:
        recurring_job(*([told["cron"]] if "cron" in told else []), **keywords)
    clear_sentence(error, part, "@recurring_job")


def test_the_decorator_without_parentheses_is_told_what_it_needs() -> None:
    def tidy() -> None: ...

    with pytest.raises(JobDefinitionError) as error:
        recurring_job(tidy)  # type: ignore[arg-type]
    clear_sentence(error, "@recurring_job('0 2 * * *')", "@recurring_job needs")


@pytest.mark.parametrize("no_job", [5, "tidy", print, None, Email("ada")])
def test_what_is_neither_a_class_nor_a_function_cannot_recur(no_job: Any) -> None:
    with pytest.raises(JobDefinitionError) as error:
        recurring_job(NIGHTLY)(no_job)
    clear_sentence(error, "cannot recur: a job is a class", repr(no_job))


def send(args: Email) -> None: ...


def tidy() -> None: ...


@pytest.mark.parametrize(
    ("job", "args", "part"),
    [
        (send, None, "takes Email, and got no arguments"),
        (send, {"too": "ada"}, "missing required field `to`"),
        (send, Email(5), "Expected `str`, got `int`"),  # type: ignore[arg-type]
        (send, Email("a" * 70_000), "allowed are 65536"),
        (send, object(), "cannot be written as JSON"),
        (tidy, Email("ada"), "takes no arguments"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_when_the_job_is_registered(
    job: Callable[..., None], args: Any, part: str
) -> None:
    with pytest.raises(JobDefinitionError) as error:
        registered(job, cron=NIGHTLY, args=args)
    clear_sentence(error, part, f"args= of the recurring job {job.__name__!r}")


# --- registry.add


def test_the_registry_takes_a_recurrence_for_any_job() -> None:
    registration = registered(send, cron=NIGHTLY, time_zone="Asia/Tokyo", args=Email("ada"), max_attempts=9)
    assert recurs(registration) == Recurrence(cron=NIGHTLY, time_zone="Asia/Tokyo", args=Email("ada"))
    assert registration.max_attempts == 9
    assert recurs(registered(tidy, every=HOUR, enabled=False)) == Recurrence(every=HOUR, enabled=False)


def test_what_the_registry_is_told_takes_the_place_of_what_was_declared() -> None:
    @recurring_job(NIGHTLY, allow_concurrent_runs=True)
    def job() -> None: ...

    assert recurs(registered(job, every=HOUR)) == Recurrence(every=HOUR)
    assert recurs(registered(job)).cron == NIGHTLY


@pytest.mark.parametrize(("told", "part"), [each for each in REFUSED if each[0]])
def test_the_registry_refuses_the_same_and_names_the_job(told: dict[str, Any], part: str) -> None:
    with pytest.raises(JobDefinitionError) as error:
        registered(tidy, **told)
    clear_sentence(error, part, "job 'tidy'")


def test_the_words_of_a_recurrence_alone_are_refused() -> None:
    with pytest.raises(JobDefinitionError, match=r"job .tidy.: .*time_zone"):
        registered(tidy, time_zone="Asia/Tokyo")
