"""Webhook and Notify against real hosts on this machine: well, slow, failing, dead. And their URLs stay secret."""

from __future__ import annotations

import copy
import io
import json
import logging
import pickle
import time
import urllib.error
import warnings
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

import pplmon
from pplmon.alerts.actions.chat_messages import as_discord, as_json, as_slack, shape_for
from pplmon.alerts.actions.rate_limit import Limit
from pplmon.alerts.actions.sender import Message, Remote
from pplmon.alerts.actions.webhook import _reason
from pplmon.alerts.actions.worker import Worker
from pplmon.report.worst import WorstSequence, WorstToken
from tests.http_server import Host, dead_url, host

SECRET = "T0KEN-B0T-xyzzy"
WORST = (
    WorstToken(loss=41.0, step=7, rank=1, position=3, target_text="<!channel> ```@everyone"),
    WorstToken(float("nan")),
)
ALERT = pplmon.Alert(
    "Spike", "step 7: jumped", "cross_entropy", 7, "train", 9.0, float("inf"), "critical",
    worst=WORST, worst_sequences=(WorstSequence(6.0, 64),), blame_sequence=0.61,
)  # fmt: skip


@pytest.fixture
def server() -> Iterator[Host]:
    with host() as running:
        yield running


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Remote, "_back_off_s", 0.01)


def alert(step: int, rule: str = "Mine", **fields: Any) -> pplmon.Alert:
    return pplmon.Alert(rule, f"step {step}: look", step=step, **fields)


def always(report: pplmon.Report) -> pplmon.Alert:
    return alert(report.step)


def watched(steps: int, on_alert: Any, sinks: Any = (), alerts: Any = (always,)) -> list[float]:
    """Run a plain loop; return the seconds of each ``monitor.step``."""
    monitor = pplmon.Monitor(every_n_steps=50, alerts=alerts, on_alert=on_alert, sinks=sinks)
    logits, targets = torch.randn(4, 16, 50), torch.randint(50, (4, 16))
    taken = []
    for _ in range(steps):
        monitor.observe(logits, targets)
        begun = time.perf_counter()
        monitor.step()
        taken.append(time.perf_counter() - begun)
    monitor.close()
    return taken


def test_an_alert_arrives_as_strict_json_with_its_evidence(server: Host) -> None:
    webhook = pplmon.Webhook(f"{server.url}/ok", rows=1)
    webhook(ALERT)
    webhook.drain()
    (content,) = server.wait_for(1)
    assert (content["kind"], content["rule"], content["step"], content["value"]) == ("alert", "Spike", 7, 9.0)
    assert content["threshold"] == "Infinity"
    assert [row["rank"] for row in content["worst"]] == [1]
    assert len(content["worst_sequences"]) == 1 and content["blame_sequence"] == 0.61
    headers = server.got[0][2]
    assert headers["Content-Type"] == "application/json" and headers["User-Agent"] == "pplmon"
    assert webhook.counts == {"sent": 1, "failed": 0, "dropped": 0, "held_back": 0}


def test_slack_and_discord_have_their_own_shapes() -> None:
    """By host; and no text of the training data calls anybody or breaks out of its frame."""
    assert [shape_for(h) for h in ("hooks.slack.com", "discord.com", "ptb.discord.com", "notslack.com", "x.de")] == [
        "slack", "discord", "discord", "json", "json",
    ]  # fmt: skip
    message = Message(ALERT, held_back=3, dropped=2)
    slack, discord = as_slack(message, 2), as_discord(message, 2)
    assert set(slack) == {"text"}
    assert slack["text"].startswith("*critical: Spike: train/cross_entropy*\n```\nstep 7: jumped\n")
    assert "&lt;!channel&gt;" in slack["text"] and "<!" not in slack["text"] and slack["text"].count("```") == 2
    assert (
        "61% of the jump of the cross-entropy" in slack["text"]
        and "rank 1" in slack["text"]
        and "3 more like it" in slack["text"]
    )
    assert set(discord) == {"content", "allowed_mentions"} and discord["allowed_mentions"] == {"parse": []}
    assert discord["content"].count("```") == 2
    long = Message(pplmon.Alert("r", "x" * 9000), 0, 0)
    assert len(as_slack(long, 1)["text"]) <= 3000 and len(as_discord(long, 1)["content"]) <= 2000
    assert as_json(message, 0)["worst"] == []
    assert pplmon.Webhook("https://hooks.slack.com/services/T/B/x")._shape == "slack"


