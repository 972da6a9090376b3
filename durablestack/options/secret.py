"""Keeps passwords out of logs, errors and encodings."""

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, NoReturn
from urllib.parse import quote

MASK: Final = "**********"


class Secret:
    """A text that is never shown by accident: not a `str`, and only `reveal()` gives it out.

    An empty secret is false. Pickling raises `TypeError`; so does msgspec, unless `mask_secrets` is its `enc_hook`.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError("a Secret is made from a str")
        self._text = text

    def reveal(self) -> str:
        """The text itself, for the driver and nobody else."""
        return self._text

    def __repr__(self) -> str:
        return MASK

    def __format__(self, _spec: str) -> str:
        return MASK

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return self._text == other._text if isinstance(other, Secret) else NotImplemented

    def __hash__(self) -> int:
        return hash((Secret, self._text))

    def __copy__(self) -> "Secret":
        return self

    def __deepcopy__(self, _memo: object) -> "Secret":
        return self

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        raise TypeError("a Secret is not pickled")


def mask_secrets(value: object) -> str:
    """An `enc_hook` for msgspec that writes a secret as its mask. Raises `NotImplementedError` for anything else."""
    if isinstance(value, Secret):
        return MASK
    raise NotImplementedError(f"cannot encode {type(value).__name__}")


# Known secrets that are shorter would take ordinary words apart; the two patterns below still find them.
_KNOWN_SECRET_LENGTH_MIN = 4
_WORDS = re.compile(r'[^\s"]+')
# Each quantifier is bounded, or ends where the match ends: the time is linear in the text.
_ASSIGNED = re.compile(
    r"""((?:password|passwd|pwd|secret)["']?\s{0,8}[=:]\s{0,8})"""
    r"""(?:"(?:[^"]|"")*"?|'(?:[^'\\]|''|\\.)*'?|[^;\r\n]{0,256}(?=;)|[^\s;&]+)""",
    re.IGNORECASE | re.DOTALL,
)


def without_known(text: str, secrets: Iterable[Secret | str]) -> str:
    """`text` without the known secrets, those of fewer than 4 characters excepted."""
    for known in sorted(_spellings(secrets), key=len, reverse=True):
        text = text.replace(known, MASK)
    return text


def redact(text: str, secrets: Iterable[Secret | str] = ()) -> str:
    """`text` without the known secrets, without `://user:password@`, and without what follows `password=`.

    Rather removes too much than too little. Known secrets of fewer than 4 characters are only found in those places.
    """
    text = without_known(text, secrets)
    if "://" in text:
        text = _WORDS.sub(_without_user_info, text)
    return _ASSIGNED.sub(rf"\1{MASK}", text)


def _spellings(secrets: Iterable[Secret | str]) -> set[str]:
    texts = {secret.reveal() if isinstance(secret, Secret) else secret for secret in secrets}
    return {spelling for text in texts if len(text) >= _KNOWN_SECRET_LENGTH_MIN for spelling in _spellings_of(text)}


@lru_cache(maxsize=64)
def _spellings_of(text: str) -> frozenset[str]:
    """As it is, and as it stands in a URL, in what Python shows of a dict, in JSON, and between quotes."""
    shown = repr('"' + text)[2:-1]
    return frozenset(
        {
            text,
            quote(text, safe="", errors="replace"),
            shown,
            shown.replace("\\'", "'"),
            json.dumps(text)[1:-1],
            json.dumps(text, ensure_ascii=False)[1:-1],
            text.replace("'", "''"),
            text.replace('"', '""'),
        }
    )


def _without_user_info(word: re.Match[str]) -> str:
    scheme, separator, rest = word.group().partition("://")
    user_info, at, address = rest.rpartition("@")
    if not at or ("/" in user_info and ":" not in user_info):  # an "@" in a path, as in https://host/@name
        return word.group()
    return f"{scheme}{separator}{MASK}@{address}"
