"""Show numbers and alerts: one file per place. A backend is imported when its sink is first used.

A new file in this folder is found automatically.
"""

from typing import TYPE_CHECKING, Any

from pplmon.report.discover import classes_in
from pplmon.sinks.base import Sink
from pplmon.sinks.journal_reader import read_journal

ALL = classes_in(__name__, Sink)  # by name
globals().update(ALL)

if TYPE_CHECKING:
    from pplmon.sinks.console import Console as Console
    from pplmon.sinks.journal import Journal as Journal
    from pplmon.sinks.tensorboard import TensorBoard as TensorBoard
    from pplmon.sinks.wandb import WandB as WandB

    def __getattr__(name: str) -> Any:
        """Tell a type checker that a sink without a line above is ``Any``."""


__all__ = ["ALL", "Sink", "read_journal"]
__all__ += list(ALL)
