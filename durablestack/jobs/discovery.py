"""Finds the jobs of an application: every decorated job of the modules and packages that it names."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from durablestack.errors import OptionsError, TargetError

from .declaration import declaration_of


def look_in_current_folder() -> None:
    """Let targets be found where a command is called, as `python -m` has it, and a console script has not."""
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def import_targets(targets: Iterable[str]) -> list[ModuleType]:
    """Import modules, and packages with all that is in them, by dotted name.

    Raises:
        TargetError: one does not exist, or fails while it is imported.
    """
    modules: dict[str, ModuleType] = {}
    for target in targets:
        root = _import(target)
        modules[root.__name__] = root
        for name in _modules_below(root):
            modules[name] = _import(name)
    return list(modules.values())


def jobs_in(modules: Iterable[ModuleType]) -> list[Callable[..., Any]]:
    """Every job that stands in one of the modules, each once, however often it is imported from another."""
    jobs: dict[int, Callable[..., Any]] = {}
    for module in modules:
        for value in list(vars(module).values()):
            if declaration_of(value) is not None:
                jobs[id(value)] = value
    return list(jobs.values())


def _modules_below(package: ModuleType) -> Iterator[str]:
    if not hasattr(package, "__path__"):
        return
    for found in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if found.name.rpartition(".")[2] == "__main__":  # a program, not a part of the library
            continue
        yield found.name
        if found.ispkg:
            yield from _modules_below(_import(found.name))


def _import(name: str) -> ModuleType:
    if not name or not all(part.isidentifier() for part in name.split(".")):
        raise TargetError(f"{name!r} is not the dotted name of a module or package, such as {_module_of(name)}")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing and name.endswith(".py"):
            raise TargetError(f"module {name!r} cannot be found; if it is a file, say {_module_of(name)}") from None
        if name == missing or name.startswith(missing + "."):
            raise TargetError(
                f"module {name!r} cannot be found: there is no {missing!r} in the current folder or on PYTHONPATH"
            ) from None
        raise TargetError(f"module {name!r} cannot be imported: it needs {missing!r}, which is missing") from error
    except SystemExit as error:
        raise TargetError(f"module {name!r} cannot be imported: it calls sys.exit({error.code!r})") from error
    except SyntaxError as error:
        raise TargetError(f"module {name!r} cannot be imported: SyntaxError: {error}") from error
    except OptionsError:  # of the application that is made there; it names what is wrong, and in which source
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise TargetError(f"module {name!r} cannot be imported: {what}{_place(error)}") from error


def _module_of(name: str) -> str:
    """What somebody probably means who names a file."""
    parts = name.removesuffix(".py").replace("\\", "/").split("/")
    meant = ".".join(part for part in parts if part not in ("", "."))
    return meant if name.endswith(".py") and all(map(str.isidentifier, meant.split("."))) else "shop.jobs"


def _place(error: Exception) -> str:
    """Where in the application it happened: the last line that is neither Python's importing nor ours."""
    ours = f"{Path(__file__).parent.parent}{os.sep}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(("<frozen", ours)):
            return f" ({frame.filename}, line {frame.lineno})"
    return ""
