"""Optional measurements of a tally, one file each. A new file in this folder is found automatically."""

from typing import TYPE_CHECKING, Any

from pplmon.extras.base import Extra, Measures, declare_all, declared_by
from pplmon.report.discover import classes_in

ALL = classes_in(__name__, Extra)  # by name; pplmon has them under the same names
globals().update(ALL)

if TYPE_CHECKING:
    from pplmon.extras.entropy import Entropy as Entropy

    def __getattr__(name: str) -> Any:
        """Tell a type checker that an extra without a line above is ``Any``."""


__all__ = ["ALL", "Extra", "Measures", "declare_all", "declared_by"]
__all__ += list(ALL)
