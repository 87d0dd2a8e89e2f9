"""Decoder layers of LLaMA and its relatives at one token: what lies between their seven products in four calls of the extension.

With sparse matrices, torch's passes for norms, rotation, cache, attention and gate cost as much as the products
(`benchmarks/kernels/decoder.py`). A layer that `exec.fuse` takes over becomes a `SparseTransformerLayer`: the same module with the same
children and names, of a subclass of its own class whose `forward` knows a short way for one token with a cache. Everything else
(prompts, gradients, hooks, other caches and attention implementations) goes the way of its class.
"""

from __future__ import annotations

from functools import cache as once
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.core.errors import ModelError
from sparseworks.exec.between import ACTIVATIONS
from sparseworks.exec.modules import SparseLinear
from sparseworks.exec.native import native
from sparseworks.exec.ops import plain
from sparseworks.exec.step import Step, Steps

if TYPE_CHECKING:
    from sparseworks.exec.attention import KeyValueCache

DECODERS = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")
"""Layer classes of transformers, by name: h = x + out attend(rotate(query, key), value) of norm1(x); h + down(act(gate) * up) of norm2(h)."""

_KNOWN = frozenset(
    {"attention_mask", "position_ids", "cache", "past_key_values", "use_cache", "position_embeddings", "cache_position"}
)


class SparseTransformerLayer(nn.Module):
    """A decoder layer that runs one token a sequence in few calls; mixed in before the layer's own class by `sparse_layer`."""

    self_attn: Any
    mlp: Any
    input_layernorm: Any
    post_attention_layernorm: Any

    def forward(self, hidden_states: Float[Tensor, "batch tokens features"], *args: Any, **kwargs: Any) -> Any:
        """As the layer's own `forward`."""
        if not args and self._takes(hidden_states, kwargs):
            y = self._next(hidden_states, kwargs)
            if y is not None:
                return y
        return super().forward(hidden_states, *args, **kwargs)

    def _takes(self, x: Tensor, kwargs: dict[str, Any]) -> bool:
        """Plain float32 inference of one token a sequence on the CPU."""
        return (
            plain(x, None)
            and x.dim() == 3
            and x.shape[1] == 1
            and x.dtype is torch.float32
            and x.is_cpu
            and x.numel() > 0
            and native() is not None
            and not self.training
            and not any(value for name, value in kwargs.items() if name not in _KNOWN)
            and self.self_attn.config._attn_implementation in ("sdpa", "eager")
            and not (torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters()))
        )

    def _next(self, x: Tensor, kwargs: dict[str, Any]) -> Tensor | None:
        batch, step = len(x), self._steps.get(len(x))
        if step is None or not step.valid():
            step = self._steps[batch] = Step(self, batch)
            if not step.valid():
                return None
        angles = _angles(kwargs.get("position_embeddings"), batch, step.d)
        if angles is None:
            return None
        store = _store(kwargs.get("cache", kwargs.get("past_key_values")), step)
        if store is None:
            return None
        mask = _mask(kwargs.get("attention_mask"), batch, store.tokens + 1)
        return None if mask is False else step.run(x, store, angles, mask)

    @property
    def _steps(self) -> Steps:
        return self.__dict__.setdefault("_steps_by_batch", Steps())

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _empty, (type(self).__mro__[2],), self.__dict__


def sparse_layer(layer: nn.Module) -> nn.Module:
    """`layer` itself, from now on a `SparseTransformerLayer` too; hooks, children and names stay as they are.

    Raises:
        ModelError: it is not a decoder layer that the short way knows.
    """
    why = why_not_decoder(layer)
    if why is not None:
        raise ModelError(f"A {type(layer).__name__} cannot run as a sparse transformer layer: {why}.")
    layer.__class__ = _sparse_class(type(layer))
    return layer


def dense_layer(layer: nn.Module) -> nn.Module:
    """Undo `sparse_layer`."""
    layer.__class__ = type(layer).__mro__[2]
    return layer


def why_not_decoder(layer: nn.Module) -> str | None:
    """Why `sparse_layer` refuses a layer, or None."""
    kind, known = type(layer), ", ".join(DECODERS)
    if kind.__name__ not in DECODERS or not kind.__module__.startswith("transformers."):
        return f"only {known} of transformers are known"
    import transformers

    if int(transformers.__version__.split(".")[0]) < 5:
        return "layers of transformers before version 5 return a tuple"
    if "forward" in layer.__dict__:
        return "somebody has replaced its forward"
    parts: Any = layer
    heads, kv_heads = (getattr(parts.self_attn, name).out_features for name in ("q_proj", "k_proj"))
    if heads % parts.self_attn.head_dim or kv_heads % parts.self_attn.head_dim or heads % kv_heads:
        return (
            f"its {heads} query and {kv_heads} key features are not whole groups of heads of {parts.self_attn.head_dim}"
        )
    if type(parts.mlp.act_fn).__name__ not in ACTIVATIONS:
        return f"its activation {type(parts.mlp.act_fn).__name__} is not one of {', '.join(ACTIVATIONS)}"
    return None


def join_decoders(model: nn.Module) -> nn.Module:
    """Turn every decoder layer with a `SparseLinear` inside into a `SparseTransformerLayer` where it can be; `exec.fuse` does this."""
    for layer in model.modules():
        known = type(layer).__name__ in DECODERS
        if known and any(isinstance(m, SparseLinear) for m in layer.modules()) and why_not_decoder(layer) is None:
            sparse_layer(layer)
    return model


@once
def _sparse_class(kind: type[nn.Module]) -> type[nn.Module]:
    """Like FSDP's classes, a subclass of the layer's own, so that `isinstance` still holds: transformers finds layers by that."""
    return type(f"Sparse{kind.__name__}", (SparseTransformerLayer, kind), {"__module__": __name__})


def _empty(kind: type[nn.Module]) -> nn.Module:
    made = _sparse_class(kind)
    return made.__new__(made)


def _angles(given: Any, batch: int, d: int) -> tuple[Tensor, Tensor] | None:
    if not isinstance(given, tuple) or len(given) != 2 or given[0].shape != given[1].shape:
        return None
    fits = all(t.dtype is torch.float32 and t.is_cpu and t.shape in ((1, 1, d), (batch, 1, d)) for t in given)
    return (given[0].contiguous(), given[1].contiguous()) if fits else None


def _store(held: Any, step: Step) -> KeyValueCache | None:
    if held is None:
        return None
    from sparseworks.exec.growing import next_token_of

    return next_token_of(held, step.index, (step.batch, step.kv_heads, step.d))


def _mask(mask: Tensor | None, batch: int, tokens: int) -> Any:
    """What to add to the scores: (batch, tokens), or None for nothing; False if this mask is not one for the last token's keys."""
    if mask is None:
        return None
    if type(mask) is not Tensor or not mask.is_cpu or mask.shape not in ((1, 1, 1, tokens), (batch, 1, 1, tokens)):
        return False
    keys = mask[:, 0, 0].expand(batch, tokens)
    if mask.dtype is torch.bool:
        return torch.zeros(keys.shape, dtype=torch.float32, device="cpu").masked_fill_(~keys, -torch.inf)
    return keys.contiguous() if mask.dtype is torch.float32 else False
