"""The page in a real browser: what is drawn, what hover and keys tell, and what it never does.

It runs where Playwright and a Chromium are: ``pip install -e ".[dev,browser]"``, and the system's ``chromium``.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import pplmon
from tests.page_runs import DATASET_ROW, write_long_run, write_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LACKS = (
    ("playwright is" if find_spec("playwright") is None else "no Chromium is")
    if CHROMIUM is None or find_spec("playwright") is None
    else None
)
pytestmark = pytest.mark.skipif(LACKS is not None, reason=f"{LACKS} not installed: the page is not tried in a browser")

HOSTILE = (
    "<script>window.broken = true</script>",
    '"><img src=x onerror="window.broken = true">',
    "</span></div><h1>markup</h1>",
    "\u202eright to left\u202c \u05e2\u05d1\u05e8\u05d9\u05ea",
    "{{ 7 * 7 }}\x1b[31m\ud800",
    "x" * 20_000,
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for all tests."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with one planted sequence."""
    directory = tmp_path_factory.mktemp("run")
    return pplmon.page(write_run(directory)).save(directory / "report.html")


class Opened:
    """A page in a tab, and everything that went wrong there."""

    def __init__(self, browser: Any, path: Path, **context: Any) -> None:
        self.context = browser.new_context(viewport={"width": 1200, "height": 900}, **context)
        self.tab = self.context.new_page()
        self.wrong: list[str] = []
        self.tab.on("console", lambda message: message.type in ("error", "warning") and self.wrong.append(message.text))
        self.tab.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.tab.on("request", lambda request: request.url.startswith(path.as_uri()) or self.wrong.append(request.url))
        self.tab.goto(path.as_uri())

    def __enter__(self) -> Any:
        return self.tab

    def __exit__(self, *_: object) -> None:
        self.context.close()
        assert [text for text in self.wrong if not text.startswith("data:,")] == []


def legend(tab: Any, chart: str) -> dict[str, str]:
    """The values that a chart's legend shows, by label."""
    rows = tab.locator(f"#chart-{chart} .legend button")
    return {b.locator("span").inner_text(): b.locator("output").inner_text() for b in rows.all()}


def where(tab: Any, chart: str) -> str:
    """The x that a chart's legend is of."""
    return str(tab.locator(f"#chart-{chart} .where").inner_text())


def plot_box(tab: Any, chart: str) -> dict[str, float]:
    """The rectangle that a chart draws its lines in."""
    over = tab.locator(f"#chart-{chart} .u-over")
    over.scroll_into_view_if_needed()
    return over.bounding_box()  # type: ignore[no-any-return]


def hover(tab: Any, chart: str, part: float) -> None:
    """Move the mouse to a part of a chart's width."""
    box = plot_box(tab, chart)
    tab.mouse.move(box["x"] + part * box["width"], box["y"] + box["height"] / 2)


def shown_range(tab: Any, chart: str) -> tuple[int, int]:
    """The first and last step of a chart's data table, which has the points of the shown range."""
    details = tab.locator(f"#chart-{chart} details")
    details.evaluate("d => { d.open = false; d.open = true; }")
    cells = tab.locator(f"#chart-{chart} tbody td:first-child")
    cells.first.wait_for()
    texts = cells.all_inner_texts()
    details.evaluate("d => d.open = false")
    return int(texts[0].replace(",", "")), int(texts[-1].replace(",", ""))


def test_charts_are_drawn(browser: Any, report: Path) -> None:
    """Every figure has a canvas with ink in it, and in its legend the last values."""
    with Opened(browser, report) as tab:
        figures = tab.locator("figure").count()
        assert figures == 5
        ink = """canvas => { const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            return new Set(new Uint32Array(pixels.buffer)).size; }"""
        for canvas in tab.locator("figure canvas").all():
            assert canvas.evaluate(ink) > 20  # colours
        assert where(tab, "loss") == "last, step 99"
        windows = [
            r for r in pplmon.sinks.read_journal(report.parent) if r["kind"] == "report" and r["stage"] == "train"
        ]
        last = windows[-1]["numbers"]
        assert legend(tab, "tail")["share of the worst 1 %, train"] == f"{last['worst_1pct_share']:.4g}"


