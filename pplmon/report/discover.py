"""Find the classes in a package, so that a new extra, rule, sink or reader takes one new file and nothing else."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module
from typing import TypeVar

T = TypeVar("T")


def classes_in(package: str, kind: type[T]) -> dict[str, type[T]]:
    """Import every module of a package, and return the public subclasses of ``kind`` that are defined there, by name."""
    path = import_module(package).__path__
    modules = [import_module(f"{package}.{module.name}") for module in pkgutil.iter_modules(path) if not module.ispkg]
    return {
        name: thing
        for module in modules
        for name, thing in vars(module).items()
        if isinstance(thing, type) and issubclass(thing, kind) and thing is not kind
        if thing.__module__ == module.__name__ and not name.startswith("_")
    }


def subclasses_of(kind: type[T]) -> Iterator[type[T]]:
    """Return every subclass in this process, at any depth; a later one after an earlier one."""
    for child in kind.__subclasses__():
        yield child
        yield from subclasses_of(child)
