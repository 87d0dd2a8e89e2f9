"""Core neurons of a prompt, and its core tokens: those whose active neurons are core ones. One pass decides both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sparseworks.activations.labels import Structures
from sparseworks.activations.predict import gathered
from sparseworks.activations.trained.activation import ACTIVATIONS, Activation, TrainedMethod
from sparseworks.core.budget import Budget, Elbow
from sparseworks.core.errors import BudgetError, ModelError, RecipeError, ShapeError
from sparseworks.core.select import top
from sparseworks.stream import blocks, couplings
from sparseworks.stream.sites import sites as find_sites
from sparseworks.stream.tree import call, map_tensors


@ACTIVATIONS.register("core_neurons")
@dataclass(frozen=True)
class CoreNeurons(Activation):
    """C = the share beta of neurons most often among a token's share alpha of strongest positive activations; score of a token |{a > 0} & C|.

    Called on the activations of a feed-forward layer it zeroes neurons outside the core of their sequence.

    Attributes:
        alpha: share of a token's positive activations that is its own core.
        beta: share of the neurons that is the core of the sequence.
        tokens: which tokens stay, from their scores.

    Source: Wang et al., 2025, arXiv 2505.19235 (CoreMatching); alpha and beta are our reading of its range.
    """

    built_with: ClassVar[str] = "core_matching(model, method, prompt)"
    free: ClassVar[bool] = True

    alpha: float = 0.4
    beta: float = 0.2
    tokens: Budget = Elbow()  # noqa: RUF009 - frozen

    def __post_init__(self):
        if not (0 < self.alpha <= 1 and 0 < self.beta <= 1):
            raise BudgetError(f"Shares of core neurons lie in (0, 1], got alpha={self.alpha}, beta={self.beta}.")

    def token_cores(self, a: Float[Tensor, "batch tokens neurons"]) -> Bool[Tensor, "batch tokens neurons"]:
        """ceil(alpha * positives) strongest positive activations of every token."""
        count = (a > 0).sum(-1).double().mul(self.alpha).sub(1e-9).ceil().long()
        return top(a, count) & (a > 0)

    def core(
        self, a: Float[Tensor, "batch tokens neurons"], over: Bool[Tensor, "batch tokens"] | None = None
    ) -> Bool[Tensor, "batch neurons"]:
        """The core of each sequence: round(beta * neurons) of them, at least one.

        Args:
            over: tokens that are counted, such as those of the text; default: all.
        """
        cores = self.token_cores(a)
        cores = cores if over is None else cores & over.unsqueeze(-1)
        return top(cores.sum(1).double(), max(1, round(self.beta * a.shape[-1])))

    def overlap(
        self, a: Float[Tensor, "batch tokens neurons"], core: Bool[Tensor, "batch neurons"]
    ) -> Int[Tensor, "batch tokens"]:
        """How many of a token's active neurons are core ones."""
        return ((a > 0) & core.unsqueeze(1)).sum(-1)

    def __call__(self, x: Float[Tensor, "batch tokens neurons"]) -> Float[Tensor, "batch tokens neurons"]:
        """x with zeros outside the core."""
        return x * self.core(x.detach()).unsqueeze(1)


