"""Ready handlers for ``on_alert``: stop the run, save a checkpoint or the batch, tell people.

A handler is any callable ``Alert -> None``. It is called on the writing rank, or on all ranks where it has
``everywhere = True``. ``pplmon.monitor.delivery`` names the methods that it may have besides.
"""

from pplmon.alerts.actions.checkpoint import Checkpoint
from pplmon.alerts.actions.notify import Notify
from pplmon.alerts.actions.save_batch import SaveBatch
from pplmon.alerts.actions.stop import Stop
from pplmon.alerts.actions.webhook import Webhook

__all__ = ["Checkpoint", "Notify", "SaveBatch", "Stop", "Webhook"]
