"""A low-rank path for what is dropped: each layer splits what it may read between channels and singular vectors."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sparseworks.activations.transform import ACTIVATION_REPAIRS, ActivationRepair
from sparseworks.activations.variants import OPEN, Variants
from sparseworks.allocate.evolve import Choice, evolve
from sparseworks.core.errors import ModelError
from sparseworks.core.site import Site
from sparseworks.exec.masked import MaskedLinear, passed
from sparseworks.stream.tree import call


@ACTIVATION_REPAIRS.register("low_rank_path")
@dataclass(frozen=True)
class LowRankPath(ActivationRepair):
    """y = W s(x) + U_r S_r V_r^T (x - s(x)), W = U S V^T of m x n: of a share b of the weights, b n a channels and rank m n b (1 - a) / (m + n).

    a in {0, 1/levels, ..., 1} starts, layer by layer, where the output error on `sample` tokens is smallest, and is searched by
    mutation of a few layers at a time with the model's KL divergence to the dense one as fitness.

    Attributes:
        levels: steps between only rank (0) and only channels (`levels`).
        generations, offspring, tokens: of the search, see `evolve`; without generations the start is the result.
        alpha: the same a for all layers instead of a search.

    Source: Zhang et al., 2025 (R-Sparse, ICLR). Departure: the search starts at the best of each layer alone.
    """

    levels: int = 20
    generations: int = 30
    offspring: int = 8
    tokens: int = 512
    sample: int = 256
    alpha: float | None = None
    seed: int = 0

    @torch.no_grad()
    def __call__(self, variants: Variants, sites: Sequence[Site], densities: Mapping[str, float]) -> None:
        """Set rule and path of all sites.

        Raises:
            ModelError: a site is no linear layer.
        """
        factors = {s.name: _Factors(variants, s.name, densities[s.name]) for s in sites}
        if self.alpha is not None:
            for f in factors.values():
                f.set(self.alpha)
            return
        variants.set(dict.fromkeys(factors, 1.0))
        start = _best_alone(variants, factors, self.levels, self.sample)
        if self.generations:
            variants.learn()
            start = self._search(variants, list(factors.values()), start)
        for f, level in zip(factors.values(), start, strict=True):
            f.set(level / self.levels)

    def _search(self, variants: Variants, factors: list[_Factors], start: Choice) -> Choice:
        now: list[int | None] = [None] * len(factors)

        def fitness(choice: Choice, tokens: int, draw: int) -> float:
            for i, level in enumerate(choice):
                if now[i] != level:
                    factors[i].set(level / self.levels)
                    now[i] = level
            return variants.trial(tokens, draw)

        def mutate(parent: Choice, draw: random.Random) -> Choice:
            child = list(parent)
            for i in draw.sample(range(len(child)), min(len(child), draw.randint(1, 3))):
                child[i] = min(self.levels, max(0, child[i] + draw.choice((-3, -2, -1, 1, 2, 3))))
            return tuple(child)

        return evolve(
            start, mutate, fitness, generations=self.generations, offspring=self.offspring, stages=((1, self.tokens),),
            seed=self.seed,
        ).best  # fmt: skip


class _Factors:
    """A layer, its singular vectors, and what share of its weights it may read."""

    def __init__(self, variants: Variants, name: str, density: float):
        layer = variants.layer(name)
        if not isinstance(layer, MaskedLinear):
            raise ModelError(f"Site {name!r} is no linear layer: a low-rank path needs a weight.")
        self.variants, self.name, self.layer, self.density = variants, name, layer, density
        u, s, vh = torch.linalg.svd(layer.weight.detach().float(), full_matrices=False)
        self.left, self.right = u * s, vh

    def rank(self, alpha: float) -> int:
        """The largest rank that fits what is left of the share."""
        m, n = self.layer.weight.shape
        return min(int(m * n * self.density * (1 - alpha) / (m + n) + 1e-9), *self.layer.weight.shape)

    def set(self, alpha: float) -> None:
        """Rule and path at a share `alpha` for channels; a layer that may read all of its weights has no path."""
        if self.density >= 1:
            self.layer.rule, self.layer.left, self.layer.right = OPEN, None, None
            return
        self.layer.rule = self.variants.rule(self.name, self.density * alpha)
        rank, like = self.rank(alpha), self.layer.weight
        self.layer.left = self.left[:, :rank].contiguous().to(like) if rank else None
        self.layer.right = self.right[:rank].contiguous().to(like) if rank else None

    def errors(self, x: Float[Tensor, "tokens in"], levels: int) -> list[float]:
        """||y - W x||^2 at every level."""
        found = []
        for level in range(levels + 1):
            rule, rank = self.variants.rule(self.name, self.density * level / levels), self.rank(level / levels)
            rest = (x - rule._kept(x, self.layer.factor)).float()
            lost = F.linear(rest, self.layer.weight.float()) - passed(rest, self.left[:, :rank], self.right[:rank])
            found.append(float(lost.square().sum()))
        return found


def _best_alone(variants: Variants, factors: Mapping[str, _Factors], levels: int, sample: int) -> Choice:
    """The level with the smallest output error of each layer, on the first tokens that reach it in the dense model."""
    errors: dict[str, list[float]] = {}
    handles = [f.layer.register_forward_pre_hook(_listen(f, errors, levels, sample)) for f in factors.values()]
    try:
        for batch in variants.batches[:1]:
            call(variants.model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(min(range(levels + 1), key=errors[n].__getitem__) if n in errors else levels for n in factors)


def _listen(f: _Factors, errors: dict[str, list[float]], levels: int, sample: int) -> Any:
    def take(module: nn.Module, args: tuple) -> None:
        if f.name not in errors:
            errors[f.name] = f.errors(args[0].reshape(-1, args[0].shape[-1])[:sample], levels)

    return take
