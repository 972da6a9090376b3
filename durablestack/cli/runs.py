"""durablestack runs list, show, cancel, requeue, count"""

from __future__ import annotations

import sys
from typing import Any
from uuid import UUID

import msgspec
import rich_click as click

from durablestack.queries import TAKE_MAX
from durablestack.runs import Attempt, Run, RunStatus
from durablestack.stack import DurableStack

from .application import Application, shared_options
from .printing import instant, json_text, one_line, write, write_block, write_fields, write_json, write_table

_ERROR_LENGTH_MAX = 80
_NONE_WORKED = 2
_ATTEMPT_COLUMNS = (
    *("attempt", "outcome", "worker", "started", "ended", "error"),
    *("ended by", "signal", "exit code", "peak memory", "CPU seconds"),
)

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document, for scripts.")


@click.group()
@shared_options
def runs() -> None:
    """Look at runs, cancel them, enqueue them anew."""


# --- look


@runs.command("list")
@click.option("--status", type=click.Choice([status.value for status in RunStatus]), help="Only runs of this status.")
@click.option("--job", "job_name", metavar="NAME", help="Only runs of this job.")
@click.option("--take", type=click.IntRange(1, TAKE_MAX), default=50, metavar="N", help="At most so many; 50.")
@click.option("--due", is_flag=True, help="Only runs that wait and are due now, the earliest first.")
@json_option
@shared_options
@click.pass_obj
def list_runs(
    application: Application, status: str | None, job_name: str | None, take: int, due: bool, as_json: bool
) -> None:
    """List runs, the latest enqueued first."""
    if due and status not in (None, RunStatus.PENDING):
        raise click.UsageError(f"--due means runs that are pending; no run is due and {status}.")
    with application.tables() as stack:
        if due:
            found = _due_runs(stack, job_name, take)
        else:
            found = stack.store.list_runs(take=take, status=RunStatus(status) if status else None, job_name=job_name)
    if as_json:
        write_json([_run_document(run) for run in found])
    elif found:
        columns = ("run id", "job", "status", "attempt", "scheduled for", "error")
        write_table(columns, [_row(run) for run in found], cut=("job", "scheduled for", "error"))
    else:
        print("no runs", file=sys.stderr)


def _due_runs(stack: DurableStack, job_name: str | None, take: int) -> list[Run]:
    now = stack.store.now()
    waiting = stack.queries.get_enqueued_runs(take if job_name is None else TAKE_MAX)
    due = [run for run in waiting if run.scheduled_for <= now]
    if job_name is None:
        return due
    if len(due) == TAKE_MAX:
        print(f"only the first {TAKE_MAX} due runs of all jobs were looked at", file=sys.stderr)
    return [run for run in due if run.job_name == job_name][:take]


def _row(run: Run) -> tuple[str, ...]:
    return (
        str(run.id),
        one_line(run.job_name),
        run.status.value,
        f"{run.attempt}/{run.max_attempts}",
        instant(run.scheduled_for),
        one_line(_error(run), _ERROR_LENGTH_MAX),
    )


@runs.command()
@click.argument("run_id", type=click.UUID, metavar="RUN_ID")
@json_option
@shared_options
@click.pass_obj
def show(application: Application, run_id: UUID, as_json: bool) -> None:
    """Show all that is known about a run: its fields, its attempts, its error, what it wrote."""
    with application.tables() as stack:
        run = stack.queries.get_run(run_id)
        attempts = stack.queries.get_attempts(run_id)
    if run is None:
        raise click.UsageError(f"there is no run {run_id}, or none any more.")
    if as_json:
        write_json({**_run_document(run), "attempts": attempts})
        return
    write_fields(_fields(run))
    if attempts:
        write("")
        write_table(_ATTEMPT_COLUMNS, [_attempt_row(attempt) for attempt in attempts])
    for title, text in _blocks(run):
        if text:
            write_block(title, text)


