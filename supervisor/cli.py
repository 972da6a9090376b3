"""The command line of the supervisor: from arguments to options, from endings to exit codes."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

import anyio
import rich_click as click
from msgspec import structs

from durablestack import __version__
from durablestack.errors import DurableStackError, StoreError
from durablestack.jobs.discovery import look_in_current_folder
from durablestack.options import Secret, redact
from durablestack.stack import DurableStack

from .control import run_with_signals
from .embedded import the_one_in
from .event_loop import is_uvloop
from .logs import LineFormatter, LogThread
from .starter import end_fork_server
from .systemd import Systemd
from .tree import OutcomesUnrecorded, Supervisor

if TYPE_CHECKING:
    from rich.console import Console  # takes 1 MiB and 25 ms, with what it shows; most supervisors have no terminal

log = logging.getLogger("durablestack.supervisor")

EXIT_BUG = 1
EXIT_BAD_INPUT = 2
EXIT_DATABASE = 3
EXIT_UNRECORDED = 4

_OBJECTS_PER_COLLECTION = 10_000


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("targets", nargs=-1, metavar="TARGET...")
@click.option("--config", metavar="FILE", help="A .toml or .json file of options; goes before what the code says.")
@click.option("--database-url", metavar="URL", help="postgresql://… or sqlite:///…; goes before every other setting.")
@click.option("--max-concurrent-runs", type=int, metavar="N", help="Child processes, and so runs at once.")
@click.option("--batch-size", type=int, metavar="N", help="Runs claimed at once, at most.")
@click.option("--worker-name", metavar="NAME", help="Unique name of this worker, for people.")
@click.option("--poll-interval-seconds", type=float, metavar="S", help="How often to look for work when there is none.")
@click.option("--lease-duration-seconds", type=float, metavar="S", help="After this long without a word we are lost.")
@click.option("--start-method", type=click.Choice(["forkserver", "spawn"]), help="How children are started.")
@click.option("--migrate/--no-migrate", "auto_migrate", default=None, help="Create or update the tables first.")
@click.option("--monitoring-port", type=int, metavar="N", help="Answer /live, /ready and /metrics there; 0: any port.")
@click.option("--plain", is_flag=True, help="Log lines only, no live status.")
@click.option("-v", "--verbose", is_flag=True, help="Also log what is of interest when something is wrong.")
@click.version_option(__version__, prog_name="durablestack")
@click.option("--demo", is_flag=True, help="Show what the supervisor does, in a temporary folder. Takes 15 seconds.")
def command(targets: tuple[str, ...], plain: bool, verbose: bool, demo: bool, **changes: Any) -> None:
    """Execute the runs of an application's jobs, each in a child process.

    TARGET is a module or package with jobs, or module:attribute for a DurableStack. Options come from it, from
    durablestack.toml and from DURABLESTACK__… variables; those given here go first.

    Exit codes: 0 stopped as asked, 1 a bug, 2 bad input, 3 the database cannot be used, 4 stopped with outcomes
    unrecorded.
    """
    if demo:
        from rich.console import Console

        from .demo import run_demo

        sys.exit(run_demo(Console()))
    if not targets:
        raise click.UsageError("name a module with jobs, as in: python -m durablestack.supervisor examples.quickstart")
    _leave(_supervise(targets, {k: v for k, v in changes.items() if v is not None}, plain=plain, verbose=verbose))


def _supervise(targets: tuple[str, ...], changes: dict[str, Any], *, plain: bool, verbose: bool) -> int:
    console = None if plain else _console()
    live = console is not None
    calm = logging.WARNING if live else logging.INFO  # the status tells of what goes well
    lines = LineFormatter("%(message)s" if live else "%(asctime)s %(levelname)-7s %(message)s")
    log_thread = _log_to(console, lines, level=logging.DEBUG if verbose else calm)
    look_in_current_folder()
    if (port := changes.pop("monitoring_port", None)) is not None:
        changes["monitoring"] = {"port": port}
    systemd = Systemd.take_from(os.environ)
    code = 0
    try:
        with DurableStack.load(targets, **changes) as stack:
            lines.secrets = stack.options.secrets()
            _warn_of_memory(stack)
            supervisor = Supervisor(stack)

            def leave_now() -> None:
                log.warning("the database does not answer: leaving what cannot be written to the expiry of its lease")
                log_thread.close()
                _leave(EXIT_UNRECORDED if supervisor.completer.unrecorded else 0)

            _collect_garbage_seldom()
            uvloop = {"use_uvloop": is_uvloop(stack.options.event_loop)}
            anyio.run(_run, supervisor, console, systemd, leave_now, backend_options=uvloop)
        log.log(logging.WARNING if live else logging.INFO, "%s", _summary(supervisor))
    except BaseException as error:
        code = _exit_code(error, lines.secrets)
    log_thread.close()
    return code


def _collect_garbage_seldom() -> None:
    """What is there by now stays, and runs hold each other in no cycles: to look through them all costs a tenth."""
    gc.freeze()
    gc.set_threshold(_OBJECTS_PER_COLLECTION)


def _console() -> Console | None:
    """To show the status on; None where it would not be seen to change."""
    forced = os.environ.get("FORCE_COLOR")  # a terminal, says who sets it
    if "NO_COLOR" in os.environ or not (forced or (sys.stderr is not None and sys.stderr.isatty())):
        return None
    from rich.console import Console

    console = Console(stderr=True)
    return console if console.is_terminal and not console.is_dumb_terminal else None


def _summary(supervisor: Supervisor) -> str:
    """What is left to say when all is over."""
    counts = structs.asdict(supervisor.completer.counts)
    told = [f"{count} {name}" for name, count in counts.items() if count]
    return f"stopped: {', '.join(told) or 'nothing was recorded'}"


def _leave(code: int) -> NoReturn:
    """End here and now: neither a thread that waits for a stuck fork server nor an application's exit handlers
    may keep a supervisor that has stopped."""
    end_fork_server()
    if folder := multiprocessing.current_process()._config.get("tempdir"):  # type: ignore[attr-defined]
        with suppress(OSError):  # it held the socket of the fork server, and is gone by itself at a longer end
            os.rmdir(folder)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


async def _run(
    supervisor: Supervisor, console: Console | None, systemd: Systemd | None, leave: Callable[[], None]
) -> None:
    async with anyio.create_task_group() as tasks:
        if systemd is not None:
            tasks.start_soon(systemd.run, supervisor)
        if console is not None:
            from .status import show_status

            tasks.start_soon(show_status, supervisor, console)
        await run_with_signals(supervisor, leave)
        tasks.cancel_scope.cancel()


def _log_to(console: Console | None, lines: LineFormatter, *, level: int) -> LogThread:
    handler: logging.Handler = logging.StreamHandler()
    if console is not None:
        from .status import log_handler

        handler = log_handler(console)
    handler.setFormatter(lines)
    for noisy in ("asyncio", "psycopg", "psycopg.pool"):  # their news reach us as errors, once
        logging.getLogger(noisy).setLevel(logging.ERROR)
    logging.getLogger("durablestack.events").setLevel(logging.INFO)  # who asked for them wants to see them
    return LogThread(handler, level)


def _warn_of_memory(stack: DurableStack) -> None:
    if not stack.store.durable:
        log.warning(
            "no database is named: runs are kept in the memory of this process, where nobody else can enqueue; "
            "name one with --database-url, or in durablestack.toml"
        )


def _exit_code(error: BaseException, secrets: Collection[Secret]) -> int:
    """One clear sentence for what a user can mend; the whole story for what is our fault."""
    error = the_one_in(error)
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else EXIT_BUG
    if isinstance(error, OutcomesUnrecorded):
        code = EXIT_UNRECORDED
    elif isinstance(error, StoreError):
        code = EXIT_DATABASE
    elif isinstance(error, DurableStackError):
        code = EXIT_BAD_INPUT
    else:
        log.critical("the supervisor failed", exc_info=error)
        return EXIT_BUG
    print(f"error: {redact(str(error), secrets)}", file=sys.stderr)
    return code


def main() -> None:
    command(prog_name="python -m durablestack.supervisor")
