"""Finds schedulers: those of pylvs, those of modules that the administrator names, those of installed packages.

A module is given by its dotted name or the path of its file; every class in it that has `name`, `about` and `compile` is
a scheduler. Packages announce theirs by entry points of the group ``pylvs.schedulers``, which are loaded when a service
first asks for the name, so that a broken package hurts nobody else.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from pylvs.sched import SCHEDULERS
from pylvs.sched.base import Scheduler

GROUP = "pylvs.schedulers"
MAX_NAME = 15  # the kernel's, and so that of synchronisation messages and saved rules


class Schedulers(Mapping[str, Scheduler]):
    """All schedulers by name; `modules` are loaded at once. `ValueError` says what is wrong with a user's."""

    def __init__(self, modules: Sequence[str] = ()) -> None:
        self._known = dict(SCHEDULERS)
        self.origins = dict.fromkeys(self._known, "pylvs")
        for name in modules:
            for scheduler in from_module(name):
                self._add(scheduler, f"module {name}")

    def _add(self, scheduler: Scheduler, origin: str) -> None:
        if scheduler.name in self._known:
            raise ValueError(
                f"scheduler {scheduler.name!r} of {origin} is already there, from {self.origins[scheduler.name]}; rename it"
            )
        self._known[scheduler.name] = scheduler
        self.origins[scheduler.name] = origin

    def __getitem__(self, name: str) -> Scheduler:
        if name not in self._known:
            for point in entry_points(group=GROUP, name=name):
                try:
                    cls = point.load()
                except Exception as error:
                    raise ValueError(f"entry point {point.value}: {type(error).__name__}: {error}") from error
                scheduler = checked(cls, f"entry point {point.value}")
                if scheduler.name != name:
                    raise ValueError(f"entry point {name} = {point.value} has the name {scheduler.name!r}; make them equal")
                self._add(scheduler, f"entry point {point.value}")
                break
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._known
        yield from sorted({point.name for point in entry_points(group=GROUP)} - self._known.keys())

    def __len__(self) -> int:
        return len(list(iter(self)))


def from_module(name: str) -> list[Scheduler]:
    """The schedulers of a module, named by ``package.module`` or by the path of a file."""
    origin = f"module {name}"
    try:
        module = _file(Path(name)) if name.endswith(".py") else importlib.import_module(name)
    except Exception as error:
        raise ValueError(f"scheduler {origin} cannot be loaded: {type(error).__name__}: {error}") from error
    found = [
        checked(cls, origin)
        for cls in vars(module).values()
        if isinstance(cls, type) and cls.__module__ == module.__name__ and hasattr(cls, "compile") and hasattr(cls, "name")
    ]
    if not found:
        raise ValueError(f"scheduler {origin} has no class with name, about and compile")
    return found


def _file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"pylvs_scheduler_{path.stem.replace('-', '_')}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def checked(cls: object, origin: str) -> Scheduler:
    """An instance of a scheduler's class, if it is one."""
    name, about = getattr(cls, "name", None), getattr(cls, "about", None)
    if not isinstance(name, str) or not name or len(name) > MAX_NAME or not name.isprintable() or " " in name:
        raise ValueError(f"{origin}: name {name!r} of {cls!r} is not a word of 1 to {MAX_NAME} letters")
    if not isinstance(about, str) or not about or "\n" in about:
        raise ValueError(f"{origin}: scheduler {name!r} needs `about`, one line that says what it does")
    every = getattr(cls, "every", 1.0)
    if not isinstance(every, int | float) or every <= 0:
        raise ValueError(f"{origin}: scheduler {name!r}: every {every!r} is not a number of seconds above 0")
    if not callable(cls):
        raise ValueError(f"{origin}: {cls!r} is not a class")
    try:
        scheduler: Scheduler = cls()
    except Exception as error:
        raise ValueError(f"{origin}: scheduler {name!r}: {type(error).__name__}: {error}") from error
    if not callable(getattr(scheduler, "compile", None)):
        raise ValueError(f"{origin}: scheduler {name!r} needs a method compile(servers, flags)")
    return scheduler
