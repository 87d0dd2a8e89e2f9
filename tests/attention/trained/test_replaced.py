"""Modules in the place of attention: native sparse attention and mixture of sparse attention."""

from __future__ import annotations

import pytest
import torch

import sparseworks as sw
from sparseworks.attention import Heads, dense_attention
from sparseworks.attention.trained import Sizes, attach
from sparseworks.attention.trained.mosa import flops
from sparseworks.attention.trained.nsa import Past
from sparseworks.attention.trained.windows import overlaps
from sparseworks.core.errors import BudgetError, ModelError

SIZES = Sizes(32, 4, 2, 8)
NSA = sw.method("nsa", span=4, stride=2, block=8, keep=3, local=1, window=6)


def made(method, seed=0):
    torch.manual_seed(seed)
    return method.build(SIZES).eval()


# -- native sparse attention ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("span", "stride", "block"), [(4, 2, 8), (32, 16, 64), (4, 4, 4)])
def test_a_window_counts_in_a_block_by_what_it_has_there(span, stride, block):
    keys = 5 * block + 1
    share = overlaps(keys, span, stride, block)
    for i, J in [(0, 0), (block // stride - 1, 0), (block // stride - 1, 1), (block // stride, 1)]:
        inside = set(range(i * stride, i * stride + span)) & set(range(J * block, (J + 1) * block))
        assert share[i, J] * stride == len(inside)
    # The published sum over m < block / stride and n < span / stride of p[(block / stride) J + m - n]
    p = torch.rand(len(share))
    for J in range(5):
        at = [block // stride * J + m - n for m in range(block // stride) for n in range(span // stride)]
        assert float(p @ share[:, J].float()) == pytest.approx(
            sum(float(p[i]) for i in at if 0 <= i < len(p)), rel=1e-5
        )


def open_only(module, branch):
    """The gate on one branch: its sigmoid 1, the others' 0."""
    with torch.no_grad():
        module.gate[-1].weight.zero_()
        module.gate[-1].bias.copy_(
            torch.full((3, SIZES.heads), -1e4).index_fill(0, torch.tensor(branch), 1e4).flatten()
        )


@pytest.mark.parametrize(("branch", "changes"), [(1, {"keep": 5}), (2, {"window": 40})])
def test_nsa_is_dense_where_a_branch_covers_all_and_the_gate_is_on_it(branch, changes):
    module, x = made(NSA.with_(**changes)), torch.randn(2, 40, 32)
    open_only(module, branch)
    got, _ = module(x)
    with torch.no_grad():
        from sparseworks.attention.trained.rotary import rotate

        at = torch.arange(40)
        q = rotate(module.q_proj(x).unflatten(-1, (4, 8)).transpose(1, 2), at)
        parts = module.kv_proj(x).unflatten(-1, (6, 2, 8)).permute(2, 0, 3, 1, 4)
        out, _ = dense_attention(Heads(q, rotate(parts[branch], at), parts[3 + branch]))
        torch.testing.assert_close(got, module.o_proj(out.transpose(1, 2).flatten(2)), atol=1e-5, rtol=1e-4)


def test_nsa_keeps_the_future_out_and_generates_what_it_reads():
    module, x = made(NSA), torch.randn(2, 40, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole, _ = module(x)
        density = module.density
        changed = x.clone()
        changed[:, 23:] += 1
        torch.testing.assert_close(module(changed)[0][:, :23], whole[:, :23], atol=1e-5, rtol=1e-4)
        past = Past()
        parts = [module(x[:, :17], past=past)[0]] + [module(x[:, t : t + 1], past=past)[0] for t in range(17, 40)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-4)
    with torch.enable_grad():  # the differentiable way gives the same
        torch.testing.assert_close(module(x)[0], whole, atol=1e-5, rtol=1e-4)
    assert 0.3 < density < 1.5


def test_nsa_learns_what_to_select_by_the_compressed_branch_alone():
    module, x = made(NSA), torch.randn(2, 40, 32)
    module(x)[0].square().sum().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in module.parameters())
    module.zero_grad()
    module.branches(x)[1].square().sum().backward()
    assert all(p.grad is None or float(p.grad.abs().max()) == 0 for p in module.compress.parameters())


# -- mixture of sparse attention ------------------------------------------------------------------------------------


def explicit(module, x):
    """Every sparse head as a loop over its tokens."""
    from sparseworks.attention.trained.mosa import _half_rotated

    out = torch.zeros_like(x)
    r = module.router(x).sigmoid()
    for b in range(len(x)):
        for h in range(module.spec.heads):
            best = r[b, :, h].clone()
            best[0] = torch.inf
            at = best.topk(max(2, int(x.shape[1] / module.spec.ratio))).indices.sort().values
            q, k, v = (x[b, at] @ module.qkv[h]).chunk(3, -1)
            q, k = (_half_rotated(t, at) for t in (q, k))
            scores = q @ k.T * module.sizes.d**-0.5
            weights = scores.masked_fill(at > at[:, None], -torch.inf).softmax(-1)
            out[b, at] += (weights @ v * r[b, at, h, None]) @ module.out[h]
    return out


@pytest.mark.parametrize("ratio", [1.0, 4.0])
def test_mosa_is_attention_among_the_tokens_each_head_takes(ratio):
    module, x = made(sw.method("mosa", heads=3, dense=0, ratio=ratio)), torch.randn(2, 24, 32)
    torch.testing.assert_close(module(x)[0], explicit(module, x), atol=1e-5, rtol=1e-4)
    if ratio == 1.0:  # every token taken: dense attention, its rows times the router
        at = torch.arange(24)
        from sparseworks.attention.trained.mosa import _half_rotated

        q, k, v = torch.einsum("btw,hwd->bhtd", x, module.qkv).chunk(3, -1)
        dense, _ = dense_attention(Heads(_half_rotated(q, at), _half_rotated(k, at), v))
        dense = dense * module.router(x).sigmoid().transpose(1, 2).unsqueeze(-1)
        wanted = torch.einsum("bhtd,hdw->btw", dense, module.out)
        torch.testing.assert_close(module(x)[0], wanted, atol=1e-5, rtol=1e-4)
        assert module.density == pytest.approx(1.0)


def test_the_router_learns_only_by_the_rows_it_multiplies():
    module, x = made(sw.method("mosa", heads=3, dense=1)), torch.randn(2, 24, 32)
    module(x)[0].square().sum().backward()
    assert float(module.router.weight.grad.abs().max()) > 0
    at, real = module.taken(module.router(x).sigmoid().transpose(1, 2))
    ones = torch.ones(at.shape)
    module.zero_grad()
    module._sparse(x, ones, at, real).square().sum().backward()
    assert module.router.weight.grad is None


def test_expert_choice_looks_ahead_and_thresholds_do_not():
    module = made(sw.method("mosa", heads=6, dense=1))
    x = torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(3))
    changed = x.clone()
    changed[:, 20:] *= 3
    with torch.no_grad():
        leak = float((module(changed)[0] - module(x)[0])[:, :20].abs().max())
        module.fit_thresholds(torch.randn(8, 64, 32, generator=torch.Generator().manual_seed(4)))
        calm = float((module(changed)[0] - module(x)[0])[:, :20].abs().max())
        whole = module(x)[0]
        share = float(module.taken(module.router(x).sigmoid().transpose(1, 2))[1].sum() / (2 * 6 * 32))
    assert leak > 1e-3 and calm < 1e-6
    assert share == pytest.approx(0.25, abs=0.08)
    with torch.no_grad():
        torch.testing.assert_close(module(x[:, :20])[0], whole[:, :20], atol=1e-5, rtol=1e-4)


def test_many_sparse_heads_cost_what_few_dense_ones_do():
    dense = sw.method("mosa", heads=0, dense=8).trainable
    mixed = sw.method("mosa", heads=13, dense=4, ratio=4.0).trainable
    assert flops(mixed, SIZES, 256) <= flops(dense, SIZES, 256)
    with pytest.raises(BudgetError, match="ratio"):
        sw.method("mosa", ratio=0.5)


# -- in a model -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [NSA, sw.method("mosa", heads=4, dense=1)])
def test_they_stand_in_a_model_and_go_again(model, ids, method):
    before = model(ids, use_cache=False).logits
    attached = attach(model, method)
    found = model(ids, use_cache=False).logits
    found.square().mean().backward()
    assert all(p.grad is not None for p in attached.parameters())
    assert float((found - before).detach().abs().max()) > 1e-3 and 0 < attached.density < 1.5
    with pytest.raises(ModelError, match="use_cache=False"):
        model(ids, use_cache=True)
    attached.detach()
    torch.testing.assert_close(model(ids, use_cache=False).logits, before)
