"""The benchmarks on a small transformer: options by their own seed, cuts measured, rows of several runs joined."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

import sparseworks as sw


@pytest.fixture
def script(monkeypatch):
    """Gives a module of `benchmarks/weights` by its name, found as when it is run."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks" / "weights"))
    return importlib.import_module


@pytest.fixture
def bench(script, monkeypatch, tmp_path):
    """A bench of a script with the smallest setting."""

    def build(name: str, kind: str):
        (tmp_path / "text.txt").write_text("to be or not to be, that is the question. " * 200)
        text = str(tmp_path / "text.txt")
        monkeypatch.setattr(sys, "argv", [name, "--quick", "--seeds", "1", "--threads", "1", "--text", text])
        shared, module = script("transformer"), script(name)
        args = shared.parsed(module.__doc__ or "", ("fade", "retrain", "factors", "oneshot"))
        return getattr(module, kind)(name, args)

    return build


def test_the_loss_of_a_batch_is_a_third_of_it_with_a_teacher(script):
    decoder = script("byte_decoder")
    size = decoder.Size(16, 2, 2, 8, 2)
    text = decoder.Bytes(["to be or not to be, that is the question. " * 20], size, "cpu", 4)
    model, teacher = decoder.Decoder(size), decoder.Decoder(size)
    windows = text.windows(text.batches(1, 0)[0])
    alone = decoder.Loss(model, None)(windows)
    with torch.no_grad():
        p, q = (m(windows[:, :-1]).log_softmax(-1) for m in (teacher, model))
        apart = (p.exp() * (p - q)).sum(-1).mean()
    torch.testing.assert_close(decoder.Loss(model, teacher)(windows), alone / 3 + 2 / 3 * apart)


def test_options_are_chosen_on_their_own_seed(bench):
    trainings = bench("nm_transformer", "Trainings")
    cast = {"cast": {f"decay {d:g}": sw.method("cast", train=sw.method("cast").train) for d in (1.0, 2.0)}}
    values = {"decay 1": 2.0, "decay 2": 1.5}
    seen = []

    def make(label, method, pattern, seed, option):
        seen.append((label, pattern, seed))
        return values[option]

    chosen = trainings.tuned(cast, "1:4", make)
    assert chosen["cast"][0] == "decay 2" and seen == [("cast, decay 1", "1:4", 100), ("cast, decay 2", "1:4", 100)]


def test_a_cut_is_measured_and_runs_are_joined(bench, script, tmp_path, monkeypatch):
    trainings = bench("nm_transformer", "Trainings")
    trainings.from_dense("dense", None, "", 0, "")
    trainings.from_dense("CAST", sw.method("cast"), "2:4", 0, "as it is")
    assert trainings.rows.rows[0].record.more["cut"] == 0.0
    assert (
        0.0 < trainings.rows.rows[1].record.more["cut"] < 0.5
    )  # nothing decayed in twelve steps: the cut takes half of the weights
    trainings.rows.store(tmp_path / "a")
    trainings.rows.store(tmp_path / "b")
    script("transformer").merged("nm_transformer", [tmp_path / "a.json", tmp_path / "b.json"], tmp_path / "c")
    head, joined = script("rows").read(tmp_path / "c.json")
    assert [r.label for r in joined] == ["dense", "CAST"] and head["setting"]["steps"] == trainings.steps
