"""Drop-and-grow on layers of which only the kept values exist: no dense weight, gradient or optimiser state at any time."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, prod

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.optim import Optimizer

from sparseworks.core.errors import BudgetError, ModelError
from sparseworks.core.method import Method
from sparseworks.core.pattern import Pattern
from sparseworks.core.select import select_mask
from sparseworks.core.stats import Stats
from sparseworks.core.support import Support
from sparseworks.exec.training import SparseIndex, TrainableSparseLinear, sddmm
from sparseworks.exec.training.module import SparseWeight
from sparseworks.scores import Gradient, Random
from sparseworks.weights.train.dropgrow import DropGrow
from sparseworks.weights.train.run import Event

_ALL = Pattern()


class Rewire:
    """The sibling of `Sparsifier` for models of `sparseworks.trainable`: `step()` once after every `optimizer.step()`.

    Memory and time of a change grow with the kept entries. Growth at random (SET) draws positions outside the support. Growth
    by gradient (RigL) scores `candidates` times as many random positions as will grow, by the sampled product of the last
    step's output gradients and inputs, since the whole gradient would be dense; entries just dropped are no candidates.

    Source: Mocanu et al., 2018, arXiv 1707.04780; Evci et al., 2020, arXiv 1911.11134; candidates as in Heddes et al., 2024,
    arXiv 2401.06898.

    Attributes:
        done: steps so far.
        history: every change of the supports.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method | str,
        optimizer: Optimizer,
        *,
        steps: int,
        candidates: float = 8.0,
        seed: int = 0,
    ):
        """Take hold of every `SparseWeight` of the model; supports stay until the first change.

        Args:
            method: one that drops and grows within each tensor ("set", "rigl"): its shares and cadence are followed; how much
                is kept says the model.
            steps: optimiser steps of the whole run.
            candidates: positions scored for each that grows by gradient.

        Raises:
            ModelError: nothing to rewire, or growth by gradient on a layer that is not linear.
            BudgetError: the method does something else, or `steps` or `candidates` is too small.
        """
        method = Method.of(method)
        self.layers = {n: m for n, m in model.named_modules() if isinstance(m, SparseWeight)}
        self.method, self.optimizer, self.steps, self.candidates, self.seed = method, optimizer, steps, candidates, seed
        self.regime = _regime(method)
        self.by_gradient = isinstance(self.regime.grow, Gradient)
        self.done, self.history, self.sites = 0, [], ()
        self._check()
        self._seen: dict[str, list[tuple[Tensor, Tensor]]] = {n: [] for n in self.layers}
        hooked = self.layers.items() if self.by_gradient else ()
        self._handles = [m.register_forward_hook(self._hook(n)) for n, m in hooked]

    @property
    def progress(self) -> float:
        """Share of the run that is done."""
        return min(self.done / self.steps, 1.0)

    @property
    def supports(self) -> dict[str, Support]:
        """Layer name -> what is kept now."""
        return {name: layer.support() for name, layer in self.layers.items()}

    @torch.no_grad()
    def step(self) -> Event | None:
        """Count the optimiser step just taken, and change the supports where that is due.

        Returns:
            What changed, or None.
        """
        due = self.regime.due(self)  # type: ignore[arg-type]
        self.done += 1
        if not due:
            return None
        share = self.method.schedule(self.progress / self.regime.stop)
        moved = sum(self._change(name, layer, share) for name, layer in self.layers.items())
        for seen in self._seen.values():
            seen.clear()
        self.history.append(Event(self.done, sum(m.index.count for m in self.layers.values()), moved, moved))
        return self.history[-1]

    def finish(self) -> dict[str, Support]:
        """Let go of the model and return the supports."""
        for handle in self._handles:
            handle.remove()
        return self.supports

    # -- inside ---------------------------------------------------------------------------------------------------

    def _change(self, name: str, layer: SparseWeight, share: float) -> int:
        count, size = layer.index.count, prod(layer.index.shape)
        moving = min(int(count * share + 1e-9), size - count)
        if not moving:
            return 0
        scores = self.method.score(layer.values.detach()[None], Stats(site=name))
        kept = select_mask(scores, _ALL, count - moving)[0]
        row, column = layer.entries()
        taken = (row * layer.index.shape[1] + column).sort().values
        generator = torch.Generator().manual_seed(hash((self.seed, self.done, *map(ord, name))) % (1 << 62))
        wanted = min(ceil(moving * self.candidates), size - count) if self.by_gradient else moving
        grown = draw(wanted, size, taken, generator)
        if self.by_gradient:
            grown = self._best(name, layer.index.shape, grown, moving)
        layer.exchange(kept, grown, [self.optimizer])
        return moving

    def _best(self, name: str, shape: tuple[int, int], places: Tensor, count: int) -> Int[Tensor, " count"]:
        if not self._seen[name]:
            raise ModelError(f"Layer {name!r} took no part in the last step: there is no gradient to grow by.")
        index = index_of(places, shape)
        gradient = sum(sddmm(dy, x, index) for x, dy in self._seen[name])
        row, column = index.forward.coordinates()
        best = select_mask(gradient.abs()[None], _ALL, count)[0]  # type: ignore[union-attr]
        return (row * shape[1] + column)[best]

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if module.training and output.requires_grad and self.regime.due(self):  # type: ignore[arg-type]
                x = args[0].detach().reshape(-1, args[0].shape[-1])
                output.register_hook(lambda dy: self._seen[name].append((x, dy.detach().reshape(-1, dy.shape[-1]))))

        return hook

    def _check(self) -> None:
        if not self.layers:
            raise ModelError(
                "Nothing to rewire: the model has no trainable sparse layer (see `sparseworks.trainable`)."
            )
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        for name, layer in self.layers.items():
            if id(layer.values) not in held:
                raise ModelError(f"The optimiser does not hold the values of {name!r}: make it after `trainable`.")
            if self.by_gradient and not isinstance(layer, TrainableSparseLinear):
                raise ModelError(f"Layer {name!r} is no linear layer; grow at random there (method 'set').")
        if self.steps < 1 or self.candidates < 1:
            raise BudgetError(f"Rewiring takes steps >= 1 and candidates >= 1, got {self.steps} and {self.candidates}.")


