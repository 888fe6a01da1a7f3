"""The shared rendering: tables and markdown of evidence whose text may hold anything."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from pplmon.alerts import Alert
from pplmon.alerts.text import alert_markdown, markdown, sequence_table, token_table
from pplmon.report.log_keys import Key, split_key
from pplmon.report.visible import visible
from pplmon.report.worst import WorstSequence, WorstToken


def test_columns_that_are_none_throughout_are_left_out() -> None:
    """Without decode and sample ids there are no empty columns; one filled cell brings a column back."""
    bare = token_table([WorstToken(loss=3.0), WorstToken(loss=2.0)])
    assert bare.columns == ["loss", "step", "micro_batch", "rank", "sequence", "position", "target"]
    some = token_table([WorstToken(loss=3.0, sample_id=7), WorstToken(loss=2.0)])
    assert [row[some.columns.index("sample_id")] for row in some.rows] == [7, None]


def test_a_column_with_nan_is_text_throughout() -> None:
    """W&B refuses a column of mixed types, and no place takes NaN."""
    rows = token_table([WorstToken(loss=math.nan), WorstToken(loss=math.inf), WorstToken(loss=2.5)]).rows
    assert [row[0] for row in rows] == ["NaN", "Infinity", "2.5"]
    assert token_table([WorstToken(loss=2.5)]).rows[0][0] == 2.5


def test_no_evidence_is_no_table() -> None:
    """An alert of a user's own rule may have no worst tokens."""
    assert markdown(token_table([])) == ""
    assert markdown(sequence_table([])) == ""
    assert "|" not in alert_markdown(Alert("mine", "look"))


def test_markdown_survives_hostile_text() -> None:
    """Pipes, markup and control characters in decoded text neither break the table nor vanish nor act."""
    hostile = " a|b\n<|end|> *x* `y` [z](u) \x1b[31m \\n \ud800"
    table = token_table([WorstToken(loss=3.0, target=5, target_text=hostile)])
    lines = markdown(table).splitlines()
    assert len(lines) == 3
    assert all(line.replace("\\|", "").count("|") == len(table.columns) + 1 for line in lines)
    assert "\x1b" not in lines[2]
    lines[2].encode()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the renderer's own
def test_markdown_reads_back_as_the_repr() -> None:
    """TensorBoard's own renderer shows exactly what ``repr`` shows, in one cell."""
    import html
    import re

    from tensorboard.plugin_util import markdown_to_safe_html

    hostile = " a|b\n<|end|> *x* `y` [z](u) __q__ \x1b[31m \\n <em>&lt;"
    table = token_table([WorstToken(loss=3.0, target_text=hostile)])
    cells = re.findall(r"<td>(.*?)</td>", markdown_to_safe_html(markdown(table)), re.DOTALL)
    assert not any("<" in cell for cell in cells)  # it lets <em> pass: not shown, but obeyed
    assert html.unescape(cells[table.columns.index("target_text")]) == repr(hostile)


def test_alert_markdown_says_what_who_and_where() -> None:
    """Text, severity, blame and both tables are there."""
    alert = Alert(
        "Spike",
        "step 7: it jumped",
        severity="critical",
        worst=(WorstToken(loss=41.25, position=99),),
        worst_sequences=(WorstSequence(loss=9.5, tokens=33),),
        blame_sequence=0.83,
    )
    text = alert_markdown(alert)
    assert all(part in text for part in ("critical", "Spike", "step 7: it jumped", "sequence explains 83%", "41.25"))
    assert "| 99 |" in text and "| 9.5 | 33 |" in text and "token explains" not in text


def test_visible_keeps_lines_and_shows_controls() -> None:
    """A newline stays; an escape, a bidi override and a lone surrogate are shown."""
    assert visible("a\nb\x1b[0m\u202e\ud800é") == "a\nb\\x1b[0m\\u202e\\ud800é"


def test_log_keys_are_read_back() -> None:
    """Prefix, stage, name and loader, also behind "pplmon/"; anything else is not ours to read."""
    assert split_key("val/perplexity") == Key("", "val", "perplexity", None)
    assert split_key("val/perplexity/dataloader_idx_1") == Key("", "val", "perplexity", 1)
    assert split_key("pplmon/lm.train/cross_entropy") == Key("pplmon/lm.", "train", "cross_entropy", None)
    assert split_key("train/val/perplexity") == Key("train/", "val", "perplexity", None)
    assert split_key("train/group/perplexity") is None
    assert split_key("lr") is None


def test_importing_sinks_loads_no_backend() -> None:
    """The user who has no wandb or TensorBoard can import us; who has them does not wait for them."""
    code = (
        "import sys, pplmon.sinks; "
        "loaded = {'wandb', 'tensorboard', 'torch.utils.tensorboard'} & set(sys.modules); "
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
