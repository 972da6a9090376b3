"""Text from strangers, made fit for a database: bounded, and without what one of them refuses."""

from __future__ import annotations

ERROR_TYPE_LENGTH_MAX = 200
ERROR_MESSAGE_LENGTH_MAX = 2_000
ERROR_DETAIL_LENGTH_MAX = 16_384

_CUT = " … "


def clean(text: str, length_max: int) -> str:
    """`text` without NUL and lone surrogates, cut in the middle to at most `length_max` characters.

    The beginning and the end are kept: of a traceback both matter.
    """
    if len(text) > length_max:
        head = (length_max - len(_CUT)) // 3
        tail = length_max - len(_CUT) - head
        text = text[:head] + _CUT + text[-tail:]
    text = text.replace("\0", "\N{SYMBOL FOR NULL}")
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode("utf-8")
    return text


def on_one_line(text: str) -> str:
    """`text` with everything escaped that would begin a new line, or that a terminal would obey rather than show."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
