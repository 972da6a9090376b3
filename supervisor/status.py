"""What the supervisor is doing, for somebody who looks at a terminal: calm, a few lines, twice a second."""

from __future__ import annotations

import logging
import time

import anyio
from anyio import to_thread
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

from .tree import Supervisor

_REFRESH_SECONDS = 0.5
_SLOTS_SHOWN_MAX = 20


async def show_status(supervisor: Supervisor, console: Console) -> None:
    """Show until cancelled. Log lines go above, through the same console."""
    with Live(_rendered(supervisor), console=console, auto_refresh=False, transient=True) as live:
        while True:
            shown = _rendered(supervisor)
            live.update(shown)
            # in a thread, for a terminal that is held (Ctrl-S) must not hold us
            await to_thread.run_sync(live.refresh, abandon_on_cancel=True)
            await anyio.sleep(_REFRESH_SECONDS)


def log_handler(console: Console) -> logging.Handler:
    return RichHandler(console=console, show_path=False, markup=False, log_time_format="%Y-%m-%d %H:%M:%S")


def _rendered(supervisor: Supervisor) -> RenderableType:
    return Group(_headline(supervisor), _slots(supervisor))


def _headline(supervisor: Supervisor) -> Text:
    counts = supervisor.completer.counts
    uptime_seconds = int(time.time() - supervisor.started_at)
    text = Text()
    target = supervisor.stack.options.connection_target()
    text.append(f" {supervisor.stack.options.worker_name}", style="bold")
    text.append(f" on {target.describe() if target else 'memory'}, ")
    text.append(f"up {uptime_seconds // 3600}:{uptime_seconds // 60 % 60:02}:{uptime_seconds % 60:02}   ")
    text.append(f"{counts.succeeded} succeeded", style="green")
    for count, word, style in (
        (counts.retried, "retried", "yellow"),
        (counts.failed, "failed", "red"),
        (counts.cancelled, "cancelled", "magenta"),
        (counts.released, "released", "cyan"),
        (counts.refused, "refused", "red"),
        (supervisor.completer.unrecorded, "not yet recorded", "yellow"),
    ):
        if count:
            text.append(f"   {count} {word}", style=style)
    if supervisor.reports.degraded:
        text.append("   children die too often", style="bold red")
    if supervisor.stopping:
        text.append("\n stopping", style="bold")
        if supervisor.drain.until is not None and (busy := len(supervisor.pool.busy)):
            seconds_left = max(0.0, supervisor.drain.until - anyio.current_time())
            text.append(f": {busy} runs may still finish, for {seconds_left:.0f} s; a second signal stops at once")
    return text


def _slots(supervisor: Supervisor) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for heading in ("slot", "child", "job", "run", "attempt", "for"):
        table.add_column(heading)
    now = anyio.current_time()
    executors = supervisor.pool.executors
    for executor in executors[:_SLOTS_SHOWN_MAX]:
        child = "starting" if executor.pid is None else str(executor.pid)
        if executor.assignment is None:
            table.add_row(str(executor.number), child, Text("idle" if executor.pid else "", style="dim"))
            continue
        run = executor.assignment.run
        table.add_row(
            str(executor.number),
            child,
            Text(run.job_name),
            str(run.id),
            f"{run.attempt}/{run.max_attempts}",
            f"{now - executor.began_at:.1f} s",
        )
    if len(executors) > _SLOTS_SHOWN_MAX:
        table.add_row("…", f"{len(executors) - _SLOTS_SHOWN_MAX} more")
    return table