def paired(steps: int, *monitors: pplmon.Monitor) -> list[list[float]]:
    """Step several monitors in turn over the same data; return the seconds of each one's ``step``."""
    logits, targets = torch.randn(4, 16, 50), torch.randint(50, (4, 16))
    taken: list[list[float]] = [[] for _ in monitors]
    for step in range(steps):
        for index in range(len(monitors)):
            which = (index + step) % len(monitors)  # each is the first in its turn
            monitors[which].observe(logits, targets)
            begun = time.perf_counter()
            monitors[which].step()
            taken[which].append(time.perf_counter() - begun)
    for monitor in monitors:
        monitor.close()
    return taken


@pytest.mark.parametrize("kind", ["dead", "slow", "fail500"])
def test_a_bad_host_delays_no_step(kind: str, tmp_path: Path) -> None:
    """Paired, in one process: an alert at every step, told to a function and told to a bad host."""
    with host(slow_s=3.0) as server:
        url = f"{dead_url() if kind == 'dead' else server.url}/{kind}/{SECRET}"
        webhook = pplmon.Webhook(url, every_s=0, timeout_s=0.5, queue=8, drain_s=0.2)
        handlers = {"without": lambda alert: None, "with": webhook}
        monitors = [
            pplmon.Monitor(alerts=[always], on_alert=handler, sinks=[pplmon.sinks.Journal(tmp_path / name)])
            for name, handler in handlers.items()
        ]
        with pytest.warns(RuntimeWarning) as caught:
            without, with_it = paired(120, *monitors)
        more = median(b - a for a, b in zip(without, with_it))
        print(
            f"{kind}: a step takes {median(with_it) * 1e6:.0f} us with, {median(without) * 1e6:.0f} us without, median "
            f"difference {more * 1e6:.0f} us; longest {max(with_it) * 1e3:.1f} and {max(without) * 1e3:.1f} ms; "
            f"{webhook.counts}"
        )
        assert more < 0.1  # no measure of speed, which is printed: a step that waited for one try would take 0.5 s
        texts = [text for text in (str(w.message) for w in caught) if "the training step waited" not in text]
        assert len(texts) == 1 and SECRET not in texts[0] and "127.0.0.1" in texts[0]
        counts = webhook.counts
        assert counts["sent"] == counts["held_back"] == 0 and counts["failed"] + counts["dropped"] == 120
        assert counts["dropped"] > 0 or kind != "slow"
        rows = [row for row in pplmon.sinks.read_journal(tmp_path / "with") if row["kind"] == "alert"]
        assert len(rows) == 120


def test_the_alert_is_on_disk_before_the_host_hears_of_it(tmp_path: Path) -> None:
    on_disk: list[bool] = []

    class Looks(pplmon.Webhook):
        def _send(self, message: Message) -> None:
            on_disk.append(f'"step": {message.alert.step}' in (tmp_path / "pplmon.jsonl").read_text())

    watched(2, Looks("http://127.0.0.1:9/"), [pplmon.sinks.Journal(tmp_path)])
    assert on_disk == [True] * len(on_disk) and on_disk


def test_it_tries_again_where_that_may_help(server: Host) -> None:
    """After 500 and 429 yes; after 410 and a redirect, which is not followed, no."""
    webhook = pplmon.Webhook(f"{server.url}/ok", every_s=0)
    server.answers = [500, 429]
    webhook(alert(1))
    server.wait_for(3)
    webhook.drain()
    assert len(server.got) == 3 and webhook.counts["sent"] == 1
    for path, code in (("/gone", 410), ("/moved", 302)):
        server.got.clear()
        webhook = pplmon.Webhook(server.url + path)
        webhook(alert(1))
        with pytest.warns(RuntimeWarning, match=f"it answered {code}"):
            webhook.drain()
        assert len(server.got) == 1 and webhook.counts["failed"] == 1


def test_a_full_queue_drops_and_counts_and_the_next_message_says_so(server: Host) -> None:
    server.slow_s = 0.4
    webhook = pplmon.Webhook(f"{server.url}/slow", every_s=0, queue=2)
    webhook(alert(0))
    server.wait_for(1)  # under way; two more fit behind it
    for step in range(1, 6):
        webhook(alert(step))
    assert webhook.counts["dropped"] == 3
    server.wait_for(3)
    webhook(alert(9))
    server.slow_s = 0.0
    webhook.drain()
    assert [content["dropped"] for content in server.wait_for(4)] == [0, 0, 0, 3]


