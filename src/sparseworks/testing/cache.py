"""What every method of the KV cache must do: `check_cache_method`. What every store must do: `check_store`."""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor

from sparseworks.attention.cache.held import Held
from sparseworks.attention.cache.method import CacheMethod, kept_tokens
from sparseworks.attention.cache.store import RaggedStore
from sparseworks.attention.masks import Window
from sparseworks.core.budget import Count, Density
from sparseworks.core.recipe import Recipe
from sparseworks.testing.examples import require


def check_cache_method(method: CacheMethod | str, *, tokens: int = 96) -> None:
    """Raise AssertionError unless `method` keeps what every method must.

    A full budget keeps all; kept tokens are the best-scored and as many as the budget says; bytes of the store fall with them;
    what `always` names stays; a batch is as its sequences one by one; selection is deterministic; a recipe brings it back.
    """
    method = CacheMethod.of(method)
    held = example_held(tokens)
    if method.score is not None:
        _check_budget(held, method)
    _check_batch(held, method)
    mask = kept_tokens(fresh(held), method)
    require(torch.equal(mask, kept_tokens(fresh(held), method)), f"{method.name}: the same cache gave two answers.")
    require(bool(mask.any(-1).all()), f"{method.name}: a head keeps nothing.")
    if method.always is not None:
        from sparseworks.attention.cache.method import _forced

        require(not bool((_forced(held, method) & ~mask).any()), f"{method.name}: what always stays went.")
    recipe = Recipe.of(method, kind=CacheMethod)
    require(Recipe.from_yaml(recipe.to_yaml()) == recipe, f"{method.name}: its recipe does not bring it back.")


def _check_budget(held: Held, method: CacheMethod) -> None:
    whole = method.with_(budget=Density(1.0), depth="once")
    require(bool(kept_tokens(fresh(held), whole).all()), f"{method.name}: a full budget lets tokens go.")
    n, heads = held.k.shape[2], held.k.shape[1]
    small = method.with_(budget=Count(24), depth="once", always=Window(4))
    mask = kept_tokens(fresh(held), small)
    require(
        int(mask.sum()) == len(mask) * heads * 24, f"{method.name}: keeps {int(mask.sum())} tokens, not the budget."
    )
    store = stored(held)
    before = store.nbytes
    store.keep(mask)
    bound = ceil(before * (24 + 16) / n)
    require(store.nbytes <= bound, f"{method.name}: {before} bytes became {store.nbytes}, more than {bound}.")


def _check_batch(held: Held, method: CacheMethod) -> None:
    both = kept_tokens(fresh(held), method)
    for b in range(len(held.q)):
        one = slice(b, b + 1)
        parts = {n: getattr(held, n)[one] for n in ("k", "v", "positions", "valid", "q", "now", "seen")}
        alone = kept_tokens(Held(**{**vars(held), **parts, "memory": {}}), method)
        require(torch.equal(alone, both[one]), f"{method.name}: a sequence alone keeps other tokens.")


def example_held(tokens: int = 96, *, queries: int | None = None, seed: int = 0) -> Held:
    """Two sequences of 4 query and 2 key heads of 16, after a prompt."""
    draw = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, h, tokens, 16, generator=draw) for h in (4, 2, 2))
    last, seen = torch.full((2,), tokens - 1), torch.full((2,), tokens)
    at = torch.arange(tokens, dtype=torch.int32).expand(2, 2, -1)
    q = q if queries is None else q[:, :, -queries:]
    return Held(k, v, at, torch.ones_like(at, dtype=torch.bool), q, last, seen, 0.25, "prefill", 1, 4, {})


def fresh(held: Held) -> Held:
    """The same, with nothing remembered."""
    return Held(**{**vars(held), "memory": {}})


def stored(held: Held) -> RaggedStore:
    """A store that holds these tokens."""
    batch, heads, _, d = held.k.shape
    store = RaggedStore(batch, heads, d)
    store.append(held.k, held.v, held.positions[:, 0].long())
    return store


def dense(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention of queries to all keys, heads shared in groups."""
    group = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(group, 1) for t in (k, v))
    return (q @ k.mT * scale).softmax(-1) @ v