def _fields(run: Run) -> dict[str, str]:
    return {
        "run id": str(run.id),
        "job": one_line(run.job_name),
        "status": run.status.value,
        "attempt": f"{run.attempt} of {run.max_attempts}",
        "crashes": str(run.crash_count or ""),
        "created": instant(run.created_at),
        "scheduled for": instant(run.scheduled_for),
        "started": instant(run.started_at),
        "ended": instant(run.completed_at),
        "worker": one_line(run.lease_owner or ""),
        "lease until": instant(run.lease_until),
        "lease token": str(run.lease_token or ""),
        "cancel requested": instant(run.cancel_requested_at),
        "requeued from": str(run.requeued_from or ""),
        "arguments": one_line(run.payload or ""),
        "error": one_line(_error(run)),
    }


def _blocks(run: Run) -> tuple[tuple[str, str | None], ...]:
    return (
        ("error detail", run.error_detail),
        ("end of standard output", run.stdout_tail),
        ("end of standard error", run.stderr_tail),
    )


def _attempt_row(attempt: Attempt) -> tuple[str, ...]:
    return (
        str(attempt.attempt),
        attempt.outcome.value,
        one_line(attempt.worker_name or ""),
        instant(attempt.started_at),
        instant(attempt.ended_at),
        one_line(_error(attempt), _ERROR_LENGTH_MAX),
        attempt.ended_by.value if attempt.ended_by else "",
        one_line(attempt.signal or ""),
        "" if attempt.exit_code is None else str(attempt.exit_code),
        _mebibytes(attempt.peak_memory_bytes),
        _cpu_seconds(attempt),
    )


def _mebibytes(size_bytes: int | None) -> str:
    return "" if size_bytes is None else f"{size_bytes / 2**20:.1f} MiB"


def _cpu_seconds(attempt: Attempt) -> str:
    """In user mode and in the kernel together."""
    known = [seconds for seconds in (attempt.user_cpu_seconds, attempt.system_cpu_seconds) if seconds is not None]
    return f"{sum(known):.2f}" if known else ""


def _error(of: Run | Attempt) -> str:
    return ": ".join(filter(None, (of.error_type, of.error_message)))


def _run_document(run: Run) -> dict[str, Any]:
    return {**msgspec.structs.asdict(run), "payload": json_text(run.payload)}


@runs.command()
@json_option
@shared_options
@click.pass_obj
def count(application: Application, as_json: bool) -> None:
    """Count the runs of each status. Reads the whole table."""
    with application.tables() as stack:
        counted = stack.queries.count_runs()
    if as_json:
        write_json({status.value: number for status, number in counted.items()})
    else:
        write_table(("status", "runs"), [(status.value, str(number)) for status, number in counted.items()])


# --- change


@runs.command()
@click.argument("run_ids", type=click.UUID, nargs=-1, required=True, metavar="RUN_ID...")
@shared_options
@click.pass_obj
def cancel(application: Application, run_ids: tuple[UUID, ...]) -> int:
    """Cancel runs. What executes is asked to stop, then made to; what has ended stays as it is."""
    worked = False
    with application.tables() as stack:
        for run_id in run_ids:
            done = stack.store.cancel_run(run_id)
            write(f"{run_id} {_what_cancelling_did(done, stack.queries.get_run(run_id))}")
            worked = worked or done
    return 0 if worked else _NONE_WORKED


def _what_cancelling_did(done: bool, run: Run | None) -> str:
    if run is None:
        return "is unknown"
    if run.status is RunStatus.CANCELLED and done:
        return "cancelled"
    if done:
        return "was asked to stop" + (f", but {run.status} first" if run.status.terminal else "")
    return f"has ended before: {run.status}"


@runs.command()
@click.argument("run_ids", type=click.UUID, nargs=-1, required=True, metavar="RUN_ID...")
@shared_options
@click.pass_obj
def requeue(application: Application, run_ids: tuple[UUID, ...]) -> int:
    """Enqueue failed or cancelled runs anew, as runs of their own, and print the new ids."""
    worked = False
    with application.tables() as stack:
        for run_id in run_ids:
            new_id = stack.store.requeue_run(run_id)
            if new_id is not None:
                write(str(new_id))
                worked = True
            else:
                print(f"{run_id} {_why_not_requeued(stack.queries.get_run(run_id))}", file=sys.stderr)
    return 0 if worked else _NONE_WORKED


def _why_not_requeued(run: Run | None) -> str:
    return "is unknown" if run is None else f"is {run.status}; only failed and cancelled runs are requeued"
