"""Which event loop a supervisor that has a process of its own uses."""

from __future__ import annotations

from importlib.util import find_spec

from durablestack.errors import OptionsError
from durablestack.options import EventLoop


def is_uvloop(event_loop: EventLoop) -> bool:
    """Whether it is uvloop.

    Raises:
        OptionsError: it is, and is not installed.
    """
    if event_loop is EventLoop.UVLOOP and find_spec("uvloop") is None:
        raise OptionsError(
            "event_loop = 'uvloop' needs the package uvloop: pip install 'durablestack[uvloop]'; it may also be asyncio"
        )
    return event_loop is EventLoop.UVLOOP
