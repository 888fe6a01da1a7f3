"""What may be done about an alert: ready handlers for ``on_alert``.

A handler is any callable ``Alert -> None``; it is called on the writing rank, unless it has ``everywhere = True``. It may
also have the methods that ``pplmon.monitor.delivery`` names, which the handlers here are made of.
"""

from pplmon.alerts.actions.checkpoint import Checkpoint
from pplmon.alerts.actions.notify import Notify
from pplmon.alerts.actions.save_batch import SaveBatch
from pplmon.alerts.actions.stop import Stop
from pplmon.alerts.actions.webhook import Webhook

__all__ = ["Checkpoint", "Notify", "SaveBatch", "Stop", "Webhook"]
