"""durablestack doctor"""

from __future__ import annotations

import rich_click as click

from .application import Application, shared_options
from .checkup import Level, examine
from .printing import one_line, write_json, write_table
from .runs import json_option

_PROBLEMS = 3


@click.command()
@json_option
@shared_options
@click.pass_obj
def doctor(application: Application, as_json: bool) -> int:
    """Find out what is wrong: the database, its clock, its tables, and who would claim what is due.

    Changes nothing. Exit code 3 if there is a problem; advice is no problem.
    """
    with application.stack if application.targets else application.database() as stack:
        findings = list(examine(stack, with_jobs=bool(application.targets)))
    healthy = all(finding.level is not Level.PROBLEM for finding in findings)
    if as_json:
        write_json({"healthy": healthy, "findings": findings})
    else:
        rows = [(finding.level.value, finding.subject, one_line(finding.text)) for finding in findings]
        write_table(("level", "subject", "finding"), rows)
    return 0 if healthy else _PROBLEMS
