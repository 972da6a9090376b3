"""Durable background jobs on the database you already have."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from durablestack.errors import (
    DurableStackError,
    EnqueueUncertain,
    JobDefinitionError,
    NoRetry,
    OptionsError,
    PayloadError,
    Retry,
    RunCancelled,
    ScheduleBusy,
    ScheduleError,
    SchemaError,
    ServiceError,
    StoreError,
    StoreUnavailable,
    TargetError,
    UnknownJob,
)
from durablestack.events import Event, EventSink, EventType, LoggingEventSink
from durablestack.jobs import JobContext, JobRegistry, durable_job, recurring_job
from durablestack.jobs.services import Services
from durablestack.options import DurableStackOptions
from durablestack.runs import Attempt, Run, RunStatus
from durablestack.schedules import Schedule
from durablestack.scheduling.retry import RetryBehavior
from durablestack.stack import DurableStack

if TYPE_CHECKING:
    from durablestack.admin import ScheduleAdmin
    from durablestack.client import AsyncDurableStackClient, DurableStackClient
    from durablestack.queries import RunQueries

__version__ = "0.1.0"

__all__ = [
    "AsyncDurableStackClient",
    "Attempt",
    "DurableStack",
    "DurableStackClient",
    "DurableStackError",
    "DurableStackOptions",
    "EnqueueUncertain",
    "Event",
    "EventSink",
    "EventType",
    "JobContext",
    "JobDefinitionError",
    "JobRegistry",
    "LoggingEventSink",
    "NoRetry",
    "OptionsError",
    "PayloadError",
    "Retry",
    "RetryBehavior",
    "Run",
    "RunCancelled",
    "RunQueries",
    "RunStatus",
    "Schedule",
    "ScheduleAdmin",
    "ScheduleBusy",
    "ScheduleError",
    "SchemaError",
    "ServiceError",
    "Services",
    "StoreError",
    "StoreUnavailable",
    "TargetError",
    "UnknownJob",
    "durable_job",
    "recurring_job",
]

_WITH_A_STORE = {
    "AsyncDurableStackClient": "durablestack.client",
    "DurableStackClient": "durablestack.client",
    "RunQueries": "durablestack.queries",
    "ScheduleAdmin": "durablestack.admin",
}
"""Imported when they are asked for: a child, which imports an application, has no store."""


def __getattr__(name: str) -> Any:
    if name in _WITH_A_STORE:
        return getattr(import_module(_WITH_A_STORE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
