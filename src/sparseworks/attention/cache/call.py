"""One call on a ragged cache: attend to what is held and to what is new, store it, let go of what the method gives up."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sparseworks.attention.cache.held import Held, KVPhase
from sparseworks.attention.cache.method import CacheMethod, kept_tokens
from sparseworks.attention.heads import Heads
from sparseworks.attention.kept import attend_kept, whole
from sparseworks.core.errors import ModelError
from sparseworks.exec.attention import merge
from sparseworks.exec.attention.checks import scale_of

if TYPE_CHECKING:
    from sparseworks.attention.cache.hf import RaggedLayer


def attend_cached(
    cache: RaggedLayer,
    q: Float[Tensor, "batch heads new d"],
    k: Float[Tensor, "batch kv_heads new d"],
    v: Float[Tensor, "batch kv_heads new d"],
    real: Bool[Tensor, "batch new"] | None,
    *,
    scale: float | None,
    first: Callable[[], Tensor],
) -> Float[Tensor, "batch heads new d"]:
    """Attention of new tokens to what the cache holds and to themselves; they are stored.

    Args:
        real: which new tokens are no padding; None: all.
        first: attention among the new tokens alone, for a cache that holds nothing yet.

    Raises:
        ModelError: padding among the new tokens of a later turn.
    """
    store, new = cache.holding, q.shape[2]
    positions = torch.arange(cache.seen, cache.seen + new).expand(len(q), -1)
    if not store.tokens:
        out = first()
        store.append(k, v, positions, real)
    elif new == 1:
        store.append(k, v, positions, real)
        out, _ = store.attend(q, scale=scale)
    else:
        if real is not None and not bool(real.all()):
            raise ModelError(
                "A later turn must bring as many real tokens for every sequence: padding in it is not supported."
            )
        parts = [store.attend(q, scale=scale), _among(q, k, v, scale)]
        out = merge(parts)[0]
        store.append(k, v, positions, real)
    count = torch.full((len(q),), new) if real is None else real.sum(1).cpu()
    cache.count = count if cache.count is None else cache.count + count
    cache.seen, cache.new = cache.seen + new, cache.new + new
    return out


def let_go(
    cache: RaggedLayer,
    method: CacheMethod | None,
    q: Float[Tensor, "batch heads new d"],
    *,
    first: bool,
    scale: float | None,
    layer: int,
    layers: int,
    module: nn.Module | None,
    hidden: Tensor | None,
) -> None:
    """What the method gives up after this call is freed."""
    phase: KVPhase = "decode" if q.shape[2] == 1 and not first else "prefill" if first else "between_turns"
    if method is None or not method.acts(phase, cache.new):
        return
    k, v, positions = cache.holding.padded()
    now = torch.full((len(q),), cache.seen - 1)
    assert cache.count is not None
    held = Held(
        k, v, positions, cache.holding.valid(), q.detach(), now, cache.count, scale_of(scale, q.shape[-1]), phase, layer, layers,
        cache.memory, module, hidden,
    )  # fmt: skip
    mask = kept_tokens(held, method)
    cache.new = 0
    if method.merge is not None:
        keys, values = method.merge(held, mask)
        cache.holding.set_keys(keys)
        cache.holding.set_values(values)
    if method.score is not None:
        method.score.kept(mask, held)
    cache.holding.keep(mask)


def _among(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
    """New tokens among themselves, causal."""
    heads = Heads(q, k, v, scale=scale)
    return attend_kept(heads, whole(heads))
