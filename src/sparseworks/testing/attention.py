"""What every method of attention must do, whatever it selects by: `check_attention_method`."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseworks.attention import AttentionMethod, Clip, Heads, sparse_attention
from sparseworks.attention.kept import Kept
from sparseworks.core.budget import Budget, Density, Mass, Threshold
from sparseworks.core.recipe import Recipe
from sparseworks.testing.examples import require

CLIP = Clip(frames=4, height=4, width=8)


def check_attention_method(method: AttentionMethod | str, *, tokens: int = 128) -> None:
    """Raise AssertionError unless `method` keeps what every method must.

    A full budget is dense attention to 1e-5; every query keeps a key; no output hears of the future; a batch is as its
    sequences one by one; selection is deterministic; the density that is reported is the counted one; a recipe brings it back.
    """
    method = AttentionMethod.of(method)
    causal = method.order is None and not getattr(method.score, "bidirectional", False)
    for phase in method.phases:
        heads = example_heads(1 if phase == "decode" else tokens, tokens, causal=causal)
        _check_full_budget(heads, method)
        out, kept = _run(heads, method)
        require(torch.equal(out, _run(heads, method)[0]), f"{method.name}: the same call gave two results.")
        if kept is not None:
            _check_kept(heads, kept, method)
        if causal and phase == "prefill":
            _check_future(heads, out, method)
        _check_batch(heads, out, method)
    recipe = Recipe.of(method, kind=AttentionMethod)
    require(Recipe.from_yaml(recipe.to_yaml()) == recipe, f"{method.name}: its recipe does not bring it back.")


def example_heads(queries: int, keys: int, *, causal: bool = True, seed: int = 0) -> Heads:
    """Two sequences of 4 query and 2 key heads of 16; neighbouring tokens are alike."""
    draw = torch.Generator().manual_seed(seed)
    q, k, v = (_alike(torch.randn(2, h, keys, 16, generator=draw)) for h in (4, 2, 2))
    clip = CLIP if not causal and keys == CLIP.tokens else None
    return Heads(q[:, :, keys - queries :], k, v, causal=causal, layer=3, layers=4, step=30, steps=50, clip=clip)


def _alike(x: Tensor) -> Tensor:
    noise, out = x.unbind(2), [x[:, :, 0]]
    for e in noise[1:]:
        out.append(0.9 * out[-1] + 0.44 * e)
    return torch.stack(out, 2)


def _run(heads: Heads, method: AttentionMethod) -> tuple[Tensor, Kept | None]:
    (out, _), kept = sparse_attention(heads.with_(memory={}), method)
    return out, kept


def full(budget: Budget) -> Budget:
    """The budget of that kind that keeps everything."""
    return (
        Mass(1.0) if isinstance(budget, Mass) else Threshold(-1e30) if isinstance(budget, Threshold) else Density(1.0)
    )


def _check_full_budget(heads: Heads, method: AttentionMethod) -> None:
    if method.score is None:
        return
    dense = heads.scores().softmax(-1) @ heads.shared(heads.v)
    whole = method.with_(budget=full(method.budget), score=method.score.everything())
    out, kept = _run(heads, whole)
    require(kept is not None and kept.density(heads) > 1 - 1e-6, f"{method.name}: a full budget leaves pairs out.")
    error = float((out - dense).abs().max())
    require(error <= 1e-5, f"{method.name}: with a full budget it differs from dense attention by {error:.1e}.")


def _check_kept(heads: Heads, kept: Kept, method: AttentionMethod) -> None:
    pairs = kept.tokens(heads, slice(0, heads.queries)).expand(heads.batch, heads.heads, -1, -1)
    attends = torch.ones_like(pairs[..., 0]) if kept.queries is None else kept.queries.expand_as(pairs[..., 0])
    require(bool((pairs.any(-1) | ~attends).all()), f"{method.name}: a query keeps no key.")
    spent = 0.0 if kept.rest is None else kept.rest.sum().item()
    require(
        spent >= 0 and (kept.rest is None) == (method.rest is None), f"{method.name}: what its rest spends is not said."
    )
    counted = (pairs.sum().item() + spent) / (heads.batch * heads.heads * int(heads.pairs(kept.unit).sum()))
    reported = kept.density(heads)
    require(abs(counted - reported) < 1e-5, f"{method.name}: reports density {reported}, counted are {counted}.")


def _check_future(heads: Heads, out: Tensor, method: AttentionMethod) -> None:
    """Blocks chosen for early queries may depend on later queries of their row of units, never on later keys' values."""
    half = heads.keys // 2
    v = heads.v.clone()
    v[:, :, half:] += 10
    changed, _ = _run(heads.with_(v=v), method)
    require(torch.allclose(changed[:, :, :half], out[:, :, :half], atol=1e-5), f"{method.name}: the future is heard.")


def _check_batch(heads: Heads, out: Tensor, method: AttentionMethod) -> None:
    for b in range(heads.batch):
        q, k, v = (t[b : b + 1] for t in (heads.q, heads.k, heads.v))
        alone, _ = _run(heads.with_(q=q, k=k, v=v), method)
        require(torch.allclose(alone, out[b : b + 1], atol=1e-5), f"{method.name}: a sequence alone differs.")
