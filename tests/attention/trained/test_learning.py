"""Forms that are trained from nothing find what a window of as many keys cannot see."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

import sparseworks as sw
from sparseworks.attention.trained import attach, training


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


def answers(rows, seed, length=48):
    """One of ten marks among the first 20 tokens; from token 32 on, every token is followed by its name."""
    g = torch.Generator().manual_seed(seed)
    ids, kind = torch.randint(60, 96, (rows, length), generator=g), torch.randint(0, 10, (rows,), generator=g)
    ids[torch.arange(rows), torch.randint(1, 21, (rows,), generator=g)] = 16 + kind
    ids[:, 0] = 0
    return ids, (3 + kind)[:, None].expand(-1, length - 32)


def taught(model, steps, rows=16):
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    for step in range(steps):
        ids, wanted = answers(rows, step)
        loss = F.cross_entropy(model(ids, use_cache=False).logits[:, 32:].flatten(0, 1), wanted.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@torch.no_grad()
def right(model):
    ids, wanted = answers(128, 10**6)
    return float((model(ids, use_cache=False).logits[:, 32:].argmax(-1) == wanted).float().mean())


def test_nsa_finds_by_the_blocks_it_chooses(tools):
    """Two of a query's four blocks are free; without them compressed keys, the first block and the recent keys are left."""
    model = tools.tiny(num_hidden_layers=1)
    attached = attach(model, sw.method("nsa", block=4, keep=4, local=1, span=4, stride=4, window=4))
    taught(model, 120)
    chosen = right(model)
    for module in attached.modules.values():
        module.spec = replace(module.spec, keep=2)
    assert chosen > right(model) + 0.25, chosen
