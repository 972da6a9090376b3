"""The command itself, and what its endings are called: 0 done, 1 a bug, 2 bad input, 3 the database cannot be used."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Sequence

import rich_click as click
from click.exceptions import Abort, ClickException

from durablestack import __version__
from durablestack.errors import DurableStackError, EnqueueUncertain, StoreError
from durablestack.options import redact

from .application import Application, shared_options
from .cron import cron
from .doctor import doctor
from .enqueue import enqueue
from .migrate import migrate
from .printing import one_line
from .runs import runs
from .schedules import schedules
from .stack import stack

EXIT_BUG = 1
EXIT_BAD_INPUT = 2
EXIT_DATABASE = 3
EXIT_INTERRUPTED = 130

# their news reach us as errors, once
_NOISY = ("asyncio", "psycopg", "durablestack.client")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="durablestack")
@shared_options
def command() -> None:
    """Durable background jobs on the database you already have.

    Options come from the application, from durablestack.toml and from DURABLESTACK__… variables.
    To execute runs: python -m durablestack.supervisor TARGET

    Exit codes: 0 done, 1 a bug, 2 bad input, 3 the database cannot be used.
    """


for each in (migrate, enqueue, runs, schedules, doctor, cron):
    command.add_command(each)
runs.add_command(stack)


def main(arguments: Sequence[str] | None = None, prog_name: str = "durablestack") -> int:
    """Do what the arguments say, and return the exit code."""
    application = Application()
    _survive_any_encoding()
    _log_to_stderr()
    try:
        code = command.main(arguments, prog_name, standalone_mode=False, obj=application)
    except Exception as error:
        return _told(error, application)
    return code if isinstance(code, int) else 0


def _told(error: Exception, application: Application) -> int:
    """One clear sentence for what a user can mend; the whole story for what is our fault."""
    match error:
        case Abort():
            return EXIT_INTERRUPTED
        case ClickException():
            sentence, code = _usage_sentence(error), EXIT_BAD_INPUT
        case EnqueueUncertain():
            again = f"; enqueue again with --run-id {error.run_ids[0]}" if len(error.run_ids) == 1 else ""
            sentence, code = f"{error}: the runs may have been stored, or not{again}", EXIT_DATABASE
        case StoreError():
            sentence, code = str(error), EXIT_DATABASE
        case DurableStackError():
            sentence, code = str(error), EXIT_BAD_INPUT
        case _:
            story = "".join(traceback.format_exception(error))
            print(redact(story, application.secrets()), file=sys.stderr, end="")
            return EXIT_BUG
    print(f"error: {redact(one_line(sentence), application.secrets())}", file=sys.stderr)
    return code


def _usage_sentence(error: ClickException) -> str:
    context = getattr(error, "ctx", None)
    see = f". See: {context.command_path} --help" if context is not None else ""
    return error.format_message().rstrip(".") + see


def _survive_any_encoding() -> None:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.addFilter(lambda record: record.levelno >= logging.ERROR or not record.name.startswith(_NOISY))
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", handlers=[handler])
