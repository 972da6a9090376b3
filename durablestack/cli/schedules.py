"""durablestack schedules list, enable, disable, update, run"""

from __future__ import annotations

import sys
from typing import Any

import msgspec
import rich_click as click

from durablestack.schedules import Schedule

from .application import Application, shared_options
from .printing import instant, json_text, one_line, write, write_json, write_table
from .runs import json_option

_ERROR_LENGTH_MAX = 80
_COLUMNS = ("job", "recurs", "time zone", "enabled", "next run", "last slot", "error")

job_argument = click.argument("job_name", metavar="NAME")


@click.group()
@shared_options
def schedules() -> None:
    """Look after the schedules of recurring jobs."""


@schedules.command("list")
@click.option("--all", "include_disabled", is_flag=True, help="Also the disabled ones.")
@json_option
@shared_options
@click.pass_obj
def list_schedules(application: Application, include_disabled: bool, as_json: bool) -> None:
    """List schedules: when each recurs, its next run, the latest slot dealt with, and why it makes no runs."""
    with application.tables() as stack:
        found = stack.schedules.list_scheduled_jobs(include_disabled)
    if as_json:
        write_json([_document(schedule) for schedule in found])
    elif found:
        write_table(_COLUMNS, [_row(schedule) for schedule in found], cut=("error",))
    else:
        what = "schedules" if include_disabled else "enabled schedules"
        print(f"no {what}; a supervisor stores those of its jobs when it starts", file=sys.stderr)


@schedules.command()
@job_argument
@shared_options
@click.pass_obj
def enable(application: Application, job_name: str) -> None:
    """Let a schedule make runs again, from now on."""
    with application.tables() as stack:
        _tell(stack.schedules.set_scheduled_job_enabled(job_name, True))


@schedules.command()
@job_argument
@shared_options
@click.pass_obj
def disable(application: Application, job_name: str) -> None:
    """Let a schedule make no more runs. Those that it has made stay."""
    with application.tables() as stack:
        _tell(stack.schedules.set_scheduled_job_enabled(job_name, False))


@schedules.command()
@job_argument
@click.argument("cron_expression", metavar="CRON")
@click.option("--tz", "time_zone", metavar="ZONE", help="The IANA time zone that it is read in; else it stays.")
@shared_options
@click.pass_obj
def update(application: Application, job_name: str, cron_expression: str, time_zone: str | None) -> None:
    """Let a schedule recur by another cron expression, from now on. Quote the expression."""
    with application.tables() as stack:
        _tell(stack.schedules.update_scheduled_job_cron(job_name, cron_expression, time_zone))


@schedules.command()
@job_argument
@shared_options
@click.pass_obj
def run(application: Application, job_name: str) -> None:
    """Enqueue a run of a scheduled job now, beside its slots, and print the run id."""
    with application.tables() as stack:
        write(str(stack.schedules.run_scheduled_job_now(job_name)))


def _tell(schedule: Schedule) -> None:
    when = f"next run {instant(schedule.next_run_at)}" if schedule.enabled else "disabled"
    write(f"{one_line(schedule.job_name)}: {one_line(schedule.recurs)} in {one_line(schedule.time_zone)}, {when}")


def _row(schedule: Schedule) -> tuple[str, ...]:
    return (
        one_line(schedule.job_name),
        one_line(schedule.recurs),
        one_line(schedule.time_zone),
        _enabled(schedule),
        instant(schedule.next_run_at),
        instant(schedule.last_slot),
        one_line(schedule.error_message or "", _ERROR_LENGTH_MAX),
    )


def _enabled(schedule: Schedule) -> str:
    if schedule.orphaned_at is not None:
        return f"no, in nobody's code since {instant(schedule.orphaned_at)}"
    return "yes" if schedule.enabled else "no"


def _document(schedule: Schedule) -> dict[str, Any]:
    return {**msgspec.structs.asdict(schedule), "payload": json_text(schedule.payload)}
