"""Attending: methods in force on a model. It is the function that attention layers call, and it knows what each of them did."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparseworks.attention.cache.method import CacheMethod
from sparseworks.attention.cache.rotation import Angles
from sparseworks.attention.dense import attend_dense, attend_window
from sparseworks.attention.heads import Clip, Heads
from sparseworks.attention.kept import Kept
from sparseworks.attention.method import AttentionMethod
from sparseworks.attention.race import Race
from sparseworks.attention.run import learns, sparse_attention
from sparseworks.core.errors import ModelError

if TYPE_CHECKING:
    from sparseworks.attention.cache.blockwise import Blockwise
    from sparseworks.attention.cache.hf import SparseCache
    from sparseworks.attention.cache.layer import KVLayer


@dataclass
class Seen:
    """What one layer did: calls that were sparse, and the sum of their densities, in prefill and in decoding.

    Attributes:
        memory: what its method keeps from call to call.
        learned: what it trains on the side, from prompt to prompt.
    """

    memory: dict[Any, Any] = field(default_factory=dict)
    learned: dict[Any, Any] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=lambda: {"prefill": 0, "decode": 0})
    densities: dict[str, float] = field(default_factory=lambda: {"prefill": 0.0, "decode": 0.0})

    def note(self, phase: str, density: float) -> None:
        """One call."""
        self.calls[phase] += 1
        self.densities[phase] += density

    def density(self, phase: str) -> float | None:
        """Mean density of the calls in a phase, None if there was none."""
        return self.densities[phase] / self.calls[phase] if self.calls[phase] else None


class Attending:
    """A method (or one per layer) in force on a model; what it did is in `layers`.

    Attributes:
        layers: index of a layer -> what it did.
        watch: called with every call and the units it computed (None: all), for those who want to look.
        common: for every sequence what its layers leave for each other.
        angles: of the model's rotary embedding, for caches that take it off.
        steps, calls, clip, prompt: of a model that denoises: how many steps, calls of the model in each (2 for guidance by a second
            call; each remembers for itself), the grid of the tokens, tokens that are given.
    """

    def __init__(
        self,
        methods: Mapping[int, AttentionMethod],
        layers: int,
        caching: Mapping[int, CacheMethod] | None = None,
        *,
        first: int = 0,
        steps: int = 1,
        calls: int = 1,
        clip: Clip | None = None,
        prompt: int = 0,
        race: Race | None = None,
    ):
        self.methods, self.count, self.caching = methods, layers, caching or {}
        self.layers: dict[int, Seen] = {}
        self.common: dict[int, dict[Any, Any]] = {}
        self.pending: KVLayer | None = None
        self.held: SparseCache | None = None
        self.angles: Angles | None = None
        self.watch: Callable[[Heads, Kept | None], None] | None = None
        self.steps, self.calls, self.clip, self.prompt = steps, calls, clip, prompt
        self._first, self._now, self._next = first, 0, 0
        self.race = race
        self.blockwise: Blockwise | None = None

    @property
    def step(self) -> int:
        """The denoising step that the current call of the model belongs to; calls are counted where `steps` is above 1.

        May be set before a call of the model, by samplers that skip steps or begin again before the last: counting goes on from it.
        """
        return self._now // self.calls % self.steps

    @step.setter
    def step(self, value: int) -> None:
        """The next call of the model is the first of this step."""
        self._now = self._next = value * self.calls

    def _count(self) -> None:
        """A call of the model begins; what was remembered of the last sample goes when its first step comes again."""
        if self.steps == 1:
            return
        self._now, self._next = self._next, self._next + 1
        if self._now % (self.calls * self.steps) == 0:
            self.forget()

    @property
    def caches(self) -> bool:
        """Whether a method wants a cache of its own."""
        return bool(self.caching) or any(m.cache for m in self.methods.values())

    def cache(self) -> SparseCache:
        """A fresh cache for `model(..., cache=run.cache())`; `generate` is given one by itself where a method asks for it."""
        from sparseworks.attention.cache.hf import SparseCache

        self.held = SparseCache(self, self.count)
        return self.held

    def forget(self) -> None:
        """Drop what methods remember; for another prompt."""
        for seen in self.layers.values():
            seen.memory.clear()
        self.common.clear()

    def density(self, phase: str = "prefill") -> float:
        """Computed pairs over allowed pairs, the mean of all layers and calls, dense ones counted as 1; what a rest spends included."""
        found = [d for seen in self.layers.values() if (d := seen.density(phase)) is not None]
        return sum(found) / len(found) if found else 1.0

    def give_cache(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A forward pre-hook: an empty cache that `generate` made becomes ours."""
        for name in ("cache", "past_key_values"):
            given = kwargs.get(name)
            if given is not None and not isinstance(given, _ragged()) and given.get_seq_length() == 0:
                kwargs[name] = self.cache()
        return args, kwargs

    # -- the function that transformers calls -----------------------------------------------------------------------

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        is_causal: bool | None = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        """(batch, heads, tokens, d) -> (batch, tokens, heads, d), as an attention interface answers.

        Layers that a model gives a sliding window of their own keep it, whatever the method.
        """
        _refuse(dropout, others)
        layer = int(getattr(module, "layer_idx", 0))
        if layer == self._first:
            self._count()
        if self.blockwise is not None:
            key, value = self.blockwise.held(layer, module, query, key, value, scaling)
        causal = bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal
        cache, self.pending = self.pending, None
        if key.shape[2] == query.shape[2] and (cache is None or not cache.seen):
            self._begins(layer)
        window = others.get("sliding_window")
        among = partial(self._among, module, layer, query, key, value, attention_mask, scaling, causal, window)
        if cache is not None and window is not None:
            raise ModelError(
                f"Layer {layer} has a sliding window of its own, which caches of this library do not know."
            )
        if cache is not None:
            from sparseworks.attention.cache.layer import Call

            real = None if attention_mask is None else attention_mask[:, -query.shape[2] :]
            out = cache.attend(Call(self, layer, module, query, key, value, real, scaling, among))
        else:
            out = among()
        return out.transpose(1, 2).contiguous(), None

    def _among(
        self, module, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling, causal: bool,
        window: int | None,
    ) -> Tensor:  # fmt: skip
        out = torch.empty_like(query)
        for rows, keys in _real(mask, query, key):
            heads = Heads(
                query[rows, :, -min(query.shape[2], _size(keys, key)) :],
                key[rows][:, :, keys],
                value[rows][:, :, keys],
                causal=causal and key.shape[2] >= query.shape[2],
                scale=scaling,
                layer=layer,
                layers=self.count,
                step=self.step,
                steps=self.steps,
                clip=self.clip,
                prompt=self.prompt,
                module=module,
                memory=self._memory(layer, rows.start),
                learned=self.layers.setdefault(layer, Seen()).learned,
                common=self.common.setdefault(rows.start or 0, {}),
            )
            out[rows, :, : -heads.queries] = 0
            out[rows, :, -heads.queries :] = self._one(layer, heads) if window is None else attend_window(heads, window)
        return out

    def note(self, layer: int, phase: str, density: float) -> None:
        """What one call of a layer read."""
        self.layers.setdefault(layer, Seen()).note(phase, density)

    def _one(self, layer: int, heads: Heads) -> Tensor:
        method, seen = self.methods.get(layer), self.layers.setdefault(layer, Seen())
        acts = method is not None and heads.phase in method.phases and (method.schedule.acts(heads) or learns(method))
        if method is None or not acts:
            out, kept = _dense(heads)
        elif self.race is None:
            out, kept = _sparse(heads, method)
        else:
            out, kept = self.race.run(method.name, heads, partial(_dense, heads), partial(_sparse, heads, method))
        seen.note(heads.phase, 1.0 if kept is None else kept.density(heads))
        if self.watch is not None:
            self.watch(heads, kept)
        return out

    def _memory(self, layer: int, sequence: int) -> dict[Any, Any]:
        return self.layers.setdefault(layer, Seen()).memory.setdefault((sequence, self._now % self.calls), {})

    def _begins(self, layer: int) -> None:
        """A causal model that sees as many keys as queries reads a new prompt; one that denoises goes on."""
        if self.steps == 1:
            self.layers.setdefault(layer, Seen()).memory.clear()


