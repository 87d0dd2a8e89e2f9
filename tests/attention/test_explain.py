"""What the heads of a model look at: recall and density are those of the map, planted heads are told apart, the page shows it."""

import json

import pytest
import torch
from typer.testing import CliRunner

import sparseworks as sw
from sparseworks.attention import Heads, Kept
from sparseworks.attention.explain import _facts, explain
from sparseworks.cli.app import app
from sparseworks.core.errors import CalibrationError, RecipeError
from sparseworks.core.pattern import Tile


def planted(rule) -> Heads:
    """One head whose attention lies where `rule(i, j)` says."""
    n = 64
    wanted = torch.tensor([[20.0 if rule(i, j) else 0.0 for j in range(n)] for i in range(n)])
    return Heads(wanted[None, None], torch.eye(n)[None, None], torch.eye(n)[None, None], scale=1.0)


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        (lambda i, j: i - j < 6, "local"),
        (lambda i, j: j < 4 or i - j < 4, "sink + local"),
        (lambda i, j: j in (17, 40), "columns"),
        (lambda i, j: i - j in (20, 36), "diagonals"),
    ],
)
def test_planted_heads_are_told_apart(rule, name):
    heads = planted(rule)
    mask = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)) < 0.35
    mask &= heads.allowed(Tile(4, 4))
    (fact,) = _facts(heads, Kept(mask, Tile(4, 4)))
    assert fact.pattern == name and fact.pattern_recall > 0.9 and fact.best >= fact.pattern_recall - 1e-6
    weights = heads.scores().softmax(-1)[0, 0]
    seen = Kept(mask, Tile(4, 4)).tokens(heads, slice(0, 64))[0, 0]
    assert fact.recall == pytest.approx(float((weights * seen).sum(-1).mean()), abs=1e-5)


def test_a_dense_model_keeps_everything_and_a_sparse_one_what_it_says():
    model = sw.load("sparseworks/tiny-lm").eval()
    ids = torch.randint(5, 4000, (1, 128), generator=torch.Generator().manual_seed(0))
    whole = explain(model, ids, sw.method("pooled_blocks", density=1.0))
    assert len(whole.heads) == 48 and all(h.recall == pytest.approx(1, abs=1e-4) for h in whole.heads)
    found = explain(model, ids, sw.method("oracle_blocks", density=0.3, pattern=sw.attention.blocks(16)))
    assert all(h.recall <= h.best + 1e-5 for h in found.heads)
    assert {h.layer for h in found.heads} == set(range(6)) and found.maps[0].shape == (8, 43, 43)
    with pytest.raises(CalibrationError, match="One text"):
        explain(model, ids[:, :1], "oracle_blocks")
    with pytest.raises(RecipeError, match="decoding only"):
        explain(model, ids, "quest")
    with pytest.raises(RecipeError, match="no places of a map"):
        explain(model, ids, "svg_ear")


def test_the_command_writes_a_page_and_plain_data(tmp_path):
    page = tmp_path / "attention.html"
    text = "The old house stood at the end of the road, and nobody had lived in it for years. " * 4
    args = ["attention", "sparseworks/tiny-lm", "--explain", text, "--block", "16", "--out", str(page), "--json"]
    done = CliRunner().invoke(app, args, catch_exceptions=False)
    data = json.loads(done.stdout)
    assert done.exit_code == 0 and data["method"] == "oracle_blocks" and len(data["heads"]) == 48
    shown = page.read_text(encoding="utf-8")
    assert shown.count("<figure") == 48 and 'id="recall"' in shown and "http" not in shown
