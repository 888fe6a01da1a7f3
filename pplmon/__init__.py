"""pplmon watches a language model while it trains: exact sums, tails, and the worst tokens with their address.

    trainer = pl.Trainer(callbacks=[pplmon.PerplexityMonitor()])

or, without a framework::

    monitor = pplmon.Monitor(every_n_steps=50, sinks=[pplmon.sinks.TensorBoard("runs/a")])
    monitor.observe(logits, targets)
    monitor.step()
    monitor.close()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pplmon import alerts, extras, sinks
from pplmon.alerts import Alert, MetricRule, Rule, default_alerts
from pplmon.alerts.actions import Checkpoint, Notify, SaveBatch, Stop, Webhook
from pplmon.doctor import Finding, diagnose
from pplmon.extras import Extra
from pplmon.extras.vocabulary import bytes_per_token
from pplmon.measure.tokens import TokenStats, token_stats
from pplmon.measure.vocab_parallel import VocabShard
from pplmon.monitor import Monitor
from pplmon.monitor.probes import FreeRunningProbe, rename_gap
from pplmon.report.numbers import Number
from pplmon.report.report import Report
from pplmon.report.totals import Totals
from pplmon.report.version import VERSION
from pplmon.report.worst import WorstSequence, WorstToken
from pplmon.tally import TokenTally
from pplmon.tally.single_numbers import CrossEntropy, MaxTokenLoss, Perplexity, TokenAccuracy, TokenLossQuantile
from pplmon.trainers.capture import log, observe

if TYPE_CHECKING:
    from pplmon.alerts import Above as Above
    from pplmon.alerts import Below as Below
    from pplmon.alerts import NonFinite as NonFinite
    from pplmon.alerts import Spike as Spike
    from pplmon.extras import Calibration as Calibration
    from pplmon.extras import Entropy as Entropy
    from pplmon.extras import Groups as Groups
    from pplmon.extras import Novelty as Novelty
    from pplmon.extras import Positions as Positions
    from pplmon.extras import Rollouts as Rollouts
    from pplmon.extras import TokenClasses as TokenClasses
    from pplmon.extras import Uncertainty as Uncertainty
    from pplmon.page import page
    from pplmon.trainers.lightning import PerplexityMonitor

globals().update({**alerts.ALL, **extras.ALL})  # every rule and every extra that has a file

__version__ = VERSION

__all__ = [
    "Alert",
    "Checkpoint",
    "CrossEntropy",
    "Extra",
    "Finding",
    "FreeRunningProbe",
    "MaxTokenLoss",
    "MetricRule",
    "Monitor",
    "Notify",
    "Number",
    "Perplexity",
    "PerplexityMonitor",
    "Report",
    "Rule",
    "SaveBatch",
    "Stop",
    "TokenAccuracy",
    "TokenLossQuantile",
    "TokenStats",
    "TokenTally",
    "Totals",
    "VocabShard",
    "Webhook",
    "WorstSequence",
    "WorstToken",
    "bytes_per_token",
    "default_alerts",
    "diagnose",
    "log",
    "observe",
    "page",
    "rename_gap",
    "sinks",
    "token_stats",
]
__all__ += list(alerts.ALL)
__all__ += list(extras.ALL)


def __getattr__(name: str) -> Any:
    """Find ``PerplexityMonitor`` and ``page`` on first use: ``import pplmon`` loads neither Lightning nor templates."""
    if name == "PerplexityMonitor":
        from pplmon.trainers.lightning import PerplexityMonitor

        return PerplexityMonitor
    if name == "page":
        return import_module("pplmon.page")
    raise AttributeError(f"module 'pplmon' has no attribute {name!r}")
