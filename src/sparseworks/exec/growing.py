"""Caches of transformers that grow in place: `KeyValueCache` behind the interface of a `DynamicLayer`.

Importing this needs transformers 5 or later; `exec.decoder` imports it at the first token of a model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from sparseworks.exec.attention import KeyValueCache


class GrowingLayer(DynamicLayer):
    """A `DynamicLayer` whose keys and values lie in a `KeyValueCache`, as long as they are float32 on the CPU.

    `keys` and `values` are views, made when somebody asks. Whatever assigns to them (reordering of beams, offloading) is obeyed: the
    next token then copies what was assigned. Under autograd the layer grows by `torch.cat` as its parent does.

    Attributes:
        kept_in: type in which what comes is stored; None: as it comes. In bfloat16 long caches are read in half the time.
    """

    _layer_type = None

    def __init__(self, kept_in: torch.dtype | None = None, **kwargs: Any):
        self.kept_in = kept_in
        self.store: KeyValueCache | None = None
        self._given: dict[str, Tensor | None] = {}
        super().__init__(**kwargs)

    @classmethod
    def of(cls, layer: DynamicLayer) -> GrowingLayer:
        """One that holds what `layer` holds."""
        made = cls()
        for name, value in vars(layer).items():  # keys and values among them
            setattr(made, name, value)
        return made

    @property
    def keys(self) -> Tensor | None:
        """(batch, kv_heads, tokens, d), or None."""
        return self.store.keys() if self.store is not None else self._given.get("keys")

    @keys.setter
    def keys(self, value: Tensor | None) -> None:
        """Keys from elsewhere take the place of those held."""
        self._take("keys", value)

    @property
    def values(self) -> Tensor | None:
        """(batch, kv_heads, tokens, d), or None."""
        return self.store.values() if self.store is not None else self._given.get("values")

    @values.setter
    def values(self, value: Tensor | None) -> None:
        """Values from elsewhere take the place of those held."""
        self._take("values", value)

    def _take(self, name: str, value: Tensor | None) -> None:
        if self.store is not None:
            self._given = {"keys": self.store.keys(), "values": self.store.values()}
            self.store = None
        self._given[name] = value

    def stored(self, batch: int, kv_heads: int, d: int, tokens: int = 1) -> KeyValueCache | None:
        """The cache, with room for `tokens` more; None if what is held is of another size, type or device."""
        if self.store is None and self.is_initialized:
            self.store = self._stored(tokens)
        store = self.store
        return None if store is None or (store.batch, store.kv_heads, store.d) != (batch, kv_heads, d) else store

    def _stored(self, more: int) -> KeyValueCache | None:
        k, v = self._given.get("keys"), self._given.get("values")
        if k is None or v is None or k.dim() != 4 or k.shape != v.shape or not k.numel():
            return None
        dtype = self.kept_in or k.dtype
        if any(not t.is_cpu or t.requires_grad or t.dtype not in (torch.float32, dtype) for t in (k, v)):
            return None
        if dtype not in (torch.float32, self.kept_in):
            return None
        batch, kv_heads, tokens, d = k.shape
        store = KeyValueCache(batch, kv_heads, d, tokens=tokens + max(more, tokens // 4), dtype=dtype)
        store.append(k, v)
        self._given = {}
        return store

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """As its parent: appends, and returns all keys and values, in the type of what was appended."""
        batch, kv_heads, count, d = key_states.shape
        store = None if torch.is_grad_enabled() else self.stored(batch, kv_heads, d, count)
        alike = key_states.dtype is torch.float32 and key_states.shape == value_states.shape and key_states.is_cpu
        if store is not None and alike:
            store.append(key_states, value_states)
        else:
            super().update(key_states, value_states, *args, **kwargs)
        keys, values = self.keys, self.values
        assert keys is not None and values is not None
        return keys.to(key_states.dtype), values.to(value_states.dtype)

    def get_seq_length(self) -> int:
        """Tokens held."""
        return self.store.tokens if self.store is not None else super().get_seq_length()

    def crop(self, tokens_to_remove: int) -> None:
        """As its parent: forgets the last -`tokens_to_remove` tokens, here without a copy."""
        if self.store is not None and -self.store.tokens <= tokens_to_remove <= 0:
            self.store.crop(-tokens_to_remove)
        else:
            super().crop(tokens_to_remove)


def growing_cache(config: Any, *, dtype: torch.dtype | None = None) -> DynamicCache:
    """A `DynamicCache` whose layers grow in place and store in `dtype` (float32, bfloat16, or None: as it comes).

    Layers with a window of tokens stay those of transformers.
    """
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer(dtype) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def next_token_of(cache: Any, layer: int, size: tuple[int, int, int]) -> KeyValueCache | None:
    """Where the next token of `layer` goes, if its cache can grow in place and holds `size` (batch, kv_heads, d).

    That layer of `cache` is a `GrowingLayer` from then on.
    """
    if type(cache) is not DynamicCache or cache.offloading or layer >= len(cache.layers):
        return None
    held = cache.layers[layer]
    if type(held) is DynamicLayer and held.is_initialized:
        held = cache.layers[layer] = GrowingLayer.of(held)
    return held.stored(*size) if type(held) is GrowingLayer else None