def test_the_end_of_a_run_waits_for_what_is_under_way_but_not_for_ever(server: Host) -> None:
    server.slow_s = 0.3
    good = pplmon.Webhook(f"{server.url}/slow", every_s=0)
    watched(3, good)
    assert good.counts["sent"] == 3
    server.slow_s = 3.0
    bad = pplmon.Webhook(f"{server.url}/slow", every_s=0, drain_s=0.2)
    begun = time.monotonic()
    with pytest.warns(RuntimeWarning, match="had not delivered 3 alerts 0.2 s after the end"):
        watched(3, bad)
    bad.drain()  # the trainer's teardown comes after the end of fit: nothing is left to wait for
    assert time.monotonic() - begun < 1.5 and bad.counts["dropped"] == 3
    server.slow_s = 0.0
    bad(alert(10))  # a run that follows has a thread of its own
    bad.drain()
    assert bad.counts["sent"] == 1


def test_a_rule_may_send_so_often_and_no_alert_twice() -> None:
    limit = Limit(every_s=0.2)
    assert [limit.admit(alert(step)) for step in (1, 2, 2, 3)] == [0, None, None, None]
    assert limit.admit(alert(1, "Other")) == 0
    assert limit.admit(alert(1, severity="critical")) == 0  # worse news is news
    assert limit.admit(alert(1, metric="perplexity")) == 0
    time.sleep(0.25)
    assert limit.admit(alert(1)) is None  # a resumed run repeats steps
    assert limit.admit(alert(4)) == 3
    assert Limit(0).admit(alert(1)) == 0
    with pytest.raises(ValueError, match="every_s must be"):
        Limit(float("nan"))


def test_only_the_type_of_an_unknown_failure_is_told() -> None:
    def send(message: str) -> None:
        raise KeyError(message)

    worker = Worker(send, back_off_s=0.0)
    worker.put(SECRET)
    worker.drain()
    assert (worker.trouble, worker.failed) == ("KeyError", 1)
    assert (
        _reason(urllib.error.URLError(OSError(111, "Connection refused")))
        == "ConnectionRefusedError: Connection refused"
    )
    assert _reason(ValueError(SECRET)) == "ValueError"


BAD_URLS = [
    f"ftp://host/{SECRET}", f"http://host:port/{SECRET}", f"https://{SECRET}", f"http://[{SECRET}/", f"http://ho st/{SECRET}",
    f"https:///{SECRET}", f"http://host/{SECRET}/ä", SECRET, f"slack:{SECRET}",
]  # fmt: skip


@pytest.mark.parametrize("url", BAD_URLS)
def test_an_unusable_url_is_an_error_that_does_not_show_it(url: str) -> None:
    if url == f"https://{SECRET}":  # a host of that name: usable, and the host is shown
        assert repr(pplmon.Webhook(url)) == f"Webhook('https://{SECRET.lower()}/…')"
        return
    with pytest.raises(ValueError, match="http:// or https:// URL") as caught:
        pplmon.Webhook(url)
    assert SECRET.lower() not in "".join(_chain(caught.value)).lower()


def _chain(error: BaseException | None) -> list[str]:
    """What a traceback shows of an error."""
    import traceback

    return [] if error is None else traceback.format_exception(error)


def test_what_is_no_url_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"a URL is a string.*got a int"):
        pplmon.Webhook(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="PPLMON_UNSET is not set"):
        pplmon.Webhook("$PPLMON_UNSET")
    with pytest.raises(ValueError, match="shape must be one of json, slack, discord"):
        pplmon.Webhook("https://a.b/", shape="teams")
    with pytest.raises(ValueError, match="Webhook: tries must be an integer of at least 1, got 0"):
        pplmon.Webhook("https://a.b/", tries=0)


