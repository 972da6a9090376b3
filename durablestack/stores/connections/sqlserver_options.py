"""What a connection string says, with us and for .NET, as each of the drivers of SQL Server takes it."""

from __future__ import annotations

from typing import Any

from durablestack.errors import OptionsError
from durablestack.options import ConnectionTarget

_ODBC = {
    "encrypt": "Encrypt",
    "trustservercertificate": "TrustServerCertificate",
    "hostnameincertificate": "HostnameInCertificate",
    "servercertificate": "ServerCertificate",
    "multisubnetfailover": "MultiSubnetFailover",
    "applicationintent": "ApplicationIntent",
    "ipaddresspreference": "IpAddressPreference",
    "authentication": "Authentication",
    "integratedsecurity": "Trusted_Connection",
    "trustedconnection": "Trusted_Connection",
}
_IGNORED = {
    "app",
    "applicationname",
    "asynchronousprocessing",
    "commandtimeout",
    "connectiontimeout",
    "connectretrycount",
    "connectretryinterval",
    "connecttimeout",
    "currentlanguage",
    "driver",
    "enlist",
    "loadbalancetimeout",
    "maxpoolsize",
    "minpoolsize",
    "multipleactiveresultsets",
    "packetsize",
    "persistsecurityinfo",
    "pooling",
    "timeout",
    "workstationid",
}
_YES_NO = {"true": "yes", "sspi": "yes", "false": "no"}


def odbc_connection_string(target: ConnectionTarget) -> str:
    """As mssql-python reads it. Each value is quoted, so that none can end early.

    Raises:
        OptionsError: something was said that the driver does not know.
    """
    address = target.host or "localhost"
    parts = {
        "Server": f"{address},{target.port}" if target.port else address,
        "Database": target.database,
        "UID": target.user,
        "PWD": target.password.reveal() if target.password else None,
        "ConnectRetryCount": "0",  # a line that is dead is told, not mended behind our back
    }
    parts |= {_ODBC[name]: _YES_NO.get(value.lower(), value) for name, value in _known(target, set(_ODBC)).items()}
    quoted = {name: "{" + value.replace("}", "}}") + "}" for name, value in parts.items() if value is not None}
    return "".join(f"{name}={value};" for name, value in quoted.items())


def pymssql_keywords(target: ConnectionTarget) -> dict[str, Any]:
    """As pymssql takes them. FreeTDS does not verify certificates.

    Raises:
        OptionsError: something was said that the driver does not know.
    """
    known = _known(target, {"encrypt", "trustservercertificate", "applicationintent"})
    keywords: dict[str, Any] = {
        "server": target.host or "localhost",
        "port": str(target.port or 1433),
        "user": target.user,
        "password": target.password.reveal() if target.password else None,
        "database": target.database or "",
        "appname": "durablestack",
        "autocommit": True,
    }
    if "encrypt" in known:
        encrypted = known["encrypt"].lower() not in ("false", "no", "optional")
        keywords["encryption"] = "require" if encrypted else "off"
    if known.get("applicationintent", "").lower() == "readonly":
        raise OptionsError(f"{target.describe()}: ApplicationIntent=ReadOnly, and runs have to be written")
    return keywords


def _known(target: ConnectionTarget, names: set[str]) -> dict[str, str]:
    given = {name.replace("_", ""): value for name, value in target.parameters.items()}
    for name in given:
        if name not in names and name not in _IGNORED:
            allowed = ", ".join(sorted({"driver", *names}))
            raise OptionsError(f"{target.describe()}: {name!r} is not known to this driver; known are {allowed}")
    return {name: value for name, value in given.items() if name in names}
