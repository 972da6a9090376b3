"""What the endpoint of a supervisor answers: whether it lives, whether it is ready, and what it has counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING

from .endpoint import Answer
from .health import why_not_live, why_not_ready

if TYPE_CHECKING:
    from .tree import Supervisor

_NO_METRICS = b"metrics need the package prometheus_client: pip install 'durablestack[prometheus]'\n"


def answers(supervisor: Supervisor) -> Mapping[str, Callable[[], Answer]]:
    return {
        "/live": lambda: _told("live", why_not_live(supervisor)),
        "/ready": lambda: _told("ready", why_not_ready(supervisor)),
        "/metrics": _metrics(supervisor),
    }


def _told(state: str, reasons_why_not: list[str]) -> Answer:
    if reasons_why_not:
        return Answer("".join(f"{reason}\n" for reason in reasons_why_not).encode(), HTTPStatus.SERVICE_UNAVAILABLE)
    return Answer(f"{state}\n".encode())


def _metrics(supervisor: Supervisor) -> Callable[[], Answer]:
    try:
        from .metrics import CONTENT_TYPE, Metrics  # 50 ms and 5 MB for those who ask only
    except ImportError:
        return lambda: Answer(_NO_METRICS, HTTPStatus.NOT_IMPLEMENTED)
    metrics = Metrics(supervisor)
    return lambda: Answer(metrics.text(), content_type=CONTENT_TYPE)