def test_hover_and_keys_give_the_same_values_in_every_chart(browser: Any, report: Path) -> None:
    """The cursor is one: each chart shows its values there, and the keyboard's are the mouse's, and the journal's."""
    rows = {
        r["step"]: r["numbers"]
        for r in pplmon.sinks.read_journal(report.parent)
        if r["kind"] == "judged" and r["stage"] == "train"
    }
    with Opened(browser, report) as tab:
        hover(tab, "loss", 0.3)
        at = where(tab, "loss")
        step = int(at.removeprefix("step "))
        assert 25 <= step <= 35
        by_mouse = {chart: legend(tab, chart) for chart in ("loss", "perplexity", "accuracy")}
        assert {where(tab, chart) for chart in by_mouse} == {at}
        assert float(by_mouse["loss"]["worst sequence"]) == pytest.approx(rows[step]["max_sequence_loss"], rel=1e-3)
        assert float(by_mouse["perplexity"]["perplexity, train"]) == pytest.approx(rows[step]["perplexity"], rel=1e-3)
        tab.mouse.move(0, 0)
        assert where(tab, "loss").startswith("last")
        tab.locator("#chart-loss .plot").focus()
        tab.keyboard.press("Home")
        for _ in range(step):
            tab.keyboard.press("ArrowRight")
        assert {chart: legend(tab, chart) for chart in by_mouse} == by_mouse
        said = tab.locator("#chart-loss .live")
        said.get_by_text(at).wait_for()
        assert f"worst sequence {by_mouse['loss']['worst sequence']} nats" in said.inner_text()
        assert said.get_attribute("aria-live") == "polite"


def test_keys_find_the_alert_and_its_evidence(browser: Any, report: Path) -> None:
    """Page Down goes to the alert, which is said; Enter opens its evidence."""
    with Opened(browser, report) as tab:
        tab.locator("details.event").evaluate("d => d.open = false")
        tab.locator("#chart-loss .plot").focus()
        tab.keyboard.press("PageDown")
        assert where(tab, "perplexity") == "step 70"
        tab.locator("#chart-loss .live").get_by_text("warning alert here").wait_for()
        tab.keyboard.press("Enter")
        assert tab.locator("details.event").evaluate("d => d.open")
        assert tab.evaluate("document.activeElement.textContent").startswith("warning step 70")


def test_the_heatmap_shows_the_planted_token(browser: Any, report: Path) -> None:
    """Its text is in the page and marked; pointing at it or going there tells target, prediction, probabilities, loss."""
    with Opened(browser, report) as tab:
        event = tab.locator("details.event")
        assert f"sample {DATASET_ROW}" in event.inner_text()
        planted = event.locator(".map .worst").first
        assert planted.inner_text() == " PLANTED"
        told = event.locator(".told").first
        planted.hover()
        by_mouse = told.inner_text()
        for part in ("target “ PLANTED”", "loss 12.", "nats", "p(target) ", "e-06", "predicted “the”", "p 0.6"):
            assert part in by_mouse
        tab.keyboard.press("Tab")
        planted.focus()
        tab.keyboard.press("ArrowRight")
        assert "target “ PLANTED”" in told.inner_text()
        tab.keyboard.press("ArrowLeft")
        assert told.inner_text() == by_mouse


def test_zoom_by_drag_wheel_and_keys_is_one_range_for_all(browser: Any, report: Path) -> None:
    """Each way shows a part of the run in every chart, and the whole again."""
    with Opened(browser, report) as tab:
        box = plot_box(tab, "loss")
        tab.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 50)
        tab.mouse.down()
        tab.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 60, steps=5)
        tab.mouse.up()
        dragged = shown_range(tab, "accuracy")
        assert 45 <= dragged[0] <= 55 and 75 <= dragged[1] <= 85
        plot_box(tab, "loss")
        tab.locator("#chart-loss .u-over").dblclick()
        assert shown_range(tab, "accuracy") == (0, 99)
        hover(tab, "loss", 0.5)  # chosen by the clicks before: the wheel is the chart's
        tab.mouse.wheel(0, -100)
        wheeled = shown_range(tab, "accuracy")
        assert wheeled[0] > 0 and wheeled[1] < 99
        tab.locator("#unzoom").click()
        assert shown_range(tab, "accuracy") == (0, 99)
        tab.locator("#chart-perplexity .plot").focus()
        tab.keyboard.press("+")
        assert shown_range(tab, "loss") != (0, 99)
        tab.locator("#chart-perplexity .plot").focus()
        tab.keyboard.press("Escape")
        assert shown_range(tab, "loss") == (0, 99)


