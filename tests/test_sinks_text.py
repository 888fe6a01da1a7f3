"""The shared rendering: tables and markdown of evidence whose text may hold anything."""

from __future__ import annotations

import math

import pytest

from pplmon.alerts import Alert
from pplmon.alerts.addresses import address, sequence_of
from pplmon.alerts.markdown import step_markdown
from pplmon.alerts.message import few_lines
from pplmon.alerts.text import markdown, sequence_table, token_table
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
    assert "|" not in step_markdown([Alert("mine", "look")])
    assert few_lines(Alert("mine", "look")) == "look"


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


SPIKE = Alert(
    "Spike",
    "step 7: it jumped",
    step=7,
    severity="critical",
    worst=(
        WorstToken(
            41.25, 7, 0, 1, 3, 99, 5, 6, 0.75, 1234, context_text="a <b>|c", target_text=" x", predicted_text="y"
        ),
    ),
    worst_sequences=(WorstSequence(9.5, 33, 7, sequence=3, sample_id=1234),),
    blame_sequence=0.83,
)


def test_the_alerts_of_a_step_are_one_text_with_the_evidence_once() -> None:
    """Context first, then target and prediction, and one column of addresses; what the rules share is said once."""
    text = step_markdown([SPIKE, Alert("mine*", "look | here", step=7, severity="info")])
    lines = text.splitlines()
    assert lines[0] == "### step 7, train: 1 alert, 1 notice"
    assert "**critical** (Spike): step 7: it jumped" in lines
    assert r"**notice** (mine\*): look \| here" in lines
    assert text.count("sequence explains 83%") == 1 and text.count("41.25") == 1
    assert "| context | target → predicted | loss (nats) | where |" in lines
    assert (
        r"| 'a &lt;b>\|c' | ' x' → 'y' (p 0.75) | 41.25 | step 7, rank 1, sequence 3, position 99, sample 1234 |"
        in lines
    )
    assert "| step 7, sequence 3, sample 1234 | 9.5 nats per token | 33 |" in lines


def test_a_message_is_a_few_lines_without_markup() -> None:
    """It stands in a chat and in a mail: what happened, the blame, the worst sequence and the worst token."""
    lines = few_lines(SPIKE).splitlines()
    assert len(lines) == 5 and "|" not in lines[0]
    assert lines[2] == "Worst sequence: 9.5 nats per token over 33 tokens (step 7, sequence 3, sample 1234)."
    assert lines[3].startswith("Worst token: ' x' → 'y' (p 0.75), 41.25 nats (step 7, rank 1, sequence 3")
    assert lines[4] == "Text: 'a &lt;b&gt;|c'"
    loud = few_lines(Alert("r", "<!channel> " + "x" * 20_000 + "\ud800"))
    assert len(loud) < 800 and "<!" not in loud
    loud.encode()


def test_one_vocabulary_for_an_address() -> None:
    """Micro-batch and rank stand there where there is more than one; ids where they were given."""
    assert address(WorstToken(1.0, step=3)) == "step 3, sequence 0, position 0"
    assert address(WorstToken(1.0, 3, 2, 1, 4, 5, sample_id=6)) == (
        "step 3, micro-batch 2, rank 1, sequence 4, position 5, sample 6"
    )
    assert sequence_of(WorstSequence(1.0, sequence=4, document_id=2, sample_id=6)) == "sequence 4, document 2, sample 6"


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
