from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import CalibrationError, ModelError
from sparseworks.exec.race import Entry, Race
from sparseworks.jobs import Goal, Recover, compress
from sparseworks.jobs.compress import _recovered
from sparseworks.jobs.setting import batches_of
from sparseworks.weights import SquareHead


def test_the_whole_job_on_any_module(net, batches, tmp_path: Path):
    before = {k: v.clone() for k, v in net.state_dict().items()}
    result = compress(net, sw.method("wanda", density=0.5), data=batches, progress=False)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    data = result.data
    assert data["density"] == pytest.approx(0.5, abs=1e-3)
    assert {"metric", "dense", "sparse"} <= set(data["quality"])
    assert {"dense_ms", "sparse_ms", "ratio"} <= set(data["speed"])
    assert data["bytes"]["dense"] == data["bytes"]["disk_dense"] == sum(p.numel() * 4 for p in net.parameters())
    result.save(tmp_path / "model")
    assert 0 < data["bytes"]["disk_sparse"] < data["bytes"]["disk_dense"]
    assert len(data["sites"]) == 6
    record = result.record
    assert (record.method, record.start, record.structure) == ("wanda", "post-training", "row")
    assert (record.examples, record.epochs, record.value) == (32, 0.0, data["quality"]["sparse"])
    assert set(record.densities) == set(result.supports) and record.parent == data["model"]["parameters"]
    assert record.inference_flops == 2 * sum(s.count for s in result.supports.values())
    assert all({"name", "density", "kernel", "reason"} <= set(s) and s["reason"] for s in data["sites"])
    json.dumps(data)
    x = batches[0]
    assert torch.allclose(result.model(x), result.masked(x), atol=1e-4)
    assert result.report.save(tmp_path / "report.html").stat().st_size > 1000


def test_quality_is_that_of_the_sparse_model(net, batches):
    good = compress(net, sw.method("wanda", density=0.9), data=batches, progress=False)
    bad = compress(net, sw.method("wanda", density=0.1), data=batches, progress=False)
    assert 0.99 < good.data["quality"]["sparse"] <= 1.0 + 1e-6
    assert bad.data["quality"]["sparse"] < good.data["quality"]["sparse"] - 0.02


def test_recovery_keeps_the_support_and_mends_the_outputs(net, batches):
    recovery = Recover(terms=(SquareHead(1.0),), steps=40, lr=3e-3, every=20)
    result = compress(net, sw.method("magnitude", density=0.2), data=batches, recovery=recovery, progress=False)
    quality = result.data["quality"]
    assert quality["sparse"] > quality["one_shot"] + 0.01
    assert result.record.epochs == 10 and "40 steps of recovery" in result.record.data
    for name, support in result.supports.items():
        weight = result.masked.get_parameter(f"{name}.weight")
        assert not bool(weight[~support.mask()].any())


