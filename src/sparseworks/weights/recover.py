"""Recovery: fine-tune a pruned model with its support fixed, towards its dense teacher. Resumable; stops early."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import AdamW, Optimizer

from sparseworks.core.errors import BudgetError, CalibrationError, ModelError
from sparseworks.core.support import Support
from sparseworks.stream import blocks, sites
from sparseworks.stream.modes import evaluating
from sparseworks.weights.checkpoint import fingerprint
from sparseworks.weights.descent import Descent, Recovery, Tick
from sparseworks.weights.distill import Recorder, Term
from sparseworks.weights.enforce import dropped_masks, hold
from sparseworks.weights.show import Shown


def recover(
    model: nn.Module,
    teacher: nn.Module | None,
    data: Iterable[Any],
    *,
    supports: Mapping[str, Support],
    terms: Sequence[Term],
    steps: int | None = 500,
    minutes: float | None = None,
    lr: float = 1e-4,
    warmup: float = 0.05,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
    validate: Callable[[nn.Module], float] | None = None,
    every: int = 100,
    patience: int | None = None,
    checkpoint: Path | str | None = None,
    autocast: torch.dtype | None = None,
    normalise: bool = False,
    seed: int = 0,
    progress: bool | Tick = True,
) -> Recovery:
    """Minimise sum_i weight_i * term_i(student, teacher) over the kept weights; the model is changed in place.

    Data order is a seeded permutation per epoch, so a run interrupted and resumed from `checkpoint` takes the same steps.

    Args:
        model: the pruned model (dense tensors with zeros).
        teacher: the dense model, or None when no term needs one.
        data: batches (dicts of keyword arguments, tuples or tensors); read into a list.
        supports: site name -> support, kept after every step.
        terms: loss terms of `sparseworks.weights.distill`.
        steps: number of optimiser steps; `minutes` may end it before. None = as many as `minutes` allow.
        lr: peak learning rate; linear warm-up over the share `warmup`, linear decay to 2 % of it at the end.
        validate: `validate(model) -> metric`, lower is better, every `every` steps and at the end; the best weights are kept.
        patience: stop after this many validations without improvement.
        checkpoint: file for the training state, written every `every` steps; an existing one of the same run is resumed.
        autocast: torch.bfloat16 for mixed precision.
        normalise: batch norms of the student normalise by each batch and go on averaging, as in training; otherwise they keep
            their statistics, which fit no more where channels are gone.

    Raises:
        CalibrationError: no data.
        ModelError: nothing is trainable, or the loss is not finite.
        BudgetError: neither steps nor minutes.
        CheckpointError: `checkpoint` belongs to another run.
    """
    batches = list(data)
    trainable = [p for p in model.parameters() if p.requires_grad]
    _check(steps, minutes, batches, terms, trainable)
    listed = sites(model, include=["*"])
    masks = dropped_masks(model, listed, supports)
    settings = (steps, minutes, lr, warmup, weight_decay, clip, every, patience, list(terms), str(autocast), normalise)
    kept = sorted((name, support.hash()) for name, support in supports.items())
    name = fingerprint(model, repr((settings, kept)), seed, batches, listed) if checkpoint else ""
    optim = optimizer(trainable) if optimizer else AdamW(trainable, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.98))
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)] if normalise else []
    descent = Descent(
        steps, minutes, lr, warmup, clip, every, patience, seed, batches, terms, validate, autocast, name, norms
    )
    with (
        hold(optim, model, masks),
        _recording(model, terms) as student,
        nullcontext() if teacher is None else _recording(teacher, terms) as target,
        _ticks(progress, steps) as tick,
    ):
        return descent.go(optim, student, target, masks, Path(checkpoint) if checkpoint else None, tick)


def _check(
    steps: int | None, minutes: float | None, batches: Sequence[Any], terms: Sequence[Term], trainable: Sequence[Tensor]
) -> None:
    """Refuse what cannot work before anything is changed; errors as in `recover`."""
    if steps is None and minutes is None:
        raise BudgetError("Recovery needs an end: give `steps`, `minutes` or both.")
    if not batches:
        raise CalibrationError("Recovery needs data, and the data set is empty.")
    if not terms:
        raise ModelError("Recovery needs at least one loss term.")
    if not trainable:
        raise ModelError("The model has no trainable parameters.")


@contextmanager
def _recording(model: nn.Module, terms: Sequence[Term]) -> Iterator[Recorder]:
    """The model in evaluation mode, and what the terms need of it."""
    hidden, named = any(t.needs_hidden for t in terms), sorted({m for t in terms for m in t.modules})
    with evaluating(model):
        recorder = Recorder(model, blocks(model) if hidden else (), named)
        try:
            yield recorder
        finally:
            recorder.close()


@contextmanager
def _ticks(progress: bool | Tick, steps: int | None) -> Iterator[Tick]:
    if callable(progress):
        yield progress
        return
    with Shown(progress).bar("recover", steps) as bar:
        shown = 0

        def tick(step: int, _total: int | None, loss: float) -> None:
            nonlocal shown
            bar(step - shown, f"loss {loss:.4f}")
            shown = step

        yield tick
