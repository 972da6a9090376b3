"""An environment of its own for each package that is compared, in the user's cache folder; made once for its pins."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

INSTALL_SECONDS_MAX = 600.0


def interpreter_for(name: str, pins: tuple[str, ...]) -> str:
    """The Python that has these pins installed; ours, if there are none.

    Raises:
        subprocess.SubprocessError: they could not be installed.
    """
    if not pins:
        return sys.executable
    folder = _cache() / f"{name}-{_digest(pins)}"
    python = str(folder / "bin" / "python")
    complete = folder / "complete"
    if not complete.exists():
        venv.create(folder, clear=True, with_pip=True)
        install = [python, "-m", "pip", "install", "-qq", "--pre", *pins]
        subprocess.run(install, check=True, timeout=INSTALL_SECONDS_MAX)
        complete.touch()
    return python


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "durablestack-peers"


def _digest(pins: tuple[str, ...]) -> str:
    return hashlib.sha256("\n".join((sys.version, *pins)).encode()).hexdigest()[:12]