def test_an_interrupted_job_goes_on_with_the_same_supports(net, batches, tmp_path: Path, monkeypatch):
    method = sw.method("sparsegpt", density=0.5)
    whole = compress(net, method, data=batches, progress=False)
    module = __import__("sparseworks.jobs.compress", fromlist=["plan"])
    real = module.plan
    monkeypatch.setattr(module, "plan", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        compress(net, method, data=batches, workdir=tmp_path, progress=False)
    monkeypatch.setattr(module, "plan", real)
    again = compress(net, method, data=batches, workdir=tmp_path, progress=False)
    assert again.supports == whole.supports
    for (name, a), (_, b) in zip(again.masked.named_parameters(), whole.masked.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_goal_searches_levels_per_site_and_shows_the_frontier(net, batches, tmp_path: Path, paced):
    heard: list[str] = []
    goal = Goal(max_drop=0.5)
    result = compress(
        net, sw.method("wanda"), goal=goal, data=batches, workdir=tmp_path, progress=False, say=heard.append
    )
    assert any("measured" in line for line in heard)
    assert len(result.data["frontier"]) >= 3
    assert (tmp_path / "search.json").exists()


def test_trials_of_a_search_are_refined_where_recovery_is_part_of_the_job(net, batches, paced, monkeypatch):
    module = __import__("sparseworks.jobs.compress", fromlist=["recover"])
    real, lengths = module.recover, []
    monkeypatch.setattr(module, "recover", lambda *a, **k: lengths.append(k["steps"]) or real(*a, **k))
    recovery = Recover(terms=(SquareHead(1.0),), steps=40, every=20)
    compress(net, sw.method("wanda"), goal=Goal(speedup=1.3), data=batches, recovery=recovery, progress=False)
    assert lengths[-1] == 40
    assert set(lengths[:-1]) == {2}


def test_nothing_to_calibrate_with_is_refused(net):
    with pytest.raises(CalibrationError, match="needs `data` or `examples`"):
        compress(net, sw.method("magnitude"))


def test_texts_without_a_tokenizer_are_refused(net):
    with pytest.raises(ModelError, match="token_batches"):
        compress(net, sw.method("magnitude"), data=["some text"])
    with pytest.raises(CalibrationError, match="not both"):
        compress(net, sw.method("magnitude"), data=["some text", torch.zeros(1)])


def test_texts_become_batches_of_the_kind_of_model():
    batches = batches_of(sw.load("sparseworks/tiny-lm"), ["Once upon a time there was a king. " * 40] * 4, length=32)
    assert batches[0]["input_ids"].shape[1] == 32


def test_a_goal_with_a_recipe_is_refused(net, batches):
    recipe = sw.Recipe.of(sw.method("magnitude"))
    with pytest.raises(CalibrationError, match="give a method, not a recipe"):
        compress(net, recipe, goal=Goal(speedup=1.5), data=batches, progress=False)


class Maps(nn.Module):
    """A stem, a block of two convolutions, and a head."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.stem, self.up = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.point, self.head = nn.Conv2d(2 * width, width, 1), nn.Linear(width, 4)

    def forward(self, x):
        return self.head(self.point(self.up(self.stem(x).relu()).relu()).relu().mean((2, 3)))


def test_convolutions_are_planned_at_the_examples(tmp_path: Path, monkeypatch):
    """The kernel of maps is said to win everywhere; the fast model equals the masked one, also when saved and loaded."""
    monkeypatch.setattr("sparseworks.exec.conv.kernel.why_missing", lambda: None)

    def race(layer, support, kernels, call, **_):
        return Race(100.0, {"taps-fp32": Entry(20.0, 5.0, 5.0, 5.0, True)} if "taps-fp32" in kernels else {})

    monkeypatch.setattr("sparseworks.exec.draw.race", race)
    monkeypatch.setenv("SPARSEWORKS_CACHE", str(tmp_path / "cache"))
    model, images = Maps().eval(), [torch.randn(4, 3, 12, 12) for _ in range(3)]
    examples = {"4 images": images[0], "1 image": images[0][:1]}
    result = compress(model, sw.method("wanda", density=0.3), data=images, examples=examples, progress=False)
    kernels = {s["name"]: s["kernel"] for s in result.data["sites"]}
    assert kernels == {"stem": "taps-fp32", "up": "taps-fp32", "point": "taps-fp32", "head": "dense"}
    assert result.plan.inputs == ("4x3x12x12", "1x3x12x12") and "4 images of 6x6" in result.plan.rows[2].reason
    torch.testing.assert_close(result.model(images[1]), result.masked(images[1]), rtol=1e-4, atol=1e-5)
    assert "taps-fp32" in result.report.save(tmp_path / "report.html").read_text()
    for layout in ("bitmask", "packed"):
        loaded = sw.load(result.save(tmp_path / layout, layout=layout), model=Maps(), planned=layout == "bitmask")
        assert isinstance(loaded.up, sw.SparseConv2d)
        torch.testing.assert_close(loaded(images[2]), result.masked(images[2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("losses", "shown"), [((), "3 steps"), ((0.5,), "loss 0.5000"), ((0.5, 0.4, 0.3), "0.5000 -> 0.3000")]
)
def test_a_short_recovery_shows_the_one_loss_it_has(losses, shown):
    assert _recovered(SimpleNamespace(steps=3, losses=losses)).endswith(shown)
