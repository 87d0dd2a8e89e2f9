"""Forms that are trained from nothing find what a window of as many keys cannot see."""

from __future__ import annotations

import torch

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
