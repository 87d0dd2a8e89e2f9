"""Training in three steps (dense, mask, sparse), in the last of which the architecture of cells is learned beside the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn
from torch.optim import Adam, Optimizer

from sparseworks.core.errors import BudgetError, CalibrationError, ModelError
from sparseworks.core.method import Method
from sparseworks.core.site import Site
from sparseworks.core.support import Support
from sparseworks.stream import sites as find_sites
from sparseworks.stream.gradients import Loss
from sparseworks.weights.enforce import keep_support
from sparseworks.weights.search.cell import Genotype, cells
from sparseworks.weights.train import Sparsifier

Build = Callable[[Iterable[nn.Parameter]], Optimizer]


@dataclass(frozen=True)
class Searched:
    """What the three steps ended with.

    Attributes:
        supports: site -> what is kept; empty without a method.
        genotypes: name of a cell -> what is chosen for it; `derive` builds it.
        losses: mean training loss of the dense, the mask and the sparse step.
    """

    supports: dict[str, Support]
    genotypes: dict[str, Genotype]
    losses: tuple[float, float, float]


def search_sparse(
    model: nn.Module,
    method: Method | str | None,
    train: Sequence[Any],
    validate: Sequence[Any],
    loss: Loss,
    *,
    steps: tuple[int, int, int],
    optimizer: Build | None = None,
    architecture: Build | None = None,
    skip: Sequence[str] = (),
    seed: int = 0,
) -> Searched:
    """Dense training, learning of the mask, training of what is kept; the model is changed in place.

    All convolutions and linear layers are masked, depthwise ones too.

    1. W <- argmin L_train(W, alpha), dense;
    2. the supports by the method's regime, on the training data;
    3. in turns alpha <- alpha - dL_val(W * M, alpha) and W <- W - dL_train(W * M, alpha), the supports held.

    alpha is that of the model's `Cell`s, found by first-order differentiable search: in step 3 both losses are those of the
    masked network. Without cells this is the training of a sparse network in three steps, which `derive`d ones go through
    again. Without a method nothing is masked and step 2 trains dense weights on: the search whose objective is dense.

    Source: Mousavi, Loni, Alibeigi and Daneshtalab, 2023, arXiv 2207.06968 (DASS); the architecture's optimiser is that of
    Liu, Simonyan and Yang, 2019, arXiv 1806.09055.

    Args:
        method: a method with a regime that learns masks ("dass"), or None.
        train, validate: batches; `validate` may be empty when the model has no cells.
        loss: `loss(model, batch)`.
        steps: optimiser steps of each of the three.
        optimizer: builds the optimiser of weights (and of scores in step 2); default: Adam at 1e-2.
        architecture: builds the optimiser of alpha; default: Adam at 3e-4 with moments (0.5, 0.999) and decay 1e-3.
        skip: shell-style patterns of site names that stay dense.

    Raises:
        CalibrationError: no training data, or cells and no validation data.
        BudgetError: negative steps.
        ModelError: the method has no regime of training.
    """
    found = cells(model)
    alphas = [cell.alpha for cell in found.values()]
    if not train or (alphas and not validate):
        raise CalibrationError("A search needs training data, and validation data where there are cells to choose.")
    if min(steps) < 0:
        raise BudgetError(f"The three steps have lengths of at least 0, got {steps}.")
    chosen = None if method is None else Method.of(method)
    if chosen is not None and chosen.train is None:
        raise ModelError(f"Method {chosen.name!r} learns no mask; take one that does ('dass').")
    steppers = _Steppers(model, loss, optimizer or _weights, _forever(train, seed), _forever(validate, seed + 1))
    model.train()
    dense = steppers.dense(steps[0])
    supports, masking = steppers.masked(chosen, steps[1], skip, seed)
    sparse = steppers.sparse(supports, steps[2], (architecture or _alphas)(alphas) if alphas else None)
    return Searched(supports, {name: cell.genotype() for name, cell in found.items()}, (dense, masking, sparse))


def _weights(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return Adam(parameters, lr=1e-2)


def _alphas(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return Adam(parameters, lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)


@dataclass
class _Steppers:
    """The three steps; each begins with a new optimiser and gives its mean training loss."""

    model: nn.Module
    loss: Loss
    build: Build
    train: Iterator[Any]
    validate: Iterator[Any]

    def dense(self, steps: int) -> float:
        optimizer = self._optimizer()
        return _mean(self._descend(optimizer, self.train) for _ in range(steps))

    def masked(
        self, method: Method | None, steps: int, skip: Sequence[str], seed: int
    ) -> tuple[dict[str, Support], float]:
        sites = [s for s in _layers(self.model) if not any(fnmatch(s.name, text) for text in skip)]
        if method is None or not sites:  # cells of operations without weights have nothing to mask
            return {}, self.dense(steps)
        optimizer, losses = self._optimizer(), []
        run = Sparsifier(self.model, method, optimizer, steps=max(steps, 1), sites=sites, seed=seed)
        for _ in range(steps):
            losses.append(self._descend(optimizer, self.train))
            run.step()
        return run.finish(), _mean(losses)

    def sparse(self, supports: dict[str, Support], steps: int, architecture: Optimizer | None) -> float:
        optimizer, losses = self._optimizer(), []
        holding = keep_support(optimizer, self.model, _layers(self.model), supports)
        for _ in range(steps):
            if architecture is not None:
                self._descend(architecture, self.validate)
            losses.append(self._descend(optimizer, self.train))
        holding.remove()
        return _mean(losses)

    def _optimizer(self) -> Optimizer:
        held = {id(cell.alpha) for cell in cells(self.model).values()}
        return self.build([p for p in self.model.parameters() if id(p) not in held])

    def _descend(self, optimizer: Optimizer, batches: Iterator[Any]) -> float:
        self.model.zero_grad(set_to_none=True)
        value = self.loss(self.model, next(batches))
        value.backward()
        optimizer.step()
        return float(value.detach())


def _layers(model: nn.Module) -> list[Site]:
    """Every convolution and linear layer, depthwise ones too."""
    try:
        return [s for s in find_sites(model, include=["*"]) if s.kind != "embedding"]
    except ModelError:  # nothing matches: the model has no matrix at all
        return []


def _mean(losses: Iterable[float]) -> float:
    listed = list(losses)
    return sum(listed) / max(len(listed), 1)


def _forever(batches: Sequence[Any], seed: int) -> Iterator[Any]:
    """All batches in a new order every epoch."""
    generator = torch.Generator().manual_seed(seed)
    while batches:
        for at in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[at]
