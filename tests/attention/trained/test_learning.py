"""Forms that are trained from nothing find what a window of as many keys cannot see."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sparseworks as sw
from sparseworks.attention.trained import Sizes, attach, training
from sparseworks.attention.trained.rotary import rotate


def test_dma_learns_to_keep_what_will_be_asked_for(tools):
    """Eight of 48 keys: by what the values say the layer finds the mark, which the last eight keys never hold."""
    found = {}
    for name in ("dma", "window"):
        model = tools.tiny(num_hidden_layers=1)
        attached = attach(model, sw.method("dma", keep=8))
        (gate,) = attached.modules.values()
        if name == "window":
            near = torch.ones(48, 48).tril().triu(-7) > 0
            gate.bias = lambda heads, near=near: torch.where(near, 0.0, -torch.inf)[None, None]
        with training(attached):
            found[name] = tools.learn(model, 50)
        if name == "dma":
            ids, wanted = tools.needles(128, 10**6)
            with torch.no_grad(), sw.attention(model, *attached.method.export()) as run:
                right = model(ids, use_cache=False).logits[:, -1].argmax(-1) == wanted
            assert float(right.float().mean()) == found["dma"] and run.density() < 0.35
    assert found["dma"] > 0.9 and found["window"] < 0.3, found


LENGTH, ASKED = 96, 16
SIZES = Sizes(64, 4, 2, 16)


def answers(rows, seed):
    """One of ten marks, 16 tokens or more before the questions that stand at the end, each of which asks for its name."""
    g = torch.Generator().manual_seed(seed)
    ids, kind = torch.randint(60, 96, (rows, LENGTH), generator=g), torch.randint(0, 10, (rows,), generator=g)
    ids[torch.arange(rows), torch.randint(1, LENGTH - ASKED - 16, (rows,), generator=g)] = 16 + kind
    ids[:, 0], ids[:, -ASKED:] = 0, 2
    return ids, kind[:, None].expand(-1, ASKED)


class Full(nn.Module):
    """Rotary attention to all earlier tokens, or to the last `window`, with as many heads."""

    def __init__(self, window=LENGTH):
        super().__init__()
        self.qkv, self.out = nn.Linear(64, 128, bias=False), nn.Linear(64, 64, bias=False)
        self.seen = torch.ones(LENGTH, LENGTH).tril().triu(1 - window) > 0

    def forward(self, x):
        parts = self.qkv(x).unflatten(-1, (8, 16)).transpose(1, 2)
        q, k, v = parts.split((4, 2, 2), dim=1)
        q, k = rotate(q, torch.arange(LENGTH)), rotate(k, torch.arange(LENGTH))
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=self.seen, enable_gqa=True)
        return self.out(found.transpose(1, 2).flatten(2)), None


class Reader(nn.Module):
    """One layer of attention, nothing else between embedding and answer."""

    def __init__(self, attend):
        super().__init__()
        self.embed, self.attend, self.head = nn.Embedding(96, 64), attend, nn.Linear(64, 10)
        self.norms = nn.ModuleList(nn.RMSNorm(64) for _ in range(2))
        nn.init.normal_(self.embed.weight, std=0.3)

    def forward(self, ids):
        x = self.embed(ids)
        return self.head(self.norms[1](x + self.attend(self.norms[0](x))[0]))[:, -ASKED:]


def taught(attend, seed, steps):
    torch.manual_seed(seed)
    model = Reader(attend())
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    for step in range(steps):
        ids, wanted = answers(16, 10_000 * seed + step)
        loss = F.cross_entropy(model(ids).flatten(0, 1), wanted.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


@torch.no_grad()
def right(model):
    ids, wanted = answers(128, 10**6)
    return float((model(ids).argmax(-1) == wanted).float().mean())


@pytest.mark.parametrize("seed", [0])
def test_nsa_finds_by_the_blocks_it_chooses_what_a_dense_layer_finds(seed):
    """By two free blocks of a query's four; a window of as many pairs, and the layer with no block free, do not."""
    method = sw.method("nsa", block=4, keep=4, local=1, span=4, stride=4, window=4)
    model = taught(lambda: method.build(SIZES), seed, 170)
    found = {"nsa": right(model)}
    density = model.attend.density
    model.attend.spec = replace(model.attend.spec, keep=2)  # the first block and the query's own
    found["nothing chosen"] = right(model)
    width = round(LENGTH * (1 - (1 - density) ** 0.5)) + 1
    found |= {"dense": right(taught(Full, seed, 170)), "window": right(taught(lambda: Full(width), seed, 170))}
    assert density < 0.62, density
    assert found["nsa"] > found["dense"] - 0.02, found
    assert found["nsa"] > max(found["window"], found["nothing chosen"]) + 0.4, found
