"""The evidence of an alert: how much one sequence or token explains, text without being asked, the worst of the run."""

from __future__ import annotations

import pickle
from statistics import median
from typing import Any

import pytest
import torch

import pplmon
from pplmon import replay
from pplmon.measure.tokens import TokenStats
from pplmon.report.formulas import share_of_jump
from pplmon.sinks import Console, Journal, read_journal
from tests.models import VOCAB, loader, make_module

pl = pytest.importorskip("pytorch_lightning")


def stats(step: int, bad: float = 0.0) -> TokenStats:
    """Eight sequences of 20 tokens near 2 nats; the third may be ``bad`` nats worse."""
    generator = torch.Generator().manual_seed(step)
    nll = 2.0 + 0.05 * torch.rand(8, 20, generator=generator)
    nll[2] += bad
    return TokenStats.from_losses(nll, torch.ones(8, 20, dtype=torch.int64), vocab_size=50)


def test_a_share_is_that_part_of_the_excess_over_what_is_usual() -> None:
    """Three sequences: two as usual, one 6 nats above: it explains all; beside another as bad, half."""
    assert share_of_jump(8.0, 10, mean=4.0, all_tokens=30, usual=2.0) == pytest.approx(1.0)
    assert share_of_jump(8.0, 10, mean=6.0, all_tokens=30, usual=2.0) == pytest.approx(0.5)
    assert share_of_jump(8.0, 1, mean=6.0, all_tokens=30, usual=2.0) == pytest.approx(0.05)
    assert share_of_jump(8.0, 10, mean=1.9, all_tokens=30, usual=2.0) is None


def test_an_alert_says_how_much_the_worst_sequence_and_token_explain(tmp_path: Any) -> None:
    """Against the definition, from the journal; before a baseline is known there is no blame."""
    heard: list[pplmon.Alert] = []
    rules = [pplmon.Spike("cross_entropy"), pplmon.Above("max_token_loss", 5.0)]
    monitor = pplmon.Monitor(alerts=rules, on_alert=heard.append, sinks=[Journal(tmp_path)], min_severity="info")
    means = []
    for step in range(120):
        batch = stats(step, bad=6.0 if step in (5, 110) else 0.0)
        means.append(batch.nll.double().mean().item())
        monitor.observe(batch)
        monitor.step()
    monitor.close()
    assert [(alert.step, alert.rule) for alert in heard] == [(5, "Above"), (110, "Spike"), (110, "Above")]
    assert heard[0].blame_sequence is None
    usual = torch.tensor(sorted(means[56:88])).double()  # renewed at 104: 32 without the newest 16
    usual_mean = ((usual[15] + usual[16]) / 2).item()
    bad = stats(110, 6.0).nll.double()
    expected = (bad.view(8, 20)[2].mean().item() - usual_mean) * 20 / ((bad.mean().item() - usual_mean) * 160)
    for alert in heard[1:]:
        assert alert.blame_sequence == pytest.approx(expected, rel=1e-4)
        assert alert.blame_token == pytest.approx(expected / 20, rel=0.05)
        assert alert.worst_sequences[0].sequence == 2
    rows = [row for row in read_journal(tmp_path) if row["kind"] == "alert"]
    assert [row.get("blame_sequence") for row in rows] == [alert.blame_sequence for alert in heard]


GROUPS = ("web", "code", "books")


def grouped(step: int, bad: float = 0.0) -> tuple[TokenStats, torch.Tensor]:
    """Eight sequences of 20 tokens, of three groups in turn, each near its own loss; those of "code" may be ``bad`` nats worse."""
    generator = torch.Generator().manual_seed(step)
    group = torch.arange(8) % 3
    nll = 2.0 + group[:, None] + 0.05 * torch.rand(8, 20, generator=generator)
    nll[group == 1] += bad
    return TokenStats.from_losses(nll, torch.ones(8, 20, dtype=torch.int64), vocab_size=50), group


