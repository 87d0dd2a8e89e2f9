"""`sparseworks features`: trains or reads an autoencoder, writes one page, and refuses in a sentence."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import sparseworks as sw
from sparseworks.cli.app import app
from sparseworks.cli.features import _effects
from sparseworks.core.errors import CalibrationError, CheckpointError, RecipeError

RUN = CliRunner()
TINY, SITE = "sparseworks/tiny-lm", "model.layers.1"


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("The cat sat on the mat and looked at the moon.\n\n" * 12)
    return path


def _answer(*args):
    result = RUN.invoke(app, ["features", TINY, *map(str, args), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def _embedded(page):
    text = page.read_text(encoding="utf-8")
    return json.loads(text.split('id="data">')[1].split("</script>")[0])


def test_an_autoencoder_is_trained_written_and_read_again(texts, tmp_path):
    folder, page = tmp_path / "sae", tmp_path / "page.html"
    given = ("--site", SITE, "--texts", texts, "--length", 16, "--out", page)
    made = _answer(*given, "--train", "-k", 4, "--width", 32, "--steps", 5, "--autoencoder", folder)
    assert len(made["features"]) == 32 and made["dead"] == sum(f["dead"] for f in made["features"])
    seen = _embedded(page)
    assert seen["tokens"] % 16 == 0 and sum(f["density"] for f in seen["features"]) == pytest.approx(4, rel=0.01)
    live = next(f for f in seen["features"] if not f["dead"])
    assert len(live["up"]) == len(live["down"]) == 8 and live["up"][0][1] > live["down"][0][1]
    assert max(live["examples"][0][2]) == 100 and live["examples"][0][0] == live["max"]
    again = _answer(*given, "--autoencoder", folder, "--features", 3)
    assert again["features"] == made["features"]
    assert sum("examples" in f for f in _embedded(page)["features"]) == 3
    with pytest.raises(CheckpointError, match="not empty"):
        _answer(*given, "--train", "--autoencoder", folder)


def test_wrong_usage(texts, tmp_path):
    given = ["features", TINY, "--site", SITE, "--texts", str(texts)]
    assert RUN.invoke(app, given).exit_code == 2
    with pytest.raises(CalibrationError, match="fewer than one row"):
        _answer("--site", SITE, "--texts", texts, "--length", 500, "--autoencoder", _saved(tmp_path / "sae"))

    with pytest.raises(RecipeError, match="no decoder row"):
        _answer("--site", SITE, "--texts", texts, "--length", 16, "--train", "--method", "bilinear_ae")


def _saved(folder):
    from sparseworks.codes.autoencoders.convert import save_saelens

    save_saelens(
        sw.train_autoencoder(torch.randn(64, 256), sw.method("topk_sae", k=2), width=8, steps=1, batch=32), folder
    )
    return folder


class Model(nn.Module):
    """A residual stream of 4, with what writes into it and what only reads."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.q_proj, self.o_proj, self.block, self.head = (
            nn.Linear(4, 4),
            nn.Linear(4, 4),
            nn.Sequential(nn.ReLU()),
            nn.Linear(4, 9),
        )

    def get_output_embeddings(self):
        return self.head


def test_effects_on_logits_only_where_there_are_any():
    model = Model()
    sae = sw.train_autoencoder(torch.randn(64, 4), sw.method("topk_sae", k=2), width=8, steps=1, batch=32)
    assert _effects(model, "q_proj", sae) is None and _effects(model, "q_proj:in", sae) is None
    atoms = sae.W_dec.detach()
    for site, space in (("block", atoms), ("o_proj", atoms), ("o_proj:in", atoms @ model.o_proj.weight.detach().T)):
        want = (space @ model.head.weight.detach().T).amax(1)
        assert torch.allclose(_effects(model, site, sae)[0][1][:, 0], want, atol=1e-6)
    model.head = nn.Linear(5, 9)
    assert _effects(model, "block", sae) is None
