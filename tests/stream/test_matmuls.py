from __future__ import annotations

import pytest
import torch
from torch import nn

from sparseworks.core.stats import Gram
from sparseworks.stream import gather, sites
from sparseworks.stream.matmuls import Matmuls

GRAM = frozenset({Gram})


@pytest.mark.parametrize("how", ["grouped_mm", "eager"])
@pytest.mark.parametrize("name", ["mixtral", "gptoss"])
def test_an_expert_sees_the_tokens_routed_to_it_and_no_others(tiny, batch_for, name, how):
    model, batch = tiny(name), batch_for(name, padded=False)
    model.config._experts_implementation = how
    experts = model.model.layers[0].mlp.experts
    experts.config._experts_implementation = how
    seen = []
    handle = experts.register_forward_pre_hook(lambda m, args: seen.append(args))
    listed = sites(model, include=["*layers.0*gate_up_proj*"])
    found = gather(model, listed, GRAM, [batch])
    handle.remove()
    hidden, routed = seen[0][0], seen[0][1]
    assert len(listed) == 4
    for site in listed:
        x = hidden[(routed == site.expert).any(dim=-1)].double()
        assert found[site.name][Gram].count == len(x)
        assert torch.allclose(found[site.name][Gram].total, x.T @ x, atol=1e-4)


@pytest.mark.parametrize("name", ["mixtral", "gptoss"])
def test_both_implementations_of_experts_give_the_same_statistics(tiny, batch_for, name):
    results = []
    for how in ("grouped_mm", "eager"):
        model = tiny(name)
        model.config._experts_implementation = how
        for layer in model.model.layers:
            layer.mlp.experts.config._experts_implementation = how
        results.append(gather(model, sites(model), GRAM, [batch_for(name)]))
    for site in results[0]:
        assert torch.allclose(results[0][site][Gram].total, results[1][site][Gram].total, atol=1e-3), site


def test_attention_of_torch():
    model = nn.MultiheadAttention(8, 2, batch_first=True).eval()

    class Call(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = model

        def forward(self, x, y):
            return self.attention(x, y, y, need_weights=False)[0]

    x, y, whole = torch.randn(2, 3, 8), torch.randn(2, 5, 8), Call().eval()
    found = gather(whole, sites(whole), GRAM, [(x, y)])
    gram = lambda t: t.reshape(-1, 8).double().T @ t.reshape(-1, 8).double()  # noqa: E731
    assert torch.allclose(found["attention.in_proj_weight[q]"][Gram].total, gram(x), atol=1e-5)
    assert torch.allclose(found["attention.in_proj_weight[k]"][Gram].total, gram(y), atol=1e-5)
    assert torch.allclose(found["attention.in_proj_weight[v]"][Gram].total, gram(y), atol=1e-5)
    assert found["attention.out_proj"][Gram].count == 6


def test_an_encoder_layer_of_torch_on_its_fast_path_is_seen_all_the_same():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        found = gather(model, sites(model), GRAM, [x])
    assert {n: s[Gram].count for n, s in found.items()} == dict.fromkeys(found, 6)
    flat = x.reshape(-1, 8).double()
    assert torch.allclose(found["self_attn.in_proj_weight[q]"][Gram].total, flat.T @ flat, atol=1e-5)


def test_stacks_multiplied_all_at_once():
    class Experts(nn.Module):
        num_experts = 3

        def __init__(self):
            super().__init__()
            self.up = nn.Parameter(torch.randn(3, 4, 5))

        def forward(self, x):
            return torch.bmm(x, self.up.transpose(1, 2))

    model, x = Experts(), torch.randn(3, 6, 5)
    found = gather(model, sites(model), GRAM, [x])
    for e in range(3):
        assert torch.allclose(found[f"up[{e}]"][Gram].total, x[e].double().T @ x[e].double(), atol=1e-5)


def test_other_products_are_not_reported():
    model, seen = nn.Linear(4, 3), []
    with torch.no_grad(), Matmuls(model, sites(model), lambda site, x: seen.append(site.name)):
        torch.randn(2, 4) @ torch.randn(4, 3)
        assert seen == []
        model(torch.randn(2, 4))
    assert len(seen) == 1
