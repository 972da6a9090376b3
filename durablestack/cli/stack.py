"""durablestack runs stack"""

from __future__ import annotations

import sys
from uuid import UUID

import rich_click as click

from durablestack.runs import Run, RunStatus

from .application import Application, shared_options
from .printing import write

_NO_STACK = 2


@click.command()
@click.argument("run_id", type=click.UUID, metavar="RUN_ID")
@click.option("--within-seconds", type=click.FloatRange(0, 3600), default=15.0, help="Wait so long for an answer; 15.")
@shared_options
@click.pass_obj
def stack(application: Application, run_id: UUID, within_seconds: float) -> int:
    """Show where the code of an executing run is, twice with a short distance: does it move, or is it stuck?

    The worker that executes it is asked through the database, on whatever machine it is. The run is not disturbed.
    """
    with application.tables() as tables:
        text = tables.queries.get_stack(run_id, within_seconds=within_seconds)
        run = tables.queries.get_run(run_id)
    if text is not None:
        write(text)
        return 0
    print(f"{run_id} {_why_not(run, within_seconds)}", file=sys.stderr)
    return _NO_STACK


def _why_not(run: Run | None, within_seconds: float) -> str:
    if run is None:
        return "is unknown"
    if run.status is not RunStatus.LEASED:
        return f"is {run.status}; only a run that is executing has a stack"
    return f"is leased by {run.lease_owner}, which did not answer within {within_seconds:g} s: is it alive?"
