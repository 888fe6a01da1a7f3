"""The terminal, captured."""

from __future__ import annotations

import math
from io import StringIO
from typing import Any

from rich.console import Console as RichConsole

from pplmon.alerts import Alert
from pplmon.report.report import Report
from pplmon.report.worst import WorstToken
from pplmon.sinks.console import Console, report_line


def a_console(width: int = 200) -> tuple[Any, StringIO]:
    """A rich console that obeys markup and colours, and what it printed."""
    out = StringIO()
    return RichConsole(file=out, width=width, force_terminal=True, color_system=None), out


def an_alert(tokens: int = 1, text: str = "x", **kwargs: Any) -> Alert:
    """An alert with as many worst tokens, losses falling from 40."""
    worst = tuple(
        WorstToken(loss=40.0 - i, step=7, position=100 + i, target=5, target_text=text, context_text=f"<{text}>")
        for i in range(tokens)
    )
    return Alert("Spike", "step 7: it jumped", worst=worst, **kwargs)


def test_a_report_is_one_line_however_narrow() -> None:
    """Step, stage and the main numbers on one line; what could not be had is left out."""
    console, out = a_console(width=20)
    numbers = {"cross_entropy": 2.25, "perplexity": 9.4877, "token_accuracy": None, "max_token_loss": math.nan}
    Console(console).report(Report(120, "train", numbers), {})
    assert out.getvalue() == "step 120  train  cross-entropy 2.25  perplexity 9.488  max token NaN\n"


def test_non_finite_tokens_are_counted_only_where_there_are_any() -> None:
    """A healthy line is short."""
    assert "non-finite" not in report_line(Report(1, numbers={"nonfinite_tokens": 0}))
    assert report_line(Report(1, numbers={"nonfinite_tokens": 3})).endswith("non-finite tokens 3")


def test_an_alert_shows_five_worst_tokens_in_context() -> None:
    """What, how bad, where, which token, and its context; the sixth is left out."""
    console, out = a_console()
    Console(console).alert(an_alert(6, text="the", severity="critical", blame_token=0.5))
    shown = out.getvalue()
    for part in ("critical", "Spike", "step 7: it jumped", "token explains 50%", "position 104", "5 'the'", "'<the>'"):
        assert part in shown
    assert "position 105" not in shown


def test_unknown_columns_are_left_out() -> None:
    """Without decode and prediction there is neither a context nor a predicted column."""
    console, out = a_console()
    Console(console).alert(Alert("r", "t", worst=(WorstToken(loss=3.0, target=77),)))
    assert "77" in out.getvalue()
    assert "context" not in out.getvalue() and "predicted" not in out.getvalue()


def test_a_prediction_has_its_probability() -> None:
    """The predicted token is shown beside the target, with how sure the model was."""
    console, out = a_console()
    token = WorstToken(loss=3.0, target=1, predicted=2, predicted_text="b", predicted_probability=0.98765)
    Console(console).alert(Alert("r", "t", worst=(token,)))
    assert "2 'b' p=0.9877" in out.getvalue()


def test_control_characters_are_shown_not_obeyed() -> None:
    """Escape sequences in data or in an alert's text do not reach the terminal."""
    console, out = a_console()
    sink = Console(console)
    sink.alert(an_alert(text="\x1b[2J\r\n\x07"))
    sink.alert(Alert("r\x1b[1m", "a\x1b[31m\nb"))
    assert "\x1b[2J" not in out.getvalue() and "\x1b[31m" not in out.getvalue() and "\x07" not in out.getvalue()
    assert r"\x1b[2J\r\n\x07" in out.getvalue() and r"a\x1b[31m" in out.getvalue()


def test_markup_in_data_is_text() -> None:
    """A token "[bold]" is shown; "[/red]" does not raise."""
    console, out = a_console()
    Console(console).alert(an_alert(text="[bold]x[/red]"))
    Console(console).alert(Alert("[/b]", "see [/nothing]"))
    assert "5 '[bold]x[/red]'" in out.getvalue() and "see [/nothing]" in out.getvalue() and "[/b]" in out.getvalue()


def test_print_takes_the_rendered_string() -> None:
    """A progress bar's print gets one string, and the console itself stays quiet."""
    console, out = a_console()
    lines: list[str] = []
    sink = Console(console, print=lines.append)
    sink.report(Report(1, numbers={"perplexity": 2.5}), {})
    sink.alert(an_alert())
    assert lines[0] == "step 1  train  perplexity 2.5"
    assert "it jumped" in lines[1] and not lines[1].endswith("\n")
    assert len(lines) == 2 and out.getvalue() == ""


def test_reports_can_be_left_to_the_progress_bar() -> None:
    """With ``reports=False`` only alerts are shown."""
    console, out = a_console()
    sink = Console(console, reports=False)
    sink.report(Report(1, numbers={"perplexity": 2.5}), {})
    assert out.getvalue() == ""
    sink.alert(an_alert())
    assert "it jumped" in out.getvalue()


def test_rules_that_fire_together_show_their_evidence_once() -> None:
    """Two panels at one step, one table; the next step has a table again."""
    out = StringIO()
    sink = Console(console=RichConsole(file=out, width=120))
    for step in (3, 3, 4):
        sink.alert(Alert("Spike", f"step {step}: it jumped", step=step, worst=(WorstToken(loss=9.0, step=step),)))
    assert out.getvalue().count("it jumped") == 3
    assert out.getvalue().count("loss (nats)") == 2