def test_the_wheel_scrolls_the_page_until_a_chart_is_chosen(browser: Any, report: Path) -> None:
    """A reader who scrolls past charts is not caught by one."""
    with Opened(browser, report) as tab:
        hover(tab, "loss", 0.5)
        before = tab.evaluate("scrollY")
        tab.mouse.wheel(0, 200)
        tab.wait_for_timeout(500)
        assert tab.evaluate("scrollY") > before
        assert shown_range(tab, "loss") == (0, 99)


def test_two_fingers_zoom(browser: Any, report: Path) -> None:
    """A pinch on a phone shows a part of the run."""
    with Opened(browser, report, has_touch=True) as tab:
        box = plot_box(tab, "loss")
        session = tab.context.new_cdp_session(tab)

        def fingers(kind: str, *parts: float) -> None:
            points = [{"x": box["x"] + p * box["width"], "y": box["y"] + 80, "id": i} for i, p in enumerate(parts)]
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        fingers("touchStart", 0.45, 0.55)
        for spread in (0.1, 0.15, 0.2, 0.25):
            fingers("touchMove", 0.5 - spread, 0.5 + spread)
        fingers("touchEnd")
        low, high = shown_range(tab, "perplexity")
        assert low > 5 and high < 95


def test_tokens_as_x(browser: Any, report: Path) -> None:
    """The switch changes every chart's x, and the alert's mark with it."""
    with Opened(browser, report) as tab:
        tab.locator("[data-axis=tokens]").click()
        assert where(tab, "loss") == "last, 12.4k tokens"
        tab.locator("#chart-loss .plot").focus()
        tab.keyboard.press("PageDown")
        assert where(tab, "accuracy") == "8.8k tokens"  # 71 steps of 124
        tab.locator("#chart-loss .live").get_by_text("warning alert here").wait_for()


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_nothing_serious_for_accessibility(browser: Any, report: Path, scheme: str) -> None:
    """axe-core, with every part of the page open, and where it is not installed the names of what can be focused."""
    with Opened(browser, report, color_scheme=scheme, bypass_csp=True) as tab:
        tab.locator("details").evaluate_all("all => all.forEach(d => d.open = true)")
        nameless = tab.evaluate(
            "[...document.querySelectorAll('[tabindex], button, a, summary')].filter(e => !e.ariaLabel && !e.textContent.trim() "
            "&& !e.getAttribute('aria-labelledby')).map(e => e.outerHTML)"
        )
        assert nameless == []
        roles = tab.locator("figure[role=figure][aria-labelledby]")
        assert roles.count() == tab.locator("figure").count()
        if find_spec("axe_playwright_python") is None:
            pytest.skip("axe-playwright-python is not installed: only names and roles were looked at")
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(tab).response["violations"]
        grave = [v for v in found if v["impact"] in ("serious", "critical")]
        assert [(v["id"], [node["html"][:200] for node in v["nodes"]][:3]) for v in grave] == []


@pytest.mark.parametrize("hostile", HOSTILE, ids=["script", "attribute", "markup", "direction", "template", "long"])
def test_hostile_text_stays_text(browser: Any, tmp_path: Path, hostile: str) -> None:
    """A token, a run's name and a rule of any text are text: nothing runs, no element is made, no line is endless."""

    def rule(r: pplmon.Report) -> pplmon.Alert | None:
        return pplmon.Alert(hostile, f"step {r.step}: {hostile}", step=r.step) if r.step == 5 else None

    directory = tmp_path / (hostile.replace("/", "∕").replace("\ud800", "").replace("\x1b", "")[:50])
    page = pplmon.page(write_run(directory, planted=hostile, steps=12, spike=5, more_alerts=[rule])).save(
        tmp_path / "report.html"
    )
    assert page.stat().st_size < 500_000
    with Opened(browser, page) as tab:
        tab.locator("details").evaluate_all("all => all.forEach(d => d.open = true)")
        assert tab.evaluate("window.broken") is None
        assert tab.locator("img").count() == 0
        assert tab.locator("h1").count() == 1
        assert tab.evaluate("document.documentElement.scrollWidth") <= 1200
        text = tab.locator("details.event").first.inner_text()
        assert (hostile if hostile.isprintable() else hostile[1:5])[:30] in text
        assert "\u202e" not in tab.content()


