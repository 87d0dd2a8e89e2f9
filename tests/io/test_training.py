from __future__ import annotations

import errno

import pytest
import torch
from torch import nn

from sparseworks.core.errors import CheckpointError
from sparseworks.io import folder as folders
from sparseworks.io.training import load_training, save_training

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.8, 0.9)),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
}


def setup(kind: str = "adamw"):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight  # tied
    return model, OPTIMIZERS[kind](model.parameters())


def steps(model, optimizer, n: int) -> None:
    for _ in range(n):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_resumed_run_equals_an_undisturbed_one(tmp_path, kind):
    path = tmp_path / "work" / "state.safetensors"
    model, optimizer = setup(kind)
    steps(model, optimizer, 3)
    save_training(path, model, optimizer, {"step": 3, "best": [0.5]}, extra={"a.b": torch.arange(3)})
    steps(model, optimizer, 3)
    other, fresh = setup(kind)
    torch.manual_seed(99)
    facts, extra = load_training(path, other, fresh)
    steps(other, fresh, 3)
    assert facts == {"step": 3, "best": [0.5]}
    assert torch.equal(extra["a.b"], torch.arange(3))
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())


def test_a_full_disk_leaves_the_previous_state(tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    model, optimizer = setup()
    save_training(path, model, optimizer, {"step": 1})
    monkeypatch.setattr(folders.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(CheckpointError, match=r"No space left.*untouched"):
        save_training(path, model, optimizer, {"step": 2})
    assert list(tmp_path.iterdir()) == [path]
    assert load_training(path, *setup())[0] == {"step": 1}


def test_damaged_state_is_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    save_training(path, *setup(), {})
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="not a readable training state"):
        load_training(path, *setup())


def test_state_of_another_model_is_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    save_training(path, *setup(), {})
    other = nn.Linear(3, 3)
    with pytest.raises(CheckpointError, match="belongs to another model or optimiser"):
        load_training(path, other, torch.optim.AdamW(other.parameters()))


def test_facts_that_are_not_plain_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="plain"):
        save_training(tmp_path / "state", *setup(), {"model": object()})
    assert not list(tmp_path.iterdir())
