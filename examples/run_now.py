"""Commands for the people who run an application: its own words round `stack.schedules`.

python -m durablestack.supervisor examples.run_now         in one terminal: stores the schedule, executes runs
python -m examples.run_now list                            in another; or: run, pause, resume, hourly
"""

import os
import sys

from durablestack import DurableStack, durable_job, recurring_job
from durablestack.errors import ScheduleBusy, ScheduleError

stack = DurableStack(
    __name__,
    database_url=os.environ.get("DATABASE_URL", "sqlite:///run_now.db"),
    poll_interval_seconds=0.5,
)

REPORT = "daily-report"


@durable_job(name=REPORT)
@recurring_job("0 2 * * *", time_zone="Europe/Berlin")
def daily_report() -> None:
    print("the figures of yesterday")


class ReportCommands:
    """What may be done with the report, and by which word. Who may say it, is for the application to decide."""

    def list(self) -> str:
        schedule = stack.schedules.get_scheduled_job(REPORT)
        return f"{schedule.recurs} in {schedule.time_zone}, next: {schedule.next_run_at}"

    def run(self) -> str:
        try:
            return f"run {stack.schedules.run_scheduled_job_now(REPORT)}"
        except ScheduleBusy:
            return "it is being written already"

    def pause(self) -> str:
        stack.schedules.set_scheduled_job_enabled(REPORT, False)
        return "paused"

    def resume(self) -> str:
        return f"next: {stack.schedules.set_scheduled_job_enabled(REPORT, True).next_run_at}"

    def hourly(self) -> str:
        return f"next: {stack.schedules.update_scheduled_job_cron(REPORT, '0 * * * *', 'UTC').next_run_at}"


if __name__ == "__main__":
    command = getattr(ReportCommands(), sys.argv[1], None) if len(sys.argv) == 2 else None
    if command is None:
        sys.exit(__doc__)
    stack.migrate()
    try:
        print(command())
    except ScheduleError as error:  # no supervisor has been here yet
        sys.exit(f"error: {error}")
