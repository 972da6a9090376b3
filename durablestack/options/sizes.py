"""Sizes of memory: a number of bytes, or a text such as "512 MiB"."""

import re
from typing import Any

SIZE_BYTES_MIN = 1024 * 1024
SIZE_BYTES_MAX = 2**62
SIZE_ALLOWED = 'bytes, 1 MiB or more, or a text such as "512 MiB" or "2 GB"'

_SIZE = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)\s*([kmgt]i?b?|b)", re.ASCII | re.IGNORECASE)
_LETTERS = "kmgt"


def size_in_bytes(value: Any) -> int:
    """The bytes that `value` means; `MB` and its like are powers of 1000, `MiB` and `M` are powers of 1024.

    Raises:
        ValueError: it is no size, or one below 1 MiB, in which nothing can be executed.
    """
    size = _read(value) if isinstance(value, str) else value
    if isinstance(size, bool) or not isinstance(size, int) or not SIZE_BYTES_MIN <= size <= SIZE_BYTES_MAX:
        raise ValueError(f"{value!r} is no size")
    return size


def _read(text: str) -> int:
    text = text.strip()
    if text.isascii() and text.isdigit() and len(text) < 20:
        return int(text)
    if not (parts := _SIZE.fullmatch(text)):
        raise ValueError(f"{text!r} is no size")
    unit = parts[2].lower()
    power = _LETTERS.find(unit[0]) + 1  # 0 for plain bytes
    base = 1000 if unit.endswith("b") and "i" not in unit else 1024
    return int(float(parts[1]) * base**power)
