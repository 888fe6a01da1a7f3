"""An alert as a few lines that read well in a chat or a mail."""

from __future__ import annotations

from pplmon.alerts.addresses import address
from pplmon.alerts.alert import Alert
from pplmon.alerts.markdown import guess
from pplmon.alerts.text import blame, brief
from pplmon.alerts.words import LABEL, SENTENCE, shown


def few_lines(alert: Alert) -> str:
    """Return what happened, how much one sequence or token explains, and the worst of both with its address and text."""
    lines = [shown(alert.text, SENTENCE).replace("\n", " "), " ".join(blame(alert))]
    for sequence in alert.worst_sequences[:1]:
        lines.append(
            f"Worst sequence: {brief(sequence.loss)} nats per token over {sequence.tokens} tokens ({address(sequence)})."
        )
    for token in alert.worst[:1]:
        lines.append(f"Worst token: {guess(token)}, {brief(token.loss)} nats ({address(token)}).")
        lines += [] if token.context_text is None else [f"Text: {shown(repr(token.context_text), 2 * LABEL)}"]
    # The three that Slack and HTML would obey: "<!channel>" in a training text would call everybody.
    return "\n".join(filter(None, lines)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
