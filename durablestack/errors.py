"""What can go wrong, as far as a caller can do something about it.

DurableStackError
  OptionsError            an option, by name, with its value and what is allowed
  JobDefinitionError      a job that cannot be one, or two jobs of one name
  TargetError             a module that cannot be found or imported
  UnknownJob              a name that nobody registered
  ScheduleError           when something cannot recur like this, or no such schedule
    ScheduleBusy          its runs may not overlap, and there is one
  ServiceError            a service that is not registered, or not to be had where it is asked for
  PayloadError            arguments that do not fit the job, or do not fit at all
  StoreError              the database and what we asked of it
    StoreUnavailable      no answer, or not now: try again later
    SchemaError           tables missing, older, newer or other than this version needs
  EnqueueUncertain        the commit's answer was lost; repeat with the same run id

Retry, NoRetry            raised by a job, to say what is to become of its run
RunCancelled              raised inside a job that asked whether it was cancelled
"""

from __future__ import annotations

from uuid import UUID


class DurableStackError(Exception):
    """The root of them all."""


class OptionsError(DurableStackError):
    """An option that cannot be meant: unknown, of the wrong type, or out of range."""


class JobDefinitionError(DurableStackError):
    """A job class or function that cannot be registered as it is."""


class TargetError(DurableStackError):
    """A module, package or attribute that was named as the application and cannot be loaded."""


class UnknownJob(DurableStackError):
    """A job name that is not registered."""


class ScheduleError(DurableStackError):
    """A cron expression, interval or time zone that cannot be meant, or a schedule that does not exist."""


class ScheduleBusy(ScheduleError):
    """A schedule whose runs may not overlap has one that is pending or leased."""


class ServiceError(DurableStackError):
    """A service that is not registered, or that cannot be had where it is asked for."""


class PayloadError(DurableStackError):
    """Arguments that do not match the job's type, are no JSON, or are larger than allowed."""


class StoreError(DurableStackError):
    """The database refused what was asked of it."""


class StoreUnavailable(StoreError):
    """The database did not answer, or cannot take the statement now. Trying again later is right.

    `uncertain` tells that the connection was lost while a commit was under way: the write may have taken place.
    """

    def __init__(self, message: str, *, uncertain: bool = False) -> None:
        super().__init__(message)
        self.uncertain = uncertain


class SchemaError(StoreError):
    """The tables are missing, or are not the ones that this version works with."""


class EnqueueUncertain(DurableStackError):
    """The connection was lost at the commit: the runs may have been stored, or not.

    Enqueue again with the same ids (`run_id=error.run_ids[0]`): a run that is already there is not stored twice.
    """

    def __init__(self, message: str, run_ids: tuple[UUID, ...]) -> None:
        super().__init__(message)
        self.run_ids = run_ids


class Retry(Exception):
    """Raised by a job: fail this attempt, and try again after `delay_seconds` (default: the job's retry policy).

    The number of attempts stays bounded by `max_attempts`.
    """

    def __init__(self, message: str = "", *, delay_seconds: float | None = None) -> None:
        super().__init__(message or "the job asked to be retried")
        self.delay_seconds = delay_seconds


class NoRetry(Exception):
    """Raised by a job: fail the run for good, whatever attempts remain."""


class RunCancelled(Exception):
    """Raised by `JobContext.raise_if_cancelled`. A job may clean up, and should let it pass."""
