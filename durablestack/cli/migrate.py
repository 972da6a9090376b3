"""durablestack migrate"""

from __future__ import annotations

import rich_click as click

from durablestack.stores.migrate import SCHEMA_VERSION

from .application import Application, shared_options
from .printing import write


@click.command()
@shared_options
@click.pass_obj
def migrate(application: Application) -> None:
    """Create or update the tables. Safe to repeat, and to do from several machines at once."""
    with application.database() as stack:
        versions = stack.migrate()
        stack.store.verify_schema()
    if versions:
        write(f"applied version {', '.join(map(str, versions))}")
    else:
        write(f"nothing to do: the tables are of version {SCHEMA_VERSION}")
