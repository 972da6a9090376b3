"""docs/architecture.md names each file of the supervisor, so that a reader finds what it is for."""

import re

from house_files import ROOT

PAGE = ROOT / "docs" / "architecture.md"


def test_each_file_of_the_supervisor_stands_in_the_table_and_no_other() -> None:
    _, _, table = PAGE.read_text(encoding="utf-8").partition("| supervisor | what it is for |")
    rows = [line for line in table.partition("\n\n")[0].splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    files = {path.stem for path in (ROOT / "supervisor").glob("*.py")} - {"__init__"}
    assert sorted(named) == sorted(files)
