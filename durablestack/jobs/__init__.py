"""What: the jobs of an application, how they are declared, found, given arguments and executed."""

from .context import JobContext
from .declaration import durable_job
from .discovery import import_targets, jobs_in
from .recurring import recurring_job
from .registration import JobRegistration, JobRegistry

__all__ = ["JobContext", "JobRegistration", "JobRegistry", "durable_job", "import_targets", "jobs_in", "recurring_job"]
