"""Attention of transformers models through their public interfaces: a function and a mask builder, registered for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from sparseworks.attention.cache.method import CacheMethod
from sparseworks.attention.cache.rotation import frequencies
from sparseworks.attention.heads import Clip, Heads
from sparseworks.attention.kept import Kept, attend_dense
from sparseworks.attention.method import AttentionMethod
from sparseworks.attention.race import Race
from sparseworks.attention.run import learns, sparse_attention
from sparseworks.core.errors import BudgetError, ModelError
from sparseworks.core.published import METHODS, Published
from sparseworks.core.recipe import Recipe

if TYPE_CHECKING:
    from sparseworks.attention.cache.blockwise import Blockwise
    from sparseworks.attention.cache.hf import SparseCache
    from sparseworks.attention.cache.layer import KVLayer

_NUMBERS = count()
M = TypeVar("M", bound=Published)


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
        frequency: of the model's rotary embedding, for caches that take it off.
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
        self.frequency: Tensor | None = None
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

    def density(self, phase: str = "prefill") -> float:
        """Kept pairs over allowed pairs, the mean of all layers and calls, dense ones counted as 1."""
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
        """(batch, heads, tokens, d) -> (batch, tokens, heads, d), as an attention interface answers."""
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
        among = partial(self._among, module, layer, query, key, value, attention_mask, scaling, causal)
        if cache is not None:
            from sparseworks.attention.cache.layer import Call

            real = None if attention_mask is None else attention_mask[:, -query.shape[2] :]
            out = cache.attend(Call(self, layer, module, query, key, value, real, scaling, among))
        else:
            out = among()
        return out.transpose(1, 2).contiguous(), None

    def _among(
        self, module, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling, causal: bool
    ) -> Tensor:
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
            out[rows, :, -heads.queries :] = self._one(layer, heads)
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


@contextmanager
def attention(
    model: nn.Module,
    *methods: Published | Recipe | str,
    steps: int = 1,
    calls: int = 1,
    clip: Clip | None = None,
    prompt: int = 0,
    race: Race | None = None,
) -> Iterator[Attending]:
    """`with sw.attention(model, sw.method("quest")) as run: model.generate(...)`: the model attends by the method inside.

    Goes through the attention interface of transformers: every model that uses it is served, padding included. A recipe gives
    layers methods by the names of their attention modules; layers without one stay dense.

    Args:
        model: with `config` and modules that carry `layer_idx`.
        methods: methods of attention and of the cache, their names, or a recipe of such.
        steps: of a model that denoises. Its calls are then counted, and methods remember what they found until the next sample begins.
        calls: of the model in every step.
        clip: the frames that the tokens are.
        prompt: tokens that are given, the first ones; the others are denoised.
        race: `Race()`: every kind of call is timed once both ways, and stays dense where the method is slower. A cache that a method
            keeps is not raced.

    Raises:
        ModelError: the model has no layers of that kind, or does not use the interface.
        UnknownNameError, RecipeError: no such method, or one of another kind.
        BudgetError: no steps, or no calls.
    """
    if steps < 1 or calls < 1 or prompt < 0:
        raise BudgetError(
            f"There is at least one step and one call in each; got steps={steps}, calls={calls}, prompt={prompt}."
        )
    layers = attention_layers(model)
    run = Attending(
        _by_layer(layers, methods, AttentionMethod),
        len(layers),
        _by_layer(layers, methods, CacheMethod),
        first=next(iter(layers)),
        steps=steps,
        calls=calls,
        clip=clip,
        prompt=prompt,
        race=race,
    )
    run.frequency = frequencies(model)
    hook = model.register_forward_pre_hook(run.give_cache, with_kwargs=True) if run.caches else None
    try:
        with through(model, run):
            yield run
    finally:
        if hook is not None:
            hook.remove()


@contextmanager
def through(model: nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """Inside, every attention layer of the model calls `function`, which gets and gives what the interface of transformers does."""
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    name, before = f"sparseworks-{next(_NUMBERS)}", _implementation(model)
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, padding_only)
    try:
        _use(model, name)
        yield
    finally:
        _use(model, before)
        AttentionInterface._global_mapping.pop(name, None)
        AttentionMaskInterface._global_mapping.pop(name, None)


def _by_layer(layers: Mapping[int, str], methods: Sequence[Published | Recipe | str], kind: type[M]) -> dict[int, M]:
    """Layer -> the method of this kind that the last of `methods` gives it."""
    found: dict[int, M] = {}
    for one in methods:
        recipe = one if isinstance(one, Recipe) else Recipe.of(_of_attention(one))
        chosen = {layer: recipe.method_for(name, kind) for layer, name in layers.items()}
        found |= {layer: m for layer, m in chosen.items() if m is not None}
    return found


def _of_attention(method: Published | str) -> Recipe:
    found = METHODS.get(method) if isinstance(method, str) else method
    kind = CacheMethod if isinstance(found, CacheMethod) else AttentionMethod
    return Recipe.of(kind.of(found), kind=kind)


def attention_layers(model: nn.Module) -> dict[int, str]:
    """Index of each attention layer -> name of its module, in order.

    Raises:
        ModelError: there are none.
    """
    found = {int(m.layer_idx): n for n, m in model.named_modules() if isinstance(getattr(m, "layer_idx", None), int)}  # type: ignore[arg-type]
    if not found or not hasattr(model, "config"):
        raise ModelError(
            f"{type(model).__name__} has no attention layers that go by the attention interface of transformers (modules with "
            "`layer_idx`, a `config`); call `sparseworks.attention.sparse_attention` on the tensors instead."
        )
    return dict(sorted(found.items()))


def padding_only(
    batch_size: int, q_length: int, kv_length: int, attention_mask: Tensor | None = None, **others: Any
) -> Bool[Tensor, "batch keys"] | None:
    """The mask as this interface wants it: which keys are no padding, or None where all are real; causality is known anyway."""
    del batch_size, q_length, others
    if attention_mask is None or bool(attention_mask.all()):
        return None
    return attention_mask[:, :kv_length].bool()


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
    if others.get("sliding_window") is not None:
        raise ModelError("Layers with a sliding window of their own are not supported yet: give them no method.")


def _ragged() -> type:
    from sparseworks.attention.cache.hf import SparseCache

    return SparseCache


def _implementation(model: nn.Module) -> str:
    return getattr(model.config, "_attn_implementation", None) or "sdpa"  # type: ignore[union-attr]


def _use(model: nn.Module, name: str) -> None:
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation(name)  # type: ignore[operator]
    else:
        model.config._attn_implementation = name  # type: ignore[union-attr]
