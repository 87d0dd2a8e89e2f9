"""The descent of a recovery: step after step on the kept weights until steps, minutes or patience run out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparseworks.core.errors import CheckpointError, ModelError
from sparseworks.io.training import load_training, save_training
from sparseworks.weights.distill import Outputs, Recorder, Term
from sparseworks.weights.enforce import impose

Tick = Callable[[int, int | None, float], None]
"""`tick(step, steps, loss)`, called after every optimiser step."""


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


@dataclass
class Descent:
    """The loop of `recover`, with everything it holds fixed; names as there.

    Attributes:
        name: fingerprint of the run, by which its checkpoint is known.
        norms: batch norms that normalise by each batch.
        best_state: weights at the best validation.
    """

    steps: int | None
    minutes: float | None
    lr: float
    warmup: float
    clip: float
    every: int
    patience: int | None
    seed: int
    batches: list[Any]
    terms: Sequence[Term]
    validate: Callable[[nn.Module], float] | None
    autocast: torch.dtype | None
    name: str
    norms: Sequence[nn.Module] = ()
    best_state: dict[str, Tensor] = field(default_factory=dict)

    def go(
        self,
        optim: Optimizer,
        student: Recorder,
        teacher: Recorder | None,
        masks: Mapping[str, Tensor],
        checkpoint: Path | None,
        tick: Tick,
    ) -> Recovery:
        """Resume if there is something to resume, train, keep the best."""
        state, window = _Progress(), []
        if checkpoint is not None and checkpoint.exists():
            state = self._resume(checkpoint, student.model, optim)
        started, spent = time.monotonic(), state.seconds
        while not (stopped := self._over(state)):
            window.append(self._step(optim, student, teacher, masks, state))
            state.step += 1
            state.seconds = spent + time.monotonic() - started
            tick(state.step, self.steps, window[-1])
            if state.step % self.every == 0 or self._over(state):
                state.losses.append(sum(window) / len(window))
                window = []
                self._validate(student.model, state)
                if checkpoint is not None:
                    facts = {"run": self.name, "progress": asdict(state)}
                    save_training(checkpoint, student.model, optim, facts, extra=self.best_state)
        if self.best_state:
            student.model.load_state_dict(self.best_state, strict=False)
        return Recovery(state.step, tuple(state.losses), tuple(state.validations), state.best, stopped, state.seconds)

    def _over(self, state: _Progress) -> str:
        """Why there is nothing more to do, or nothing."""
        if self.patience is not None and state.bad >= self.patience:
            return "no improvement"
        if self.steps is not None and state.step >= self.steps:
            return "steps"
        return "minutes" if self.minutes is not None and state.seconds > 60 * self.minutes else ""

    def _step(
        self,
        optim: Optimizer,
        student: Recorder,
        teacher: Recorder | None,
        masks: Mapping[str, Tensor],
        state: _Progress,
    ) -> float:
        for group in optim.param_groups:
            group["lr"] = self.lr * self._rate(state)
        batch, model = self._batch(state.step), student.model
        device = next(model.parameters()).device.type
        with torch.enable_grad(), torch.autocast(device, dtype=self.autocast) if self.autocast else nullcontext():
            with torch.no_grad():
                target = teacher.run(batch) if teacher else Outputs(None)
            self._normalise(True)
            outputs = student.run(batch)
            self._normalise(False)
            loss = torch.stack([t.weight * t(outputs, target) for t in self.terms]).sum()
        if not bool(torch.isfinite(loss)):
            raise ModelError(
                f"The recovery loss became {float(loss)} at step {state.step}: lower the learning rate ({self.lr})."
            )
        optim.zero_grad(set_to_none=True)
        loss.backward()
        impose(model, masks, gradients=True)  # what is dropped must not count in the norm that is clipped
        nn.utils.clip_grad_norm_([p for g in optim.param_groups for p in g["params"]], self.clip)
        optim.step()
        return float(loss.detach())

    def _normalise(self, anew: bool) -> None:
        for norm in self.norms:
            norm.train(anew)

    def _rate(self, state: _Progress) -> float:
        """Share of the peak learning rate: a ramp over the share `warmup` of the run, then straight down to 2 %."""
        ramp = self._share(state.step + 1, state.seconds) / self.warmup if self.warmup else 1.0
        return min(ramp, 1.0) * max(1.0 - self._share(state.step, state.seconds), 0.02)

    def _share(self, step: int, seconds: float) -> float:
        """How much of the run is done, by steps or by time, whichever is further on."""
        by_steps = step / self.steps if self.steps is not None else 0.0
        by_time = seconds / (60 * self.minutes) if self.minutes is not None else 0.0
        return max(by_steps, by_time)

    def _batch(self, step: int) -> Any:
        epoch, at = divmod(step, len(self.batches))
        order = torch.randperm(len(self.batches), generator=torch.Generator().manual_seed(self.seed * 100_003 + epoch))
        return self.batches[int(order[at])]

    def _validate(self, model: nn.Module, state: _Progress) -> None:
        if self.validate is None:
            return
        metric = float(self.validate(model))
        state.validations.append((state.step, metric))
        if state.best is None or metric < state.best:
            state.best, state.bad = metric, 0
            kept = (*model.named_parameters(), *(model.named_buffers() if self.norms else ()))
            self.best_state = {k: v.detach().clone() for k, v in kept}
        else:
            state.bad += 1

    def _resume(self, checkpoint: Path, model: nn.Module, optim: Optimizer) -> _Progress:
        facts, best = load_training(checkpoint, model, optim)
        if facts["run"] != self.name:
            raise CheckpointError(
                f"{checkpoint} belongs to another recovery run (other weights, supports, data, seed or settings); "
                f"delete it to start over."
            )
        self.best_state = best
        state = _Progress(**facts["progress"])
        state.validations = [(int(s), float(m)) for s, m in state.validations]
        return state
