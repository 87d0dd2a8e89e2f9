from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import CalibrationError
from sparseworks.jobs import Goal, Recover, compress
from sparseworks.weights import SquareHead


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


class Net(nn.Module):
    def __init__(self, width: int = 32, depth: int = 3):
        super().__init__()
        self.layers = nn.ModuleList(Block(width) for _ in range(depth))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 16, 32, generator=generator) for _ in range(4)]


def test_the_whole_job_on_any_module(net, batches, tmp_path: Path):
    before = {k: v.clone() for k, v in net.state_dict().items()}
    result = compress(net, sw.method("wanda", density=0.5), data=batches, progress=False)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    data = result.data
    assert data["density"] == pytest.approx(0.5, abs=1e-3)
    assert {"metric", "dense", "sparse"} <= set(data["quality"])
    assert {"dense_ms", "sparse_ms", "ratio"} <= set(data["speed"])
    assert data["bytes"]["dense"] == sum(p.numel() * 4 for p in net.parameters())
    assert len(data["sites"]) == 6
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


def test_a_goal_searches_levels_per_site(net, batches, tmp_path: Path):
    heard: list[str] = []
    goal = Goal(max_drop=0.5)
    result = compress(
        net, sw.method("wanda"), goal=goal, data=batches, workdir=tmp_path, progress=False, say=heard.append
    )
    assert any("measured" in line for line in heard)
    assert len(result.data["frontier"]) >= 3
    assert (tmp_path / "search.json").exists()


def test_nothing_to_calibrate_with_is_refused(net):
    with pytest.raises(CalibrationError, match="needs `data` or `examples`"):
        compress(net, sw.method("magnitude"))


def test_a_goal_with_a_recipe_is_refused(net, batches):
    recipe = sw.Recipe.of(sw.method("magnitude"))
    with pytest.raises(CalibrationError, match="give a method, not a recipe"):
        compress(net, recipe, goal=Goal(speedup=1.5), data=batches, progress=False)
