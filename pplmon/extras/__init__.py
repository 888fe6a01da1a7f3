"""Optional measurements of a tally, one file each. A new file in this folder is found automatically."""

from typing import TYPE_CHECKING, Any

from pplmon.extras.base import Extra, Measures, declare_all, declared_by
from pplmon.report.discover import classes_in

ALL = classes_in(__name__, Extra)  # by name; pplmon has them under the same names
globals().update(ALL)

if TYPE_CHECKING:
    from pplmon.extras.calibration import Calibration as Calibration
    from pplmon.extras.entropy import Entropy as Entropy
    from pplmon.extras.groups import Groups as Groups
    from pplmon.extras.novelty import Novelty as Novelty
    from pplmon.extras.positions import Positions as Positions
    from pplmon.extras.rollouts import Rollouts as Rollouts
    from pplmon.extras.token_classes import TokenClasses as TokenClasses
    from pplmon.extras.uncertainty import Uncertainty as Uncertainty

    def __getattr__(name: str) -> Any:
        """Tell a type checker that an extra without a line above is ``Any``."""


__all__ = ["ALL", "Extra", "Measures", "declare_all", "declared_by"]
__all__ += list(ALL)
