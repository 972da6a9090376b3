"""durablestack enqueue JOB [ARGS_JSON]"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import rich_click as click

from durablestack.errors import PayloadError
from durablestack.stack import DurableStack

from .application import TARGETS_VARIABLE, Application, shared_options
from .moments import delay, moment
from .printing import write

_COUNT_MAX = 100_000


@click.command()
@click.argument("job_name", metavar="JOB")
@click.argument("args_json", metavar="[ARGS_JSON]", required=False)
@click.option("--count", type=click.IntRange(1, _COUNT_MAX), default=1, metavar="N", help="How many runs, all or none.")
@click.option("--at", "run_at", type=moment, metavar="ISO8601", help="Due at this instant, which has a time zone.")
@click.option("--in", "run_in", type=delay, metavar="TIME", help="Due after this time: 30s, 10m, 2h, 1d, 1h30m.")
@click.option("--run-id", type=click.UUID, metavar="UUID", help="Repeats an enqueue: a run is not stored twice.")
@shared_options
@click.pass_obj
def enqueue(
    application: Application,
    job_name: str,
    args_json: str | None,
    count: int,
    run_at: datetime | None,
    run_in: timedelta | None,
    run_id: UUID | None,
) -> None:
    """Enqueue runs of a job, and print their ids.

    ARGS_JSON holds the job's arguments: durablestack -a shop.jobs enqueue send-email '{"to": "ada@example.com"}'
    """
    if run_at is not None and run_in is not None:
        raise click.UsageError("--at and --in are both given; give one of them.")
    if run_id is not None and count != 1:
        raise click.UsageError("--run-id names one run, but --count asks for several.")
    if not application.targets:
        raise click.UsageError(f"name the application that has the job, by --app TARGET or {TARGETS_VARIABLE}.")
    args = _args(args_json)
    application.stack.client.new_run(job_name, args)  # what is wrong here needs no database to be told
    with application.tables() as stack:
        if run_in is not None:
            run_at = stack.store.now() + run_in  # by the clock that will decide
        run_ids = _enqueue(stack, job_name, args, run_at, run_id, count)
    write("\n".join(map(str, run_ids)))


def _enqueue(
    stack: DurableStack, job_name: str, args: Any, run_at: datetime | None, run_id: UUID | None, count: int
) -> list[UUID]:
    if count == 1 and run_at is None:
        return [stack.client.enqueue(job_name, args, run_id=run_id)]
    if count == 1 and run_at is not None:
        return [stack.client.schedule(job_name, args, run_at=run_at, run_id=run_id)]
    if run_at is None:
        return stack.client.enqueue_many(job_name, [args] * count)
    runs = [stack.client.new_run(job_name, args, run_at=run_at) for _ in range(count)]
    stack.store.enqueue(runs)
    return [run.id for run in runs]


def _args(args_json: str | None) -> Any:
    if args_json is None:
        return None
    try:
        return json.loads(args_json)
    except json.JSONDecodeError as error:
        raise PayloadError(
            f"ARGS_JSON is not JSON: {error.msg} at character {error.pos + 1}; a text is written '\"so\"'"
        ) from None
    except (ValueError, RecursionError):
        raise PayloadError("ARGS_JSON cannot be read: it is nested too deeply, or has a number too long") from None
