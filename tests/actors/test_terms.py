"""On which terms a run is executed: what its job says goes before the options."""

from durablestack import DurableStackOptions
from durablestack.jobs import JobRegistry
from durablestack.supervisor.terms import Terms, terms_of

OPTIONS = DurableStackOptions(
    timeout_seconds=1, cpu_seconds=2, memory_limit=3_000_000, address_space_limit=4_000_000, fresh_process_per_run=True
)


def job() -> None:
    return


def test_a_job_that_says_nothing_is_executed_as_the_options_say() -> None:
    registration = JobRegistry().add(job, name="job")
    assert terms_of(registration, OPTIONS) == Terms(
        timeout_seconds=1,
        cpu_seconds=2,
        memory_limit=3_000_000,
        address_space_limit=4_000_000,
        crash_limit=5,
        fresh_process_per_run=True,
    )
    assert terms_of(registration, DurableStackOptions()) == Terms(crash_limit=5)


def test_what_a_job_says_goes_before_the_options() -> None:
    registration = JobRegistry().add(
        job,
        name="job",
        timeout_seconds=10,
        cpu_seconds=20,
        memory_limit="2 GiB",
        address_space_limit=8_000_000,
        crash_limit=1,
        fresh_process_per_run=False,
    )
    assert terms_of(registration, OPTIONS) == Terms(
        timeout_seconds=10,
        cpu_seconds=20,
        memory_limit=2 * 1024**3,
        address_space_limit=8_000_000,
        crash_limit=1,
        fresh_process_per_run=False,
    )
