"""Search for sparse architectures: three steps, and an architecture that is judged by the masked network."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import BudgetError, CalibrationError, ModelError
from sparseworks.stream import sites
from sparseworks.weights.search import Cell, cells, search_sparse

SPACE = {"skip": nn.Identity, "conv": lambda: nn.Conv2d(4, 4, 3, padding=1), "point": lambda: nn.Conv2d(4, 4, 1)}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), Cell(SPACE), nn.Flatten(), nn.Linear(8 * 16, 3))


def batches(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(8, 1, 4, 4, generator=g), torch.randint(3, (8,), generator=g)) for _ in range(n)]


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


METHOD = sw.method("dass", density=0.1)


def test_every_site_is_masked_to_the_budget_and_the_rest_is_dense():
    model = net()
    found = search_sparse(model, METHOD, batches(3), batches(2, 1), loss, steps=(2, 3, 3), skip=["0", "3"])
    named = {s.name: s for s in sites(model)}
    assert set(found.supports) == {n for n in named if n.startswith("1.")} and set(found.genotypes) == {"1"}
    for name, support in found.supports.items():
        assert support.count == round(0.1 * named[name].size)
        assert bool((named[name].read(model)[~support.mask()] == 0).all())
    assert bool((named["0"].read(model) != 0).all()) and len(found.losses) == 3


def test_masks_are_learned_on_weights_that_stay():
    dense, model = net(), net()
    data, held_out = batches(3), batches(2, 1)
    search_sparse(dense, None, data, held_out, loss, steps=(4, 0, 0))
    found = search_sparse(model, METHOD, data, held_out, loss, steps=(4, 6, 0))
    magnitude = sw.prune(copy.deepcopy(dense), sw.method("magnitude", density=0.1), progress=False).supports
    for s in sites(model):
        mask = found.supports[s.name].mask()
        assert torch.equal(s.read(model)[mask], s.read(dense)[mask])
    assert any(found.supports[n] != magnitude[n] for n in magnitude)
    same = search_sparse(net(), METHOD, data, held_out, loss, steps=(4, 0, 0)).supports
    assert all(same[n] == magnitude[n] for n in magnitude)  # scores begin at the weights


def test_the_architecture_follows_the_validation_loss_of_the_masked_network_alone():
    model, data, held_out = net(), batches(3), batches(1, 1)
    seen = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            seen.append(self.param_groups[0]["params"][0].grad.clone())
            masked = copy.deepcopy(model)
            masked.zero_grad()
            loss(masked, held_out[0]).backward()
            seen.append(next(iter(cells(masked).values())).alpha.grad)
            assert float((masked[3].weight == 0).float().mean()) > 0.8
            return super().step(closure)

    first = model[1].alpha.detach().clone()
    options = {"architecture": lambda ps: Watched(ps, lr=0.5)}
    search_sparse(model, METHOD, data, held_out, loss, steps=(3, 3, 1), **options)
    assert len(seen) == 2 and torch.allclose(seen[0], seen[1], atol=1e-6)
    assert torch.allclose(model[1].alpha, first - 0.5 * seen[0])  # dense and mask steps left it alone


def test_what_cannot_work_is_refused():
    for train, validate in (([], batches(1)), (batches(1), [])):
        with pytest.raises(CalibrationError):
            search_sparse(net(), METHOD, train, validate, loss, steps=(1, 1, 1))
    with pytest.raises(BudgetError):
        search_sparse(net(), METHOD, batches(1), batches(1), loss, steps=(1, -1, 1))
    with pytest.raises(ModelError, match="learns no mask"):
        search_sparse(net(), "magnitude", batches(1), batches(1), loss, steps=(1, 1, 1))