def test_a_page_that_follows_keeps_its_zoom(browser: Any, tmp_path: Path) -> None:
    """It loads itself again, and shows what its reader had chosen, of a run that went on."""
    target = tmp_path / "report.html"
    write_run(tmp_path, steps=60, spike=None, close=False)
    pplmon.page(tmp_path, follow=1).save(target)
    with Opened(browser, target) as tab:
        tab.locator("#chart-loss .plot").focus()
        tab.keyboard.press("+")
        zoomed = shown_range(tab, "loss")
        write_run(tmp_path, steps=100, spike=None, close=False)
        pplmon.page(tmp_path, follow=1).save(target)
        tab.locator("#unzoom").focus()  # away from the chart: a page is not taken from under the reader's hands
        tab.get_by_text("100 steps").first.wait_for(timeout=10_000)
        assert shown_range(tab, "loss") == zoomed


def test_a_line_can_be_hidden(browser: Any, report: Path) -> None:
    """A click on its name in the legend takes it away, and its ink with it."""
    with Opened(browser, report) as tab:
        canvas = tab.locator("#chart-accuracy canvas")
        before = canvas.evaluate("canvas => canvas.toDataURL()")
        button = tab.locator("#chart-accuracy .legend button").first
        button.click()
        assert button.get_attribute("aria-pressed") == "false"
        assert canvas.evaluate("canvas => canvas.toDataURL()") != before


def test_a_notebook_draws_it_in_its_frame(browser: Any, report: Path, tmp_path: Path) -> None:
    """The frame has no storage and no origin of its own, and the charts are there all the same."""
    notebook = tmp_path / "notebook.html"
    notebook.write_text(f"<!doctype html><body>{pplmon.page(report.parent)._repr_html_()}</body>", encoding="utf-8")
    with Opened(browser, notebook) as tab:
        frame = tab.frame_locator("iframe")
        assert frame.locator("figure canvas").count() == 5
        frame.locator("#unzoom").wait_for()
        frame.locator("#chart-loss .plot").press("+")
        assert frame.locator("#unzoom").is_enabled()


def test_several_runs_lie_over_each_other(browser: Any, tmp_path: Path) -> None:
    """One number a chart, one line a run, and a table of what differs."""
    write_run(tmp_path / "calm", spike=None)
    write_run(tmp_path / "spiked", level=2.5)
    with Opened(browser, pplmon.page(tmp_path).save(tmp_path / "report.html")) as tab:
        assert list(legend(tab, "loss-max_sequence_loss")) == ["calm", "spiked"]
        table = tab.get_by_role("region", name="Table of the runs")
        assert "calm" in table.inner_text() and "best" in table.inner_text()


@pytest.mark.slow
def test_a_run_of_100_000_points_opens_at_once(browser: Any, tmp_path: Path) -> None:
    """Drawn in less than 2 s (the least of three: cores may be busy), and the keys find each spike at its height."""
    spikes = write_long_run(tmp_path, 100_000, 50)
    page = pplmon.page(tmp_path).save(tmp_path / "report.html")
    taken = []
    for _ in range(3):
        begun = time.monotonic()
        with Opened(browser, page) as tab:
            tab.locator("figure canvas").last.wait_for()
            taken.append(time.monotonic() - begun)
    assert min(taken) < 2
    with Opened(browser, page) as tab:
        tab.locator("#chart-loss .plot").focus()
        for step in spikes:
            tab.keyboard.press("PageDown")
            assert where(tab, "loss") == f"step {step:,}"
            assert float(legend(tab, "loss")["worst sequence"]) > 10
