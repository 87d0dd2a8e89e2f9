"""Sparsifiner where the partner of a token stands anywhere: predicted pairs against a window and random pairs of as many, tuned alike."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sparseworks as sw
from sparseworks.attention.trained import attach, distillation, training
from sparseworks.models.blocks import Block, BlockConfig, BlockModel

COLOURS, VALUES, SIDE = 8, 8, 6
TOKENS, KEPT = SIDE * SIDE, 9
METHOD = sw.method("sparsifiner", tokens=TOKENS, rank=16, density=KEPT / TOKENS)


def images(n, seed):
    """A questioner and a value of each colour somewhere on the grid, filler elsewhere; questioners have to name the value."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 8, (n, TOKENS), generator=g) + COLOURS * (1 + VALUES)
    value = torch.randint(0, VALUES, (n, COLOURS), generator=g)
    place, colour = torch.rand(n, TOKENS, generator=g).argsort(1), torch.arange(COLOURS).expand(n, -1)
    asks, answers = place[:, :COLOURS], place[:, COLOURS : 2 * COLOURS]
    ids.scatter_(1, asks, colour).scatter_(1, answers, COLOURS + colour * VALUES + value)
    return ids, torch.full((n, TOKENS), -100).scatter(1, asks, value)


class Grid(BlockModel):
    """One block over the tokens of a grid."""

    config_class = BlockConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed, self.places = nn.Embedding(COLOURS * (1 + VALUES) + 8, 32), nn.Embedding(TOKENS, 32)
        self.layers, self.norm, self.head = (
            nn.ModuleList([Block(config, 0)]),
            nn.RMSNorm(32, 1e-6),
            nn.Linear(32, VALUES),
        )
        self.post_init()
        nn.init.normal_(self.embed.weight, std=0.5)

    def forward(self, ids, **kwargs):
        return self.head(self.norm(self.layers[0](self.embed(ids) + self.places.weight, **kwargs)))


def fit(model, steps, seed, rate, attached=None, teacher=None):
    """By answers alone, or with gates by answers, the teacher's logits, and what the gates add."""
    own = [p for name, p in model.named_parameters() if "sparse_gate" not in name]
    gates = [] if attached is None else [{"params": attached.parameters(), "lr": 1e-2}]
    optimiser = torch.optim.Adam([{"params": own}, *gates], rate)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        ids, wanted = images(24, 10_000 * seed + step)
        if attached is None:
            loss = F.cross_entropy(model(ids).flatten(0, 1), wanted.flatten())
        else:
            attached.set_progress(step / steps)
            with torch.no_grad():
                told = teacher(ids)[wanted >= 0]
            with training(attached):
                logits = model(ids)[wanted >= 0]
            loss = F.cross_entropy(logits, wanted[wanted >= 0]) + distillation(logits, told) + attached.loss()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        plan.step()
    if attached is not None:
        attached.set_progress(1.0)
    return model.eval()


@torch.no_grad()
def right(model):
    ids, wanted = images(256, 10**8)
    return float((model(ids).argmax(-1) == wanted)[wanted >= 0].float().mean())


def fixed(kind, seed):
    """As many pairs, the same for all images: the 3 x 3 tokens around each, shifted in at the edges, or any."""
    if kind == "window":
        at = torch.arange(SIDE)
        near = (at - at.clamp(1, SIDE - 2)[:, None]).abs() <= 1
        return torch.kron(near.float(), near.float()).bool()
    order = torch.rand(TOKENS, TOKENS, generator=torch.Generator().manual_seed(seed)).fill_diagonal_(2)
    return torch.zeros(TOKENS, TOKENS).scatter(1, order.topk(KEPT).indices, 1.0).bool()


@pytest.mark.parametrize("seed", [0, 1])
def test_predicted_pairs_reach_partners_that_fixed_pairs_do_not(seed):
    torch.manual_seed(seed)
    config = BlockConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    dense = fit(Grid(config), 250, seed, 5e-3)
    found = {"dense": right(dense)}
    for kind in ("predicted", "window", "random"):
        model = copy.deepcopy(dense)
        torch.manual_seed(seed)
        attached = attach(model, METHOD)
        if kind != "predicted":
            mask = fixed(kind, seed)
            assert bool((mask.sum(1) == KEPT).all())
            attached.modules[0].bias = lambda heads, mask=mask: torch.where(mask, 0.0, -torch.inf)[None, None]
        fit(model, 160, 100 + seed, 3e-3, attached, dense)
        if kind == "predicted":
            with sw.attention(model, *METHOD.export()) as run:
                found[kind] = right(model)
                assert run.density() == pytest.approx(KEPT / TOKENS, abs=1e-3)
        else:
            with training(attached):
                found[kind] = right(model)
    assert found["predicted"] > max(found["window"], found["random"]) + 0.4, found
