"""Writes to standard output: tables and lines for people, JSON for scripts.

What a job wrote is a stranger's text: it is shown with its control characters escaped, and is never markup.
Without a terminal, with NO_COLOR or on a dumb terminal there is no colour, and no line is cut.
"""

from __future__ import annotations

import io
import json
import os
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

# control, format (such as the marks that reverse a line), surrogate, private, unassigned, line and paragraph separators
_ESCAPED_CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_STYLES = {
    "succeeded": "green",
    "ok": "green",
    "leased": "cyan",
    "cancelled": "dim",
    "advice": "yellow",
    "failed": "red",
    "expired": "red",
    "problem": "red",
}
# where a terminal is narrow, the other columns give way: an instant becomes two lines of 10
_NOT_FOLDED = {"run id", "status", "level", "attempt"}
_FOLDED_WIDTH_MIN = 10
_WIDTH_WITHOUT_TERMINAL = 100_000


def visible(text: str) -> str:
    """`text` with everything escaped that a terminal would obey rather than show, but for line ends and tabs."""
    return "".join(c if c in "\n\t" or (c.isascii() and c.isprintable()) else _visible(c) for c in text)


def _visible(character: str) -> str:
    if unicodedata.category(character) not in _ESCAPED_CATEGORIES:
        return character
    return character.encode("unicode_escape").decode("ascii")


def one_line(text: str, length_max: int | None = None) -> str:
    """`text` made visible, on one line, cut to `length_max` characters."""
    line = " ".join(visible(text).split())
    return line if length_max is None or len(line) <= length_max else line[: length_max - 1] + "…"


def instant(when: datetime | None) -> str:
    """An instant for people: UTC, to the second."""
    return "" if when is None else when.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def write(text: str) -> None:
    """A line, or several. A reader that left, such as `head`, had enough: we leave too."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the exit
        raise SystemExit(0) from None


def write_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, cut: Sequence[str] = ()) -> None:
    """A table. Words such as `failed` have their colours; a terminal is not bothered with empty columns.

    The columns in `cut` give way, so that a row fits on a line as far as possible.
    """
    from rich.table import Table
    from rich.text import Text

    plain = _plain()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    shown = [place for place in range(len(columns)) if plain or any(row[place] for row in rows)]
    for place in shown:
        longest = max(len(row[place]) for row in rows) if rows else 0
        is_cut = columns[place] in cut
        table.add_column(
            Text(columns[place]),
            overflow="ellipsis" if is_cut else "fold",
            no_wrap=is_cut or columns[place] in _NOT_FOLDED,
            min_width=min(longest, _FOLDED_WIDTH_MIN),
        )
    for row in rows:
        table.add_row(*(Text(row[place], style=_STYLES.get(row[place], "")) for place in shown))
    write(_rendered(table))


def write_fields(fields: Mapping[str, str]) -> None:
    """A line per field that has a value."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for name, value in fields.items():
        if value:
            grid.add_row(Text(name, style="bold"), Text(value, style=_STYLES.get(value, ""), overflow="fold"))
    write(_rendered(grid))


def write_block(title: str, text: str) -> None:
    """Lines from a stranger under a title of ours, indented so that they cannot pass for ours."""
    lines = visible(text.rstrip("\n")).split("\n")
    write("\n".join(["", f"{title}:", *(f"  {line}" for line in lines)]))


def write_json(value: Any) -> None:
    """One JSON document, which shows on a terminal nothing but what can be seen."""
    document = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    write("".join(c if c == "\n" or (c.isascii() and c != "\x7f") else _json_visible(c) for c in document))


def _json_visible(character: str) -> str:
    if unicodedata.category(character) not in _ESCAPED_CATEGORIES:
        return character
    return "\\u007f" if character == "\x7f" else json.dumps(character)[1:-1]


def json_text(text: str | None) -> Any:
    """JSON text as a part of a larger document; as a string if, against all promises, it is no JSON."""
    if text is None:
        return None
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return text
    return msgspec.Raw(text.encode())


def _plain() -> bool:
    return not sys.stdout.isatty() or bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"


def _rendered(renderable: Any) -> str:
    from rich.console import Console

    console = Console(
        file=io.StringIO(),
        force_terminal=not _plain(),
        color_system=None if _plain() else "auto",
        width=None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL,
        markup=False,
        highlight=False,
        emoji=False,
    )
    with console.capture() as capture:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
