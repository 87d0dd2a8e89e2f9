"""Blockwise: a diffusion language model fills in block after block; what lies before and behind is a cache, thinned out once a block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparseworks.attention.cache.held import Held
from sparseworks.attention.cache.method import CacheMethod, kept_tokens
from sparseworks.core.errors import BudgetError, ModelError

if TYPE_CHECKING:
    from sparseworks.attention.attending import Attending


class Blockwise:
    """`(all tokens, columns of the block, step in the block) -> logits of the block`, the `call` of `models.masked_lm.denoise`.

    Steps 0 to `delay` compute all tokens; after step `delay` the keys and values outside the block are thinned out by the method
    of each layer, and later steps compute the block alone against them and its own (Sparse-dLLM, arXiv 2508.02558). The next
    block begins anew. Keys are those after the rotary embedding, so the model needs no cache of its own, only positions.

    Attributes:
        processed: tokens that went through the model so far, over sequences.
        nbytes: of keys and values held for the current block.
    """

    def __init__(self, run: Attending, model: nn.Module, *, delay: int = 1):
        if delay < 0:
            raise BudgetError(f"The delay is a number of steps of at least 0, got {delay}.")
        if not run.caching:
            raise ModelError(
                "No method of the cache is in force: `with sw.attention(model, 'sparse_dllm') as run: ...`."
            )
        self.run, self.model, self.delay = run, model, delay
        self.processed = 0
        self._block, self._step, self._tokens = slice(0, 0), 0, 0
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._memory: dict[int, dict[Any, Any]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of what is held."""
        return sum(t.numel() * t.element_size() for pair in self._layers.values() for t in pair)

    def __call__(
        self, tokens: Int[Tensor, "batch tokens"], at: slice, step: int
    ) -> Float[Tensor, "batch block vocabulary"]:
        """Logits of the tokens `at`."""
        if step <= self.delay:
            self._layers, self._memory = {}, {}
        self._block, self._step, self._tokens = at, step, tokens.shape[1]
        before, self.run.blockwise = self.run.blockwise, self
        try:
            if step <= self.delay:
                self.processed += tokens.numel()
                return self.model(tokens).logits[:, at]
            part = tokens[:, at]
            self.processed += part.numel()
            place = torch.arange(at.start, at.stop, device=tokens.device)[None]
            return self.model(part, position_ids=place).logits
        finally:
            self.run.blockwise = before

    def held(
        self, layer: int, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scale: float | None
    ) -> tuple[Tensor, Tensor]:
        """Keys and values that a layer attends to; called by its attention."""
        if self._step > self.delay:
            if layer not in self._layers:
                raise ModelError(
                    f"Layer {layer} holds nothing yet: step {self._step} of a block without those before it."
                )
            k, v = self._layers[layer]
            return torch.cat([k, key], dim=2), torch.cat([v, value], dim=2)
        if self._step == self.delay:
            self._layers[layer] = self._thinned(layer, module, query, key, value, scale)
        return key, value

    def _thinned(self, layer: int, module: nn.Module, query, key, value, scale: float | None) -> tuple[Tensor, Tensor]:
        outside = torch.ones(self._tokens, dtype=torch.bool, device=key.device)
        outside[self._block] = False
        at = outside.nonzero()[:, 0]
        k, v = key[:, :, at], value[:, :, at]
        method = self.run.caching.get(layer)
        if method is None:
            return k, v
        return _gathered(k, v, self._kept(method, layer, module, query, (k, v), at, scale), method)

    def _kept(self, method: CacheMethod, layer: int, module: nn.Module, query, pair, at: Tensor, scale) -> Tensor:
        k, v = pair
        batch, heads, n, d = k.shape
        held = Held(
            k, v, at.int().expand(batch, heads, -1), torch.ones(batch, heads, n, dtype=torch.bool, device=k.device),
            query[:, :, self._block], at.new_full((batch,), self._tokens - 1), at.new_full((batch,), n),
            d**-0.5 if scale is None else scale, "prefill", layer, self.run.count, self._memory.setdefault(layer, {}), module,
        )  # fmt: skip
        return kept_tokens(held, method)


def _gathered(k: Tensor, v: Tensor, mask: Tensor, method: CacheMethod) -> tuple[Tensor, Tensor]:
    counts = mask.sum(-1)
    if bool((counts != counts.flatten()[0]).any()):
        raise BudgetError(
            f"{method.name}: every head of a layer keeps as many tokens in a block-wise cache (pattern HEAD, a density)."
        )
    order = mask.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[..., : int(counts.flatten()[0])]
    order = order.sort(dim=-1).values.unsqueeze(-1).expand(-1, -1, -1, k.shape[-1])
    return k.gather(2, order), v.gather(2, order)