def draw(
    count: int, total: int, taken: Int[Tensor, " n"], generator: torch.Generator | None = None
) -> Int[Tensor, " count"]:
    """`count` distinct random numbers of [0, total) that are not among the sorted `taken`, without listing the others.

    Raises:
        BudgetError: there are not as many.
    """
    if count > total - taken.numel():
        raise BudgetError(f"Cannot draw {count} of {total - taken.numel()} free positions.")
    # The i-th free position lies behind as many taken ones t as hold t_k - k <= i.
    chosen = _distinct(count, total - taken.numel(), generator)
    return chosen + torch.searchsorted(taken - torch.arange(taken.numel()), chosen, right=True)


def random_support(shape: tuple[int, int], count: int, generator: torch.Generator | None = None) -> Support:
    """`count` entries of a matrix at random, without a dense mask.

    Raises:
        BudgetError: more than there are.
    """
    return support_of(draw(count, prod(shape), torch.empty(0, dtype=torch.long), generator), shape)


def support_of(places: Int[Tensor, " n"], shape: tuple[int, int]) -> Support:
    """The support of distinct positions row * cols + col."""
    places = places.sort().values
    ptr = torch.bincount(places // shape[1], minlength=shape[0]).cumsum(0)
    return Support.from_indices(torch.cat([ptr.new_zeros(1), ptr]), places % shape[1], shape)


def index_of(places: Int[Tensor, " n"], shape: tuple[int, int]) -> SparseIndex:
    """The same as an index for sampled products."""
    return SparseIndex.of(support_of(places, shape))


def _distinct(count: int, total: int, generator: torch.Generator | None) -> Int[Tensor, " count"]:
    if 2 * count >= total:
        return torch.randperm(total, generator=generator)[:count]
    found = torch.randint(total, (count,), generator=generator).unique()
    while found.numel() < count:
        found = torch.cat([found, torch.randint(total, (count,), generator=generator)]).unique()
    return found[torch.randperm(found.numel(), generator=generator)[:count]]


def _regime(method: Method) -> DropGrow:
    regime = method.train
    fits = type(regime) is DropGrow and isinstance(regime.grow, Random | Gradient) and regime.ramp is None
    if not fits or method.score.needs or method.pattern != _ALL:
        raise BudgetError(
            f"Method {method.name!r} does not drop and grow single entries within a tensor by values, at random or by "
            f"gradient; use 'set' or 'rigl', or `sparseworks.Sparsifier` on a dense model."
        )
    assert isinstance(regime, DropGrow)
    return regime
