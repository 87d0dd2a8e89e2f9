"""A pretended device is as strict as a GPU about where tensors lie, and methods pass on it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparseworks.testing.device import check_device
from sparseworks.testing.pretend import PRETENDED, Elsewhere, pretended

KINDS = (
    "rigl", "hesso", "variational_dropout", "wanda", "h2o", "zipvl", "sparse_dllm", "seer_attention", "shadowllm", "omp", "topk_sae", "jumprelu_sae",
)  # fmt: skip


@pytest.fixture
def there():
    with pretended() as device:
        yield device


def test_tensors_of_both_devices_do_not_meet(there):
    x = torch.ones(3, 4).to(there)
    assert isinstance(x, Elsewhere) and x.device == PRETENDED and x.is_cuda
    for act in (
        lambda: x + torch.ones(4),
        lambda: torch.cat([x, torch.ones(1, 4)]),
        lambda: x.masked_fill(torch.ones(4) > 0, 0),
    ):
        with pytest.raises(RuntimeError, match="of the CPU"):
            act()
    with pytest.raises(RuntimeError, match="of the CPU"):
        torch.ones(3)[x[:, 0] > 0]
    with pytest.raises(TypeError, match="copy it to the CPU"):
        x.numpy()


def test_what_a_gpu_allows_is_allowed(there):
    x = torch.arange(6.0).to(there)
    assert (x * torch.tensor(2.0)).cpu().tolist() == [0, 2, 4, 6, 8, 10] and float(x[2]) == 2
    assert x[torch.tensor([0, 3])].tolist() == [0, 3]
    assert (
        torch.tensor([1, 2], device=there).device
        == torch.zeros(2, device=there).device
        == x.new_ones(1).device
        == there
    )
    assert torch.ones(2).to(x).device == there and x.to(torch.ones(1).double()).dtype is torch.float64


def test_modules_train_there_as_here(there):
    losses = []
    for device in ("cpu", there):
        torch.manual_seed(0)
        layer = nn.Linear(4, 2).to(device)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
        x = torch.randn(8, 4).to(device)
        for _ in range(3):
            optimizer.zero_grad()
            loss = layer(x).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", KINDS)
def test_methods_keep_what_they_make_where_the_model_is(name, there):
    assert check_device(name, there)
