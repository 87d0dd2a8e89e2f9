"""Pruning in phases: prune, train with the support fixed, prune further, train again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from sparseworks.core.errors import BudgetError
from sparseworks.core.method import Method
from sparseworks.weights.distill import Task, Term
from sparseworks.weights.prune import prune
from sparseworks.weights.recover import Recovery, recover
from sparseworks.weights.streaming import Pruned


@dataclass(frozen=True)
class Phase:
    """One density and what is trained at it.

    Attributes:
        density: share of the weights kept, or None to train on with the support as it is (fine-tuning).
        steps: optimiser steps with the support fixed; 0 = prune only.
        terms: the loss; towards a teacher where a term needs one.
        data: training batches; None = those of the whole run.
    """

    density: float | None
    steps: int
    lr: float = 1e-4
    terms: Sequence[Term] = field(default_factory=lambda: (Task(),))
    data: Sequence[Any] | None = None


def prune_in_phases(
    model: nn.Module,
    method: Method | str,
    phases: Sequence[Phase],
    data: Iterable[Any],
    *,
    calibration: Iterable[Any] | None = None,
    teacher: nn.Module | None = None,
    seed: int = 0,
    progress: bool = True,
) -> tuple[Pruned, list[Recovery]]:
    """Phase after phase: one-shot pruning to its density, then training with that support; in place.

    Sparse-Llama is SparseGPT to 50 %, continued pre-training, SparseGPT to 70 %, continued pre-training, fine-tuning with
    `SquareHead` towards a fine-tuned dense teacher, all uniform: `[Phase(0.5, n), Phase(0.3, m), Phase(None, k, terms=...)]`.

    Source: Agarwalla et al., 2024, arXiv 2405.03594.

    Args:
        data: training batches.
        calibration: batches to prune on; default: those to train on.

    Raises:
        BudgetError: the first phase has no density; otherwise what `prune` and `recover` raise.
    """
    batches = list(data)
    seen = batches if calibration is None else list(calibration)
    method = Method.of(method)
    if not phases or phases[0].density is None:
        raise BudgetError("The first phase prunes: give it a density.")
    pruned: Pruned | None = None
    recoveries = []
    for phase in phases:
        if phase.density is not None:
            pruned = prune(model, method.with_(density=phase.density), seen, seed=seed, progress=progress)
        assert pruned is not None
        if phase.steps:
            recoveries.append(
                recover(
                    model, teacher, phase.data or batches, supports=pruned.supports, terms=phase.terms,
                    steps=phase.steps, lr=phase.lr, seed=seed, progress=progress,
                )
            )  # fmt: skip
    assert pruned is not None
    return pruned, recoveries
