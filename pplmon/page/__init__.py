"""One self-contained HTML page from one or several journals. ``pplmon.page(run_dir)`` makes it."""

import sys
from types import ModuleType
from typing import Any

from pplmon.page.build import Page, page

__all__ = ["Page", "page"]


class _Callable(ModuleType):
    """This package, which is called as well: once it is imported, ``pplmon.page`` is the package's own name."""

    def __call__(self, *runs: Any, **options: Any) -> Page:
        return page(*runs, **options)


sys.modules[__name__].__class__ = _Callable
