"""The application that the arguments name: its jobs, its options, its database."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import rich_click as click

from durablestack.errors import OptionsError, SchemaError
from durablestack.jobs.discovery import look_in_current_folder
from durablestack.options import ConnectionTarget, Secret, StorageProvider
from durablestack.stack import DurableStack

TARGETS_VARIABLE = "DURABLESTACK_APP"

_Command = TypeVar("_Command", bound=Callable[..., Any])


class Application:
    """Written while the arguments are read, then read by the commands: each shared option may stand at any level."""

    def __init__(self) -> None:
        self.given_targets: list[str] = []
        self.database_url: str | None = None
        self.config: str | None = None

    @property
    def targets(self) -> list[str]:
        """As given, else as the environment names them."""
        named = os.environ.get(TARGETS_VARIABLE, "").split(",")
        return self.given_targets or [target.strip() for target in named if target.strip()]

    @cached_property
    def stack(self) -> DurableStack:
        """Loaded when first asked for.

        Raises:
            TargetError, OptionsError: as `DurableStack.load`.
        """
        look_in_current_folder()
        changes = {} if self.database_url is None else {"database_url": self.database_url}
        return DurableStack.load(self.targets, config=self.config, **changes)

    @contextmanager
    def database(self) -> Iterator[DurableStack]:
        """The stack, on a database that other processes see; closed at the end.

        Raises:
            OptionsError: no database is named.
        """
        if self.stack.options.storage_provider is StorageProvider.IN_MEMORY:
            raise OptionsError(
                "no database is named, and runs in the memory of one process are seen by no other: give --database-url,"
                " or set database_url in durablestack.toml or DURABLESTACK__DATABASE_URL, or name an --app that does"
            )
        with self.stack as stack:
            yield stack

    @contextmanager
    def tables(self) -> Iterator[DurableStack]:
        """The same, with the tables that this version works with.

        Raises:
            SchemaError: they are missing, or are others.
        """
        with self.database() as stack:
            missing = missing_file(stack.options.connection_target())
            if missing is not None:
                raise SchemaError(
                    f"there is no SQLite file {missing} (is this the right folder?); "
                    "`durablestack migrate`, with the same options, makes it"
                )
            stack.store.verify_schema()
            yield stack

    def secrets(self) -> tuple[Secret, ...]:
        """What must not be shown, as far as it is known by now."""
        url = (Secret(self.database_url),) if self.database_url else ()
        try:
            return (*url, *self.stack.options.secrets())
        except Exception:  # whatever kept it from being loaded is being told
            return url


def missing_file(target: ConnectionTarget | None) -> Path | None:
    """The SQLite file that is not there. Connecting would make it, which is not what somebody who only looks wants."""
    if target is None or target.provider is not StorageProvider.SQLITE:
        return None
    path = Path(target.database or "").absolute()
    return None if path.exists() else path


def shared_options(command: _Command) -> _Command:
    """`--app`, `--config` and `--database-url`, before or after the name of a command."""
    app = click.option(
        "-a",
        "--app",
        multiple=True,
        metavar="TARGET",
        expose_value=False,
        callback=_keep_targets,
        help=f"Module, package or module:attribute with the jobs; may be repeated. Or {TARGETS_VARIABLE}=a,b.",
    )
    config = click.option(
        "--config",
        metavar="FILE",
        expose_value=False,
        callback=_keep_config,
        help="A .toml or .json file of options; goes before what the code says.",
    )
    database_url = click.option(
        "--database-url",
        metavar="URL",
        expose_value=False,
        callback=_keep_database_url,
        help="postgresql://… or sqlite:///…; goes before every other setting.",
    )
    return app(config(database_url(command)))


def _keep_targets(context: click.Context, _: click.Parameter, targets: tuple[str, ...]) -> None:
    context.find_object(Application).given_targets.extend(targets)  # type: ignore[union-attr]


def _keep_config(context: click.Context, _: click.Parameter, config: str | None) -> None:
    if config is not None:
        context.find_object(Application).config = config  # type: ignore[union-attr]


def _keep_database_url(context: click.Context, _: click.Parameter, url: str | None) -> None:
    if url is not None:
        context.find_object(Application).database_url = url  # type: ignore[union-attr]