@dataclass
class CoreRun:
    """A prompt's core neurons and tokens, and hooks that use them; `remove` takes the hooks away.

    Attributes:
        neurons: core of every feed-forward layer, (1, neurons) each.
        tokens: (tokens,), which tokens of the prompt go past the block `after`.
        scores: (tokens,), overlap with the core at that block.
    """

    model: nn.Module
    structures: Structures
    neurons: list[Bool[Tensor, "1 neurons"]]
    tokens: Bool[Tensor, " tokens"]
    scores: Int[Tensor, " tokens"]
    after: int
    _handles: list[Any] = field(default_factory=list)

    def masked(self, following: int | None = None) -> Self:
        """Hook the model: neurons outside the core are zero, what `small` computes without them; in the last `following` tokens, or all."""
        for reader, core in zip(self.structures.readers, self.neurons, strict=True):
            self._handles.append(self.model.get_submodule(reader).register_forward_pre_hook(_only(core[0], following)))
        return self

    def shortened(self) -> Self:
        """Hook the model: tokens of the prompt that are not core leave the sequence behind the block `after`; what follows the prompt stays.

        Later blocks, and caches that they fill, see the shorter sequence: logits come for the tokens that stay.
        """
        listed = blocks(self.model)
        if self.after + 1 < len(listed):
            block = listed[self.after + 1].module(self.model)
            self._handles.append(block.register_forward_pre_hook(self._shorten, with_kwargs=True))
        for block in listed[self.after + 2 :]:  # callers pass positions and masks of the whole sequence to every block
            self._handles.append(block.module(self.model).register_forward_pre_hook(self._follow, with_kwargs=True))
        return self

    def small(self) -> nn.Module:
        """A copy of the model whose feed-forward layers hold the core only: what decodes this prompt."""
        return gathered(self.model, self.structures, self.neurons)

    def remove(self) -> None:
        """The model is dense again."""
        while self._handles:
            self._handles.pop().remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _shorten(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return self._cut(args), self._cut(kwargs)

    def _follow(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return args, self._cut(kwargs)

    def _cut(self, value: Any) -> Any:
        prompt = len(self.tokens)

        def cut(x: Tensor) -> Tensor:
            for dim in range(x.dim()) if x.dim() < 3 else (1,) if x.dim() == 3 else (2, 3):
                if x.shape[dim] >= prompt and not (x.dim() == 2 and dim == 0):
                    kept = torch.cat([self.tokens, self.tokens.new_ones(x.shape[dim] - prompt)]).to(x.device)
                    x = x.index_select(dim, kept.nonzero().flatten())
            return x

        return map_tensors(value, cut)


def _only(core: Bool[Tensor, " neurons"], following: int | None) -> Any:
    def take(module: nn.Module, args: tuple) -> tuple:
        a = args[0]
        dense = a.shape[1] - (a.shape[1] if following is None else following)
        return (torch.cat([a[:, :dense], a[:, dense:] * core.to(a)], dim=1), *args[1:])

    return take


def core_matching(
    model: nn.Module,
    method: str | TrainedMethod,
    prompt: Any,
    *,
    after: int = 0,
    keep: Sequence[int] = (0, -1),
    over: Sequence[int] | None = None,
) -> CoreRun:
    """One dense pass over a prompt: core neurons of every feed-forward layer, and which tokens stay behind the block `after`.

    Args:
        prompt: a batch of one sequence.
        after: the block whose core scores the tokens.
        keep: tokens that stay in any case: the first, the last, those of the text beside an image.
        over: tokens whose activations make the core, such as those of the text; default: all.

    Raises:
        RecipeError: a method without a core.
        ModelError: no feed-forward layers in repeated blocks.
        ShapeError: more sequences than one, since they leave different tokens.
    """
    rule = TrainedMethod.of(method).activation
    if not isinstance(rule, CoreNeurons):
        raise RecipeError(f"Cores are found by a method of `core_neurons`, not by {rule}.")
    structures, place = _neurons(model, after)
    held = _activations(model, structures.readers, prompt)
    if held[0].shape[0] != 1:
        raise ShapeError(f"Tokens leave one sequence at a time, got {held[0].shape[0]} of them.")
    length = held[0].shape[1]
    counted = _marked(length, range(length) if over is None else over)
    cores = [rule.core(a, counted[None].to(a.device)) for a in held]
    scores = rule.overlap(held[place], cores[place])[0]
    chosen = top(scores[None].double(), _count(rule.tokens, scores))[0] | _marked(length, keep).to(scores.device)
    return CoreRun(model, structures, cores, chosen, scores, after)


def _count(budget: Budget, scores: Tensor) -> Any:
    return budget.counts(scores[None].double()) if budget.needs_scores else budget.total({"tokens": len(scores)})


def _neurons(model: nn.Module, after: int) -> tuple[Structures, int]:
    listed, named = blocks(model), {s.name: s for s in find_sites(model)}
    found = [c for c in couplings(model) if c.kind == "neuron"]
    held = [i for i, c in enumerate(found) if 0 <= after < len(listed) and listed[after].holds(c.members[-1].site)]
    if not held:
        raise ModelError(
            f"Block {after} of {type(model).__name__} has no feed-forward layer whose neurons could be counted."
        )
    return Structures(tuple(found), tuple(named[c.members[-1].site].module for c in found), ""), held[0]


def _marked(length: int, at: Sequence[int]) -> Bool[Tensor, " tokens"]:
    mask = torch.zeros(length, dtype=torch.bool)
    mask[torch.tensor(list(at), dtype=torch.long)] = True
    return mask


@torch.no_grad()
def _activations(model: nn.Module, readers: Sequence[str], prompt: Any) -> list[Float[Tensor, "batch tokens neurons"]]:
    held: dict[str, Tensor] = {}
    hold = lambda name: lambda _m, args: held.__setitem__(name, args[0].detach())  # noqa: E731
    handles = [model.get_submodule(r).register_forward_pre_hook(hold(r)) for r in readers]
    try:
        call(model, prompt)
    finally:
        for handle in handles:
            handle.remove()
    return [held[r] for r in readers]
