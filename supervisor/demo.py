"""The demonstration: a real supervisor with real children on SQLite in a temporary folder, and runs of every fate."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import anyio
from msgspec import Struct
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from durablestack.runs import Attempt, Run, RunStatus
from durablestack.stack import DurableStack

from . import demo_jobs
from .door import ask_store
from .embedded import supervise

_CPU_RUNS = 60
_CPU_SECONDS_EACH = 0.3
_CANCEL_AFTER_SECONDS = 5.0
_DONE_WITHIN_SECONDS = 90.0
_LOOK_EVERY_SECONDS = 0.1


class _Case(Struct, frozen=True):
    """A run of the show, and the status that it must end with."""

    run_id: UUID
    what: str
    expected: RunStatus


def run_demo(console: Console) -> int:
    """Run the demonstration; return the exit code: 0 if every run ended as it should."""
    logging.getLogger("durablestack").setLevel(logging.CRITICAL)  # the table tells the story
    console.print(
        f"A supervisor with 4 child processes executes {_CPU_RUNS} CPU-bound runs on SQLite, "
        "while other runs raise, hang, crash and are cancelled beside them."
    )
    with tempfile.TemporaryDirectory(prefix="durablestack-demo-") as folder:
        stack = DurableStack(
            demo_jobs.__name__,
            database_url=f"sqlite:///{Path(folder).as_posix()}/demo.db",
            worker_name="demo",
            max_concurrent_runs=4,
            poll_interval_seconds=0.5,
            cancel_grace_seconds=1,
        )
        with stack:
            return 0 if anyio.run(_show, stack, console) else 1


async def _show(stack: DurableStack, console: Console) -> bool:
    async with supervise(stack):
        cases = await _enqueue(stack)
        cpu_runs = await stack.async_client.enqueue_many(demo_jobs.burn_cpu, [_CPU_SECONDS_EACH] * _CPU_RUNS)
        with anyio.move_on_after(_DONE_WITHIN_SECONDS), _progress(console) as progress:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_cancel_later, stack, cases[-1].run_id, console)
                await _watch(stack, [case.run_id for case in cases], cpu_runs, progress)
        return await _tell(stack, cases, cpu_runs, console)


async def _enqueue(stack: DurableStack) -> list[_Case]:
    client = stack.async_client
    return [
        _Case(await client.enqueue(demo_jobs.hangs), "hangs: killed at its timeout of 3 s", RunStatus.FAILED),
        _Case(await client.enqueue(demo_jobs.raises_once), "raises, succeeds at the next try", RunStatus.SUCCEEDED),
        _Case(await client.enqueue(demo_jobs.segfaults_once), "segfaults, and is tried again", RunStatus.SUCCEEDED),
        _Case(
            await client.enqueue(demo_jobs.burns_until_cancelled),
            "burns a core until it is cancelled",
            RunStatus.CANCELLED,
        ),
    ]


async def _cancel_later(stack: DurableStack, run_id: UUID, console: Console) -> None:
    await anyio.sleep(_CANCEL_AFTER_SECONDS)
    await stack.async_client.cancel_run(run_id)
    console.print("cancel of the run that burns a core: requested")


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )


async def _watch(stack: DurableStack, run_ids: Sequence[UUID], cpu_runs: Sequence[UUID], progress: Progress) -> None:
    cpu_task = progress.add_task("CPU-bound runs", total=len(cpu_runs))
    other_task = progress.add_task("runs in trouble", total=len(run_ids))
    open_runs = {*run_ids, *cpu_runs}
    while open_runs:
        runs = await ask_store(lambda: stack.queries.get_recent_runs(len(run_ids) + len(cpu_runs)))
        open_runs -= {run.id for run in runs if run.status.terminal}
        progress.update(cpu_task, completed=len(cpu_runs) - len(open_runs & set(cpu_runs)))
        progress.update(other_task, completed=len(run_ids) - len(open_runs & set(run_ids)))
        await anyio.sleep(_LOOK_EVERY_SECONDS)


async def _tell(stack: DurableStack, cases: Sequence[_Case], cpu_runs: Sequence[UUID], console: Console) -> bool:
    """Print what became of each run; return whether it is what should have."""
    table = Table(title="What happened", title_justify="left")
    for heading in ("run", "status", "attempts", "what its attempts met", "signal", "took"):
        table.add_column(heading, overflow="fold")
    as_expected = True
    for case in cases:
        run = await ask_store(stack.queries.get_run, case.run_id)
        assert run is not None
        attempts = await ask_store(stack.queries.get_attempts, case.run_id)
        as_expected = as_expected and run.status is case.expected
        table.add_row(case.what, *_row(run, attempts))
    runs = [await ask_store(stack.queries.get_run, run_id) for run_id in cpu_runs]
    succeeded = sum(run is not None and run.status is RunStatus.SUCCEEDED for run in runs)
    table.add_row(f"{len(cpu_runs)} CPU-bound runs", f"{succeeded} succeeded", "1 each", "", "", "")
    console.print(table)
    return as_expected and succeeded == len(cpu_runs)


def _row(run: Run, attempts: Sequence[Attempt]) -> tuple[Text, str, Text, str, str]:
    style = {RunStatus.SUCCEEDED: "green", RunStatus.FAILED: "red", RunStatus.CANCELLED: "magenta"}
    met = [f"{a.error_type}: {a.error_message}" for a in attempts if a.error_type]
    signals = ", ".join(dict.fromkeys(a.signal for a in attempts if a.signal))
    took = (run.completed_at - run.created_at).total_seconds() if run.completed_at else 0.0
    return (
        Text(run.status.value, style=style.get(run.status, "")),
        f"{run.attempt} of {run.max_attempts}",
        Text("\n".join(met)),
        signals,
        f"{took:.1f} s",
    )
