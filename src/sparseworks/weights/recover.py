"""Recovery: fine-tune a pruned model with its support fixed, towards its dense teacher. Resumable; stops early."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from sparseworks.core.errors import CalibrationError, CheckpointError, ModelError
from sparseworks.core.support import Support
from sparseworks.io.training import load_training, save_training
from sparseworks.weights.distill import Outputs, Taps, Term
from sparseworks.weights.enforce import keep_support


@dataclass(frozen=True)
class Recovery:
    """What recovery did.

    Attributes:
        steps: optimiser steps taken (over all resumed runs).
        losses: mean training loss of every logging interval.
        validations: (step, metric) pairs.
        best: the best validation metric, or None without validation.
        stopped: "steps", "minutes" or "no improvement".
    """

    steps: int
    losses: tuple[float, ...]
    validations: tuple[tuple[int, float], ...]
    best: float | None
    stopped: str
    seconds: float


@dataclass
class _Progress:
    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    validations: list[tuple[int, float]] = field(default_factory=list)
    best: float | None = None
    bad: int = 0


def recover(
    model: nn.Module,
    teacher: nn.Module | None,
    data: Iterable[Any],
    *,
    supports: Mapping[str, Support],
    terms: Sequence[Term],
    steps: int = 500,
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
    seed: int = 0,
    progress: bool | Callable[[int, int, float], None] = True,
) -> Recovery:
    """Minimise sum_i weight_i * term_i(student, teacher) over the kept weights; the model is changed in place.

    Data order is a seeded permutation per epoch, so a run interrupted and resumed from `checkpoint` takes the same steps.

    Args:
        model: the pruned model (dense tensors with zeros).
        teacher: the dense model, or None when no term needs one.
        data: batches (dicts of keyword arguments, tuples or tensors); read into a list.
        supports: site name -> support, kept after every step.
        terms: loss terms of `sparseworks.weights.distill`.
        steps: number of optimiser steps; `minutes` may end it before.
        lr: peak learning rate; linear warm-up over the share `warmup`, then linear decay to zero.
        validate: `validate(model) -> metric`, lower is better, every `every` steps and at the end; the best weights are kept.
        patience: stop after this many validations without improvement.
        checkpoint: file for the training state, written every `every` steps; an existing one of the same run is resumed.
        autocast: torch.bfloat16 for mixed precision.

    Raises:
        CalibrationError: no data.
        ModelError: nothing is trainable, or the loss is not finite.
        CheckpointError: `checkpoint` belongs to another run.
    """
    from sparseworks.stream import blocks, sites

    batches = list(data)
    if not batches:
        raise CalibrationError("Recovery needs data, and the data set is empty.")
    if not terms:
        raise ModelError("Recovery needs at least one loss term.")
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise ModelError("The model has no trainable parameters.")
    optim = optimizer(trainable) if optimizer else AdamW(trainable, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.98))
    handle = keep_support(optim, model, sites(model), supports)
    hidden = any(t.needs_hidden for t in terms)
    student_taps = Taps([b.module for b in blocks(model)] if hidden else [])
    teacher_taps = Taps([b.module for b in blocks(teacher)] if hidden and teacher is not None else [])
    run = _Run(
        model, teacher, batches, terms, steps, minutes, lr, warmup, clip, validate, every, patience, autocast, seed
    )
    try:
        return run.go(optim, student_taps, teacher_taps, Path(checkpoint) if checkpoint else None, supports, progress)
    finally:
        handle.remove()
        student_taps.close()
        teacher_taps.close()
        model.eval()


@dataclass
class _Run:
    """The loop of `recover`, with everything it holds fixed."""

    model: nn.Module
    teacher: nn.Module | None
    batches: list[Any]
    terms: Sequence[Term]
    steps: int
    minutes: float | None
    lr: float
    warmup: float
    clip: float
    validate: Callable[[nn.Module], float] | None
    every: int
    patience: int | None
    autocast: torch.dtype | None
    seed: int
    best_state: dict[str, Tensor] = field(default_factory=dict)

    def go(
        self,
        optim: Optimizer,
        student: Taps,
        teacher: Taps,
        checkpoint: Path | None,
        supports: Mapping[str, Support],
        progress: bool | Callable[[int, int, float], None],
    ) -> Recovery:
        """Resume if there is something to resume, train, keep the best."""
        name, state = self._fingerprint(supports), _Progress()
        if checkpoint is not None and checkpoint.exists():
            state = self._resume(checkpoint, optim, name)
        started, spent, stopped, window = time.monotonic(), state.seconds, "steps", []
        with _bar(progress, self.steps) as tick:
            while state.step < self.steps:
                state.seconds = spent + time.monotonic() - started
                if self.minutes is not None and state.seconds > 60 * self.minutes:
                    stopped = "minutes"
                    break
                window.append(self._step(optim, student, teacher, state))
                state.step += 1
                tick(state.step, self.steps, window[-1])
                if state.step % self.every == 0 or state.step == self.steps:
                    state.losses.append(sum(window) / len(window))
                    window = []
                    self._validate(state)
                    if checkpoint is not None:
                        facts = {"run": name, "progress": asdict(state)}
                        save_training(checkpoint, self.model, optim, facts, extra=self.best_state)
                    if self.patience is not None and state.bad >= self.patience:
                        stopped = "no improvement"
                        break
        if stopped == "minutes":
            self._validate(state)
        if self.best_state:
            self.model.load_state_dict(self.best_state, strict=False)
        return Recovery(state.step, tuple(state.losses), tuple(state.validations), state.best, stopped, state.seconds)

    def _step(self, optim: Optimizer, student: Taps, teacher: Taps, state: _Progress) -> float:
        share = self._rate(state)
        for group in optim.param_groups:
            group["lr"] = self.lr * share
        batch = self._batch(state.step)
        self.model.train(False)  # dropout would only add noise to a distillation target
        mixed = torch.autocast(_device(self.model), dtype=self.autocast) if self.autocast else nullcontext()
        with mixed:
            target = Outputs(None)
            if self.teacher is not None:
                with torch.no_grad():
                    target = teacher.run(self.teacher, batch)
            outputs = student.run(self.model, batch)
            loss = torch.stack([t.weight * t(outputs, target) for t in self.terms]).sum()
        if not bool(torch.isfinite(loss)):
            raise ModelError(
                f"The recovery loss became {float(loss)} at step {state.step}: lower the learning rate ({self.lr})."
            )
        optim.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([p for g in optim.param_groups for p in g["params"]], self.clip)
        optim.step()
        return float(loss.detach())

    def _rate(self, state: _Progress) -> float:
        """Share of the peak learning rate; with a time limit, progress is whichever of steps and minutes is further on."""
        done = state.step / self.steps
        if self.minutes is not None:
            done = max(done, state.seconds / (60 * self.minutes))
        ramp = min((state.step + 1) / max(self.warmup * self.steps, 1), 1.0)
        return ramp * max(1.0 - done, 0.02)

    def _batch(self, step: int) -> Any:
        epoch, at = divmod(step, len(self.batches))
        order = torch.randperm(len(self.batches), generator=torch.Generator().manual_seed(self.seed * 100_003 + epoch))
        return self.batches[int(order[at])]

    def _validate(self, state: _Progress) -> None:
        if self.validate is None or (state.validations and state.validations[-1][0] == state.step):
            return
        metric = float(self.validate(self.model))
        state.validations.append((state.step, metric))
        if state.best is None or metric < state.best:
            state.best, state.bad = metric, 0
            self.best_state = {k: v.detach().clone() for k, v in self.model.named_parameters()}
        else:
            state.bad += 1

    def _resume(self, checkpoint: Path, optim: Optimizer, name: str) -> _Progress:
        facts, best = load_training(checkpoint, self.model, optim)
        if facts["run"] != name:
            raise CheckpointError(
                f"{checkpoint} belongs to another recovery run (other supports, seed or settings); delete it to start over."
            )
        self.best_state = best
        state = _Progress(**facts["progress"])
        state.validations = [(int(s), float(m)) for s, m in state.validations]
        return state

    def _fingerprint(self, supports: Mapping[str, Support]) -> str:
        what = [(k, v.hash()) for k, v in sorted(supports.items())]
        settings = [
            self.steps,
            self.minutes,
            self.lr,
            self.warmup,
            self.clip,
            self.seed,
            len(self.batches),
            repr(list(self.terms)),
        ]
        return hashlib.sha256(repr((what, settings)).encode()).hexdigest()


class _bar:  # noqa: N801
    """A progress bar, the caller's own callback, or silence."""

    def __init__(self, progress: bool | Callable[[int, int, float], None], total: int):
        self.progress, self.total, self.rich = progress, total, None

    def __enter__(self) -> Callable[[int, int, float], None]:
        if callable(self.progress):
            return self.progress
        if not self.progress:
            return lambda *_: None
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.rich = Progress(
            TextColumn("recover"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} loss {task.fields[loss]:.4f}"),
            TimeRemainingColumn(),
        )
        self.rich.start()
        task = self.rich.add_task("recover", total=self.total, loss=float("nan"))
        return lambda step, _total, loss: self.rich.update(task, completed=step, loss=loss)  # type: ignore[union-attr]

    def __exit__(self, *_: Any) -> None:
        if self.rich is not None:
            self.rich.stop()


def _device(model: nn.Module) -> str:
    return next(model.parameters()).device.type
