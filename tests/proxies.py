"""The way from a bench to its database, through a proxy that misbehaves."""

import re
from urllib.parse import urlsplit

from proxy import TcpProxy

DEFAULT_PORTS = {"postgresql": 5432, "mysql": 3306}


def proxy_to(settings: dict[str, str]) -> TcpProxy:
    parts = urlsplit(settings["DURABLESTACK__DATABASE_URL"])
    return TcpProxy(parts.hostname or "127.0.0.1", parts.port or DEFAULT_PORTS[parts.scheme])


def through(proxy: TcpProxy, settings: dict[str, str]) -> dict[str, str]:
    """The settings that differ."""
    url = settings["DURABLESTACK__DATABASE_URL"]
    return {"DURABLESTACK__DATABASE_URL": re.sub(r"(127\.0\.0\.1|localhost):\d+", f"127.0.0.1:{proxy.port}", url)}
