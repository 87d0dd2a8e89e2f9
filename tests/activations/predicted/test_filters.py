"""Predicted filters: masks are those of a loop, a gather is the masked layer, and filters chosen for each image beat fixed and random ones."""

from __future__ import annotations

import copy

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import sparseworks as sw
from sparseworks.activations.predicted import FilterMass, filter_loss, filter_phase, predict_filters, predicted
from sparseworks.core.budget import Count, Mass
from sparseworks.core.errors import BudgetError, ModelError, RecipeError
from sparseworks.core.select import top

WIDTH = 12


def conv(channels: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH), nn.ReLU()]


def net(pooled: bool = True) -> nn.Sequential:
    pool = [nn.MaxPool2d(2)] if pooled else []
    last = [nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 10)]
    return nn.Sequential(*conv(1), *pool, *conv(WIDTH), *conv(WIDTH), *conv(WIDTH), *last)


def train(model: nn.Module, parameters, x, y, epochs: int, lr: float, loss) -> nn.Module:
    """In the mode that the model is in."""
    optimizer = torch.optim.AdamW(parameters, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-len(x) // 64))
    g = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for at in torch.randperm(len(x), generator=g).split(64):
            optimizer.zero_grad()
            loss(model(x[at]), y[at]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def test_filters_predicted_for_each_image_beat_fixed_filters_and_random_ones():
    torch.set_num_threads(1)
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(digits.images, dtype=torch.float32)[order, None] / 16, torch.tensor(digits.target)[order]
    x, y, x_test, y_test = x[:1000], y[:1000], x[1000:], y[1000:]
    correct = lambda m: 100 * float((m(x_test).argmax(1) == y_test).double().mean())  # noqa: E731
    torch.manual_seed(0)
    with torch.enable_grad():
        model = net().train()
        train(model, model.parameters(), x, y, 12, 5e-3, F.cross_entropy)
        dense = correct(model)
        predict_filters(model, sw.method("ftwt", activation=FilterMass(Mass(0.7))))
        before = copy.deepcopy(model.state_dict())
        for layer in predicted(model):  # the net stays as it is: only heads learn
            layer.training = True
            layer.head.train()
        heads = [p for layer in predicted(model) for p in layer.head.parameters()]
        train(model, heads, x, y, 12, 3e-2, lambda _out, _y: filter_loss(model))
    assert all(torch.equal(model.state_dict()[n], t) for n, t in before.items() if ".head." not in n)
    layers = predicted(model)
    filter_phase(model, learning=False)
    found = correct(model)
    counts, accuracy = [layer.kept.double().sum(1).mean() for layer in layers], [layer.accuracy for layer in layers]
    work = sum(layer.share for layer in layers) / 3
    others = []
    for kind in ("fixed", "random"):
        other = copy.deepcopy(model)
        g = torch.Generator().manual_seed(1)
        for layer, count in zip(predicted(other), counts, strict=True):
            layer.register_forward_hook(fixed(layer, round(float(count)), g if kind == "random" else None))
            layer.masking = False
        other(x)  # fixed filters are those of largest mean response on the training images
        others.append(correct(other))
    assert work < 0.52 and min(accuracy) > 0.72, (work, accuracy)
    assert found > max(others) + 10, (dense, found, others)


def fixed(layer, count, g):
    """Masks of the same number of filters for all images, or of random ones for each."""
    held = []

    def hook(module, args, out):
        if g is not None:
            kept = top(torch.rand(out.shape[:2], generator=g), count)
        else:
            held.append(top(out.amax(dim=(2, 3)).mean(0, keepdim=True), count))
            kept = held[0]
        return out * kept[:, :, None, None]

    return hook


@torch.no_grad()
def test_a_gather_is_the_masked_layer():
    torch.manual_seed(0)
    model = net().eval()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.2), m.running_var.uniform_(0.5, 2), m.weight.uniform_(0.5, 2), m.bias.normal_(0, 0.3)  # fmt: skip
    x = torch.randn(4, 1, 8, 8) * torch.tensor([0.1, 0.5, 1.0, 4.0]).view(4, 1, 1, 1)
    dense = model(x)
    predict_filters(model)
    assert len(predicted(model)) == 3  # the first has one input channel, which says nothing
    torch.testing.assert_close(model(x), dense)
    filter_phase(model)
    for layer in predicted(model):
        nn.init.normal_(layer.head[1].weight, 0, 80)
    masked, kept = model(x), [layer.kept for layer in predicted(model)]
    assert not torch.allclose(masked, dense, atol=1e-3) and any(len(k.unique(dim=0)) > 1 for k in kept)
    for i in range(4):
        torch.testing.assert_close(model(x[i : i + 1]), masked[i : i + 1], rtol=1e-4, atol=1e-5)
    for layer in predicted(model):
        layer.head[1].weight.zero_(), layer.head[1].bias.fill_(-1)
    torch.testing.assert_close(model(x[:1]), model(x)[:1])  # nothing at all is kept


def test_masks_equal_a_loop_and_all_of_the_mass_leaves_out_zeros_only():
    y = torch.randn(3, 9, 4, 4, generator=torch.Generator().manual_seed(0)).relu()
    y[0, 4] = 0
    for r in (0.5, 0.9):
        for image, mask in zip(y, FilterMass(Mass(r)).mask(y), strict=True):
            response = image.flatten(1).max(1).values
            order, held, wanted = response.argsort(descending=True).tolist(), 0.0, set()
            while held < r * float(response.sum()):
                wanted.add(order[len(wanted)])
                held = float(response[list(wanted)].sum())
            assert set(mask.nonzero().flatten().tolist()) == wanted
    assert FilterMass(Mass(1.0)).mask(y).equal(y.amax((2, 3)) > 0)


@pytest.mark.parametrize("joint", [False, True])
def test_heads_learn_from_their_own_loss_and_from_the_task_only_if_joint(joint):
    torch.manual_seed(0)
    model = predict_filters(net(), joint=joint).train()
    x, y = torch.randn(8, 1, 8, 8), torch.randint(0, 10, (8,))
    filter_phase(model)
    F.cross_entropy(model(x), y).backward()
    heads = [layer.head[1].weight for layer in predicted(model)]
    assert all((h.grad is not None and bool(h.grad.any())) is joint for h in heads)
    model.zero_grad()
    model(x)
    filter_loss(model).backward()
    assert all(bool(h.grad.any()) for h in heads)
    assert all(p.grad is None or not p.grad.any() for n, p in model.named_parameters() if "head" not in n)
    filter_phase(model, learning=False)
    model(x)
    assert float(filter_loss(model)) == 0.0 and not any(h.requires_grad for h in heads)


def test_refusals():
    with pytest.raises(RecipeError, match="filter_mass"):
        predict_filters(net(), "qsparse")
    with pytest.raises(ModelError, match="sequence"):
        predict_filters(nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(ModelError, match="predicted filters"):
        filter_phase(net())
    with pytest.raises(BudgetError, match="responses"):
        FilterMass(Count(3)).mask(torch.ones(1, 4, 2, 2))