def test_secrets_are_nowhere(
    server: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in reprs, warnings, logs, the journal, checkpoints, pickles: in the path, the query, or as a password."""
    caplog.set_level(logging.DEBUG)
    base = server.url.replace("http://", f"http://me:{SECRET}@")
    webhook = pplmon.Webhook(f"{base}/fail500/{SECRET}?token={SECRET}#{SECRET}", every_s=0)
    port = server.server_address[1]
    notify = pplmon.Notify(f"json://me:{SECRET}@127.0.0.1:{port}/fail500/{SECRET}?token={SECRET}", every_s=0)
    journal = pplmon.sinks.Journal(tmp_path)
    monitor = pplmon.Monitor(alerts=[always], on_alert=[webhook, notify], sinks=[journal])
    with pytest.warns(RuntimeWarning) as caught:
        paired(3, monitor)
    state = monitor.state_dict()
    assert webhook.counts["failed"] == notify.counts["failed"] == 3
    assert server.got[0][2]["Authorization"].startswith("Basic ")
    assert any(path.endswith(f"?token={SECRET}") for path, _, _ in server.got)  # it did reach its host
    saved = io.BytesIO()
    torch.save({"state": state, "hyper": {"handlers": [webhook, notify]}}, saved)
    places = {
        "repr": repr([webhook, notify, vars(webhook), vars(notify), webhook._worker.__dict__]),
        "warnings": " ".join(str(w.message) for w in caught),
        "logs": caplog.text,
        "journal": (tmp_path / "pplmon.jsonl").read_text(),
        "state": json.dumps(state, default=str),
        "pickle": pickle.dumps([webhook, notify]).decode("latin-1"),
        "checkpoint": saved.getvalue().decode("latin-1"),
    }
    assert {place for place, text in places.items() if SECRET in text} == set()
    assert len(caught) == 2
    assert repr(webhook) == "Webhook('http://127.0.0.1/…')"
    assert repr(notify) == "Notify('json://…')"


def test_an_unpickled_webhook_finds_its_url_by_the_name_of_a_variable(
    server: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPLMON_HOOK", f"{server.url}/ok/{SECRET}")
    kept = pickle.loads(pickle.dumps(pplmon.Webhook("$PPLMON_HOOK")))
    kept(alert(1))
    kept.drain()
    assert len(server.got) == 1
    lost = pickle.loads(pickle.dumps(pplmon.Webhook(f"{server.url}/ok/{SECRET}")))
    lost(alert(1))
    with pytest.warns(RuntimeWarning, match=r'its URL stayed behind.*"\$NAME"'):
        lost.drain()
    copied = copy.deepcopy(pplmon.Webhook(f"{server.url}/ok"))
    copied(alert(2))
    copied.drain()
    assert len(server.got) == 2


def test_notify_tells_by_apprise(server: Host) -> None:
    notify = pplmon.Notify(server.url.replace("http", "json") + "/ok")
    notify(ALERT)
    notify.drain()
    (content,) = server.wait_for(1)
    assert content["title"] == "pplmon Spike: train/cross_entropy"
    assert content["type"] == "failure"
    assert "step 7: jumped" in content["message"] and "rank 1" in content["message"]
    assert notify.counts["sent"] == 1


@pytest.mark.parametrize(
    "url", [f"nosuch://{SECRET}", SECRET, f"json://a/{SECRET}, json://b/{SECRET}", f"slack://{SECRET}"]
)
def test_notify_refuses_what_apprise_does_not_know_without_showing_it(
    url: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ValueError, match="apprise knows no service") as caught:
        pplmon.Notify(url)
    shown = [*_chain(caught.value), caplog.text, *capfd.readouterr()]
    assert SECRET not in "".join(shown).split("raise ValueError")[-1] and SECRET not in caplog.text


def test_what_comes_later_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    pplmon.Notify("json://localhost/")
    caplog.set_level(logging.DEBUG)
    logging.getLogger("apprise").warning("still heard")
    assert "still heard" in caplog.text


def test_notify_without_apprise_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "apprise", None)
    with pytest.raises(ImportError, match=r"pip install 'pplmon\[apprise\]'"):
        pplmon.Notify("json://localhost/")


def test_a_forked_child_has_a_worker_of_its_own(server: Host) -> None:
    import os

    webhook = pplmon.Webhook(f"{server.url}/ok", every_s=0)
    webhook(alert(1))
    webhook.drain()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside a thread is what is tested
        child = os.fork()
    if child == 0:
        webhook(alert(2))
        webhook.drain()
        os._exit(0 if webhook.counts["sent"] == 2 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert [content["step"] for content in server.wait_for(2)] == [1, 2]
