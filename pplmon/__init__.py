"""pplmon watches a language model while it trains: exact sums, tails, and the worst tokens with their address.

    trainer = pl.Trainer(callbacks=[pplmon.PerplexityMonitor()])

or, without a framework::

    monitor = pplmon.Monitor(every_n_steps=50, sinks=[pplmon.sinks.TensorBoard("runs/a")])
    monitor.observe(logits, targets)
    monitor.step()
    monitor.close()
"""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from pplmon import sinks
from pplmon.actions import Checkpoint, Notify, SaveBatch, Stop, Webhook
from pplmon.alerts import Above, Alert, Below, NonFinite, Rule, Spike, default_alerts
from pplmon.capture import observe
from pplmon.doctor import Finding, diagnose
from pplmon.evidence import WorstSequence, WorstToken
from pplmon.kernels.vocab_parallel import VocabShard
from pplmon.metrics import CrossEntropy, MaxTokenLoss, Perplexity, TokenAccuracy, TokenLossQuantile
from pplmon.monitor import Monitor
from pplmon.report import Report, Totals
from pplmon.tally import Entropy, Extra, TokenTally
from pplmon.tokens import TokenStats, token_stats

if TYPE_CHECKING:
    from pplmon.lightning import PerplexityMonitor

try:
    __version__ = version("pplmon")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0"

__all__ = [
    "Above",
    "Alert",
    "Below",
    "Checkpoint",
    "CrossEntropy",
    "Entropy",
    "Extra",
    "Finding",
    "MaxTokenLoss",
    "Monitor",
    "NonFinite",
    "Notify",
    "Perplexity",
    "PerplexityMonitor",
    "Report",
    "Rule",
    "SaveBatch",
    "Spike",
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
    "default_alerts",
    "diagnose",
    "observe",
    "sinks",
    "token_stats",
]


def __getattr__(name: str) -> Any:
    """Find ``PerplexityMonitor`` on first use: ``import pplmon`` does not load Lightning."""
    if name == "PerplexityMonitor":
        from pplmon.lightning import PerplexityMonitor

        return PerplexityMonitor
    raise AttributeError(f"module 'pplmon' has no attribute {name!r}")