def test_an_alert_names_the_group_that_moved_through_a_checkpoint_and_in_a_replay(tmp_path: Any, capsys: Any) -> None:
    """Share of the rise by the definition, in journal, sentence, page, console; the replay of the resumed run blames alike."""
    heard: list[pplmon.Alert] = []
    saved: Any = None
    for steps in (range(70), range(70, 120)):
        monitor = pplmon.Monitor(
            alerts=[pplmon.Spike("cross_entropy"), pplmon.Above("max_token_loss", 7.0)],
            on_alert=heard.append,
            sinks=[Journal(tmp_path), Console()],
            tally=pplmon.TokenTally(extras=[pplmon.Groups(GROUPS)]),
            min_severity="info",
        )
        if saved is not None:
            monitor.load_state_dict(saved)
        for step in steps:
            # At 110 "code" gets worse, and at 112 no group does, but one token.
            batch, group = grouped(step, bad=3.0 if step == 110 else 0.0)
            if step in (5, 112):
                batch.nll[0] = 9.0
            monitor.observe(batch, group_ids=group)
            monitor.step()
        saved = pickle.loads(pickle.dumps(monitor.state_dict()))
        monitor.close()
    found = {(alert.step, alert.rule): (alert.blame_group, alert.blame_group_share) for alert in heard}
    assert found[5, "Above"] == (None, None), "too little is known"
    assert found[112, "Above"][0] == "web", "one token of its first sequence"
    past = [grouped(step) for step in range(56, 88)]  # renewed at 104: 32 without the newest 16
    codes = [batch.nll.view(8, 20)[group == 1].double().mean().item() for batch, group in past]
    means = [batch.nll.double().mean().item() for batch, _ in past]
    bad, group = grouped(110, 3.0)
    excess = (bad.nll.view(8, 20)[group == 1].double().mean().item() - median(codes)) * 60
    share = excess / ((bad.nll.double().mean().item() - median(means)) * 160)
    assert 0.9 < share < 1.1
    assert found[110, "Spike"] == ("code", pytest.approx(min(1.0, share), rel=1e-4))
    rows = [row for row in read_journal(tmp_path) if row["kind"] == "alert"]
    assert {(r["step"], r["rule"]): (r.get("blame_group"), r.get("blame_group_share")) for r in rows} == found
    sentence = f"The group code explains {min(1.0, share):.0%} of the jump of the cross-entropy."
    assert sentence in pplmon.page(tmp_path).html and sentence in capsys.readouterr().out
    series = replay.read(tmp_path)
    again = [fired.alert for fired in replay.run(series, replay.Rules([], series)).fired]
    assert {(alert.step, alert.rule): (alert.blame_group, alert.blame_group_share) for alert in again} == found


def test_the_worst_of_the_run_is_kept_and_shown_at_the_end(tmp_path: Any) -> None:
    """Over all windows, also across a checkpoint; in the journal as a row of kind worst."""
    first = pplmon.Monitor(every_n_steps=5, alerts=[])
    for step in range(20):
        first.observe(stats(step, bad=7.0 if step == 3 else 0.0))
        first.step()
    resumed = pplmon.Monitor(every_n_steps=5, alerts=[], sinks=[Journal(tmp_path)])
    resumed.load_state_dict(first.state_dict())
    for step in range(20, 40):
        resumed.observe(stats(step, bad=5.0 if step == 31 else 0.0))
        resumed.step()
    resumed.close()
    (row,) = [row for row in read_journal(tmp_path) if row["kind"] == "worst"]
    assert [(s["step"], s["sequence"]) for s in row["worst_sequences"][:2]] == [(3, 2), (31, 2)]
    assert {token["step"] for token in row["worst"]} == {3}
    assert row["numbers"] == {}


def test_a_tokenizer_of_the_module_or_its_data_is_found(tmp_path: Any) -> None:
    """Text without ``decode=``; what is given comes first."""

    class Tokenizer:
        def decode(self, ids: list[int]) -> str:
            return "|".join(f"t{i}" for i in ids)

    class Data(pl.LightningDataModule):
        tokenizer = Tokenizer()

        def train_dataloader(self) -> Any:
            return loader(8)

    for given in (None, lambda ids: "mine"):
        heard: list[pplmon.Alert] = []
        module = make_module(pl.LightningModule)
        monitor = pplmon.PerplexityMonitor(
            alerts=[pplmon.Above("max_token_loss", 1.0)], on_alert=heard.append, decode=given
        )
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=1,
            callbacks=[monitor],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, datamodule=Data())
        text = heard[0].worst[0].target_text
        assert text == ("mine" if given else f"t{heard[0].worst[0].target}")
        assert 0 <= heard[0].worst[0].target < VOCAB
