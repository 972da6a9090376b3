"""Which event loop a supervisor that has a process of its own uses."""

from __future__ import annotations

from importlib.util import find_spec

from durablestack.errors import OptionsError
from durablestack.options import EventLoop


def wants_uvloop(event_loop: EventLoop) -> bool:
    """Whether it is to be uvloop; with `auto`, where that is installed.

    Raises:
        OptionsError: it is to be, and is not installed.
    """
    if event_loop is EventLoop.ASYNCIO:
        return False
    is_there = find_spec("uvloop") is not None
    if event_loop is EventLoop.UVLOOP and not is_there:
        raise OptionsError(
            "event_loop = 'uvloop' needs the package uvloop: pip install 'durablestack[uvloop]'; "
            "it may also be auto or asyncio"
        )
    return is_there
