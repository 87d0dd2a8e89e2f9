"""NOSA: the two-part choice against a loop, and how few blocks move from step to step."""

from __future__ import annotations

import torch
from torch import nn

import sparseworks as sw
from sparseworks.attention import Heads
from sparseworks.attention.select import select
from sparseworks.attention.trained import Sizes

SPEC = {"block": 8, "keep": 12, "local": 2, "span": 8, "stride": 4}


def gated(method, seed=0):
    """A module with a gate whose A is not zero any more."""
    torch.manual_seed(seed)
    module = nn.Module()
    module.sparse_gate = method.build(Sizes(64, 4, 2, 16))
    with torch.no_grad():
        module.sparse_gate.a.fill_(1.0)
    return module


def drawn(tokens, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return (torch.randn(1, h, tokens, 16, generator=draw) for h in (4, 2, 2))


def test_the_choice_is_the_one_of_the_paper():
    method = sw.method("nosa", **SPEC, aware=3)
    module = gated(method)
    q, k, v = drawn(160)
    heads = Heads(2 * q, k, v, module=module)
    found = select(heads, method.export()[0]).mask[0]
    gate = module.sparse_gate
    with torch.no_grad():
        c = gate.a[:, None] * nn.functional.softplus(gate.w(v[0])[..., 0])
    starts = range(0, 160 - 7, 4)
    for t in (100, 131, 159):
        seen = [s for s in starts if s + 7 <= t]
        for g in range(2):
            means = torch.stack([k[0, g, s : s + 8].mean(0) for s in seen])
            share = sum((2 * q[0, h, t] @ means.T / 4).softmax(-1) for h in (2 * g, 2 * g + 1))
            own, kept = t // 8, {0, t // 8, t // 8 - 1}
            near = {
                j: max(float(share[i]) for i, s in enumerate(seen) if s < 8 * j + 8 and s + 8 > 8 * j)
                for j in range(1, own - 1)
            }
            kept |= set(sorted(near, key=near.get)[-3:])
            token = {
                j: max(float(c[g, s : s + 8].mean()) for s in starts if s < 8 * j + 8 and s + 8 > 8 * j)
                for j in range(own + 1)
                if j not in kept
            }
            kept |= set(sorted(token, key=lambda j: (token[j], j))[-(12 - len(kept)) :])
            for h in (2 * g, 2 * g + 1):
                assert set(found[h, t].nonzero()[:, 0].tolist()) == kept


def test_few_blocks_move_from_step_to_step():
    """As many blocks in all; most of them chosen by the tokens, or all by the query: what is new at each step."""
    moved = {}
    q, k, v = drawn(400)
    for name, aware in (("both", 2), ("query alone", 9)):
        method = sw.method("nosa", **SPEC, aware=aware)
        heads = Heads(3 * q, k, v, module=gated(method))
        mask = select(heads, method.export()[0]).mask[0]
        assert bool((mask[:, 250:].sum(-1) == 12).all())
        moved[name] = float((mask[:, 251:] & ~mask[:, 250:-1]).sum(-1).float().mean())
    assert moved["both"] < 2.5  # what the query may choose, and a little drift
    assert moved["query alone"] > 2.5 * moved["both"], moved
