"""Predictor -> structure mask -> gather: a small network says from an early state which heads and neurons a sample needs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from sparseworks.activations.labels import Labelled, Structures, summary
from sparseworks.core.errors import BudgetError, ShapeError
from sparseworks.core.select import top
from sparseworks.stream.slicing import slice_units


class Predictor(nn.Module):
    """W_2 relu(W_1 z), z the early state to mean 0 and variance 1: importance of every unit, in units of its layer's mean.

    Attributes:
        scale: (units,), the mean importance in the layer of each unit, by which predictions are multiplied.
    """

    centre: Tensor
    spread: Tensor
    scale: Tensor

    def __init__(self, width: int, units: int, hidden: int = 2048):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, units))
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))
        self.register_buffer("scale", torch.ones(units))

    def forward(self, early: Float[Tensor, "samples width"]) -> Float[Tensor, "samples units"]:
        """Predicted importance."""
        return self.body((early - self.centre) / self.spread) * self.scale

    def fit(
        self,
        seen: Labelled,
        sizes: Sequence[int],
        *,
        epochs: int = 100,
        lr: float = 1e-3,
        batch: int = 64,
        seed: int = 0,
    ) -> Self:
        """AdamW with a cosine on mean((prediction - importance)^2), both over the mean of the layer.

        Args:
            sizes: units of each layer, in the order of the importances.

        Raises:
            ShapeError: the importances are of another number of units.
        """
        if seen.importance.shape[1] != sum(sizes):
            raise ShapeError(f"Importances of {seen.importance.shape[1]} units do not fit layers of {list(sizes)}.")
        means = [
            part.mean().clamp(min=1e-12).expand(part.shape[1]) for part in seen.importance.split(list(sizes), dim=1)
        ]
        self.centre.copy_(seen.early.mean(dim=0))
        self.spread.copy_(seen.early.std(dim=0).clamp(min=1e-6))
        self.scale.copy_(torch.cat(means))
        g, count = torch.Generator().manual_seed(seed), len(seen.early)
        wanted, inputs = seen.importance / self.scale, (seen.early - self.centre) / self.spread
        with torch.no_grad():  # predictions begin at the mean
            self.body[2].weight.mul_(0.1)  # type: ignore[operator]
            self.body[2].bias.copy_(wanted.mean(dim=0))  # type: ignore[operator]
        optimizer = torch.optim.AdamW(self.parameters(), lr=lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        with torch.enable_grad():
            for _ in range(epochs):
                for at in torch.randperm(count, generator=g).split(batch):
                    optimizer.zero_grad()
                    F.mse_loss(self.body(inputs[at]), wanted[at]).backward()
                    optimizer.step()
                schedule.step()
        return self.eval()


def spearman(predicted: Float[Tensor, "samples n"], true: Float[Tensor, "samples n"]) -> float:
    """Mean over samples of the rank correlation, 1 - 6 sum d^2 / (n (n^2 - 1)), ties in order of their index."""
    n = true.shape[1]
    ranks = [t.argsort(dim=1, stable=True).argsort(dim=1).double() for t in (predicted, true)]
    return float((1 - 6 * (ranks[0] - ranks[1]).square().sum(dim=1) / max(n * (n * n - 1), 1)).mean())


def recall(predicted: Float[Tensor, "samples n"], true: Float[Tensor, "samples n"], keep: int) -> float:
    """Mean over samples of the share of the `keep` best that are among the `keep` predicted best."""
    return float((top(predicted, keep) & top(true, keep)).sum() / max(keep * len(true), 1))


@dataclass
class Contextual:
    """Hooks that leave out, sample by sample, what a predictor calls unimportant; `remove` takes them away.

    Attributes:
        keep: share of the units of each kind that stay.
        across: units of all layers compete (of one kind with another of its kind); otherwise those of each layer.
        at: which token's early state is read, as a share of the sequence.
        kept: masks of the last pass, one a coupling.
    """

    model: nn.Module
    structures: Structures
    importance: Any
    keep: float
    across: bool = True
    at: float = 1.0
    kept: list[Bool[Tensor, "batch units"]] = field(default_factory=list)

    def __post_init__(self):
        if not 0 < self.keep <= 1:
            raise BudgetError(f"The share of heads and neurons that stay lies in (0, 1], got {self.keep}.")
        early = self.model.get_submodule(self.structures.early)
        self._handles = [early.register_forward_hook(self._decide)]
        for place, reader in enumerate(self.structures.readers):
            self._handles.append(self.model.get_submodule(reader).register_forward_pre_hook(self._mask(place)))

    def remove(self) -> None:
        """The model is dense again."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    @torch.no_grad()
    def _decide(self, module: nn.Module, args: tuple, output: Any) -> None:
        early = summary(output, self.at)
        self.kept = choose(self.structures, self.importance(early), self.keep, self.across)

    def _mask(self, place: int) -> Any:
        def take(module: nn.Module, args: tuple) -> tuple:
            x = args[0]
            owners = self.structures.owners(place, x.shape[-1]).to(x.device)
            return (x * self.kept[place][:, owners].unsqueeze(1).to(x), *args[1:])

        return take


def choose(
    structures: Structures, importance: Float[Tensor, "samples units"], keep: float, across: bool
) -> list[Bool[Tensor, "samples units"]]:
    """Masks of every coupling: the share `keep` of heads and of neurons, over all layers or in each; every layer keeps a unit."""
    parts = list(importance.split(structures.sizes, dim=1))
    masks = [top(p, max(1, round(keep * p.shape[1]))) for p in parts]
    if not across:
        return masks
    for kind in dict.fromkeys(c.kind for c in structures.units):
        own = [i for i, c in enumerate(structures.units) if c.kind == kind]
        joined = torch.cat([parts[i] for i in own], dim=1)
        chosen = top(joined, max(1, round(keep * joined.shape[1]))).split([parts[i].shape[1] for i in own], dim=1)
        for i, mask in zip(own, chosen, strict=True):
            masks[i] = mask | top(parts[i], 1)
    return masks


def gathered(model: nn.Module, structures: Structures, kept: Sequence[Bool[Tensor, " units"]]) -> nn.Module:
    """A copy of the model with the units of one sample only, its layers smaller: what runs while that sample is decoded.

    Raises:
        ModelError, ShapeError: as `sparseworks.stream.slice_units`.
    """
    made = copy.deepcopy(model)
    named = {c.name: mask.reshape(-1).cpu() for c, mask in zip(structures.units, kept, strict=True)}
    slice_units(made, list(structures.units), named)
    return made
