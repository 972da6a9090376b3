"""The three grammars of connection strings, each as key and value pairs. No error here shows what was read."""

import re
from typing import TypeAlias
from urllib.parse import SplitResult, unquote, urlsplit

Pairs: TypeAlias = list[tuple[str, str]]

LENGTH_MAX = 8192

_URL = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]{0,40}://")
_ENCODE = "special characters in a URL's user, password or database must be percent-encoded ('@' is %40, '/' is %2F)"
_KEY_VALUE = re.compile(r"""([^=;]+)=\s*+(?:"((?:[^"]|"")*)"|'((?:[^']|'')*)'|((?!["'])[^;]*))\s*(?:;|\Z)""")
_CONNINFO = re.compile(r"""\s*(\w+)\s*=\s*(?:'((?:[^'\\]|\\.)*)'|((?:[^\s;'\\]|\\.)*))(?=\s|\Z)""", re.DOTALL)


class Unreadable(Exception):
    """Why a connection string cannot be read, in words without any part of it."""


def is_url(text: str) -> bool:
    """Whether the text begins with a scheme."""
    return _URL.match(text) is not None


def split_url(url: str, *, is_file: bool) -> Pairs:
    """The pairs of `scheme://user:password@host:port/database?key=value`; the query has the last word.

    With `is_file` there is no host, and what follows `scheme:///` is a path.
    """
    parts = _split(url)
    pairs = _file(parts) if is_file else _address(parts)
    for piece in filter(None, parts.query.split("&")):
        key, equals, value = piece.partition("=")
        if not equals:
            raise Unreadable(f"its query has a piece without '='; {_ENCODE}")
        pairs.append((_decoded(key), _decoded(value)))
    return pairs


def key_value_pairs(text: str) -> Pairs:
    """The pairs of `Key=Value;Key="quoted; value"`. A quote inside quotes is doubled."""
    _check_length(text)
    pairs: Pairs = []
    position = 0
    while (position := _skip(text, position)) < len(text):
        pair = _KEY_VALUE.match(text, position)
        if not pair:
            raise Unreadable("it is neither a URL nor Key=Value; pairs, or a quote in it does not end")
        key, double, single, plain = pair.groups()
        pairs.append((key.strip(), _unquoted(double, single, plain)))
        position = pair.end()
    if not pairs:
        raise Unreadable("it is empty")
    return pairs


def conninfo_pairs(text: str) -> Pairs | None:
    """The pairs of libpq's `host=… password='…'`, or `None` where the text is not of that form."""
    _check_length(text)
    text, pairs, position = text.strip(), Pairs(), 0
    while position < len(text):
        pair = _CONNINFO.match(text, position)
        if not pair:
            return None
        key, quoted, plain = pair.groups()
        pairs.append((key, re.sub(r"\\(.)", r"\1", plain if quoted is None else quoted, flags=re.DOTALL)))
        position = pair.end()
    return pairs or None


def _split(url: str) -> SplitResult:
    _check_length(url)
    if any(character <= " " or character == "\x7f" for character in url):
        raise Unreadable(f"it contains spaces or control characters; {_ENCODE}")
    try:
        parts = urlsplit(url)
    except ValueError:  # its message would show the host, which may be half a password
        raise Unreadable(_ENCODE) from None
    if "#" in url:
        raise Unreadable(_ENCODE)
    return parts


def _file(parts: SplitResult) -> Pairs:
    if parts.netloc and parts.netloc != ":memory:":
        raise Unreadable("a SQLite URL has three slashes before a relative path, and four before an absolute one")
    return [("database", parts.netloc or _decoded(parts.path.removeprefix("/")))]


def _address(parts: SplitResult) -> Pairs:
    if "@" in parts.path:
        raise Unreadable(_ENCODE)
    user_info, _, address = parts.netloc.rpartition("@")
    user, _, password = user_info.partition(":")
    host, port = _host_and_port(address)
    named = [("host", host), ("port", port), ("user", user), ("password", password)]
    named.append(("database", parts.path.removeprefix("/")))
    return [(key, _decoded(value)) for key, value in named if value]


def _host_and_port(address: str) -> tuple[str, str]:
    """The host and the port; for `a:5432,b:5432`, the hosts and their one port."""
    split = [re.fullmatch(r"(\[[^\[\]]*\]|[^\[\]:]*)(?::(.*))?", one) for one in address.split(",")]
    found = [one.groups(default="") for one in split if one]
    ports = {port for _, port in found}
    if len(found) != len(split) or len(ports) > 1:
        raise Unreadable(f"its address is not host:port, or its hosts have different ports; {_ENCODE}")
    return ",".join(host.strip("[]") for host, _ in found), ports.pop()


def _skip(text: str, position: int) -> int:
    """Where the next key begins, behind spaces and empty pairs."""
    while position < len(text) and (text[position] == ";" or text[position].isspace()):
        position += 1
    return position


def _unquoted(double: str | None, single: str | None, plain: str | None) -> str:
    if double is not None:
        return double.replace('""', '"')
    if single is not None:
        return single.replace("''", "'")
    return (plain or "").strip()


def _decoded(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise Unreadable("its percent-encoding is not UTF-8") from None


def _check_length(text: str) -> None:
    if len(text) > LENGTH_MAX:
        raise Unreadable(f"it is longer than {LENGTH_MAX} characters")