def _dense(heads: Heads) -> tuple[Tensor, None]:
    return attend_dense(heads), None


def _sparse(heads: Heads, method: AttentionMethod) -> tuple[Tensor, Kept | None]:
    (out, _), kept = sparse_attention(heads, method)
    return out, kept


def _real(mask: Tensor | None, query: Tensor, key: Tensor) -> Iterator[tuple[slice, Tensor | slice]]:
    """Sequences that can be computed together, with the positions of their real keys."""
    if mask is None:
        yield slice(0, len(query)), slice(None)
        return
    if mask.dim() != 2:
        raise ModelError(
            f"Masks of shape {tuple(mask.shape)} are not taken: which tokens are padding is all that can be said."
        )
    for b, row in enumerate(mask):
        yield slice(b, b + 1), row.nonzero()[:, 0]


def _size(keys: Tensor | slice, key: Tensor) -> int:
    return key.shape[2] if isinstance(keys, slice) else len(keys)


def _refuse(dropout: float, others: Mapping[str, Any]) -> None:
    if dropout:
        raise ModelError("Attention dropout is not supported while a method attends; call model.eval().")
    for name in ("softcap", "s_aux"):
        if others.get(name) is not None:
            raise ModelError(f"The model asks for {name!r} in its attention, which is not supported.")


def _ragged() -> type:
    from sparseworks.attention.cache.hf import SparseCache

    return SparseCache
