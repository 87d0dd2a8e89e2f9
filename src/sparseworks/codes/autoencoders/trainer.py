"""One autoencoder being trained: steps, counts, renewal, states."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sparseworks.codes.autoencoders.latent import Coded, Moment
from sparseworks.codes.autoencoders.method import AutoencoderMethod
from sparseworks.codes.autoencoders.optimise import Optimiser, ranks
from sparseworks.codes.autoencoders.stream import Batch
from sparseworks.core.errors import BudgetError, CheckpointError, NonFiniteError
from sparseworks.io.training import load_training, save_training


@dataclass(frozen=True)
class Schedule:
    """How autoencoders are trained.

    Attributes:
        steps: batches.
        batch: tokens a batch, of all processes together.
        lr: highest learning rate; None: 2e-4 / sqrt(width / 16384) (Gao et al., 2024), at most 3e-3.
        warmup, decay: shares of the steps with a rising and a falling rate.
        clip: largest norm of a gradient; 0: none.
        betas: of Adam.
    """

    steps: int
    batch: int = 1024
    lr: float | None = None
    warmup: float = 0.05
    decay: float = 0.2
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise BudgetError(f"Training takes at least one step of one token, got {self.steps} of {self.batch}.")

    def rate(self, width: int) -> float:
        """The highest learning rate for so many latents."""
        return min(2e-4 / math.sqrt(width / 16384), 3e-3) if self.lr is None else self.lr


class Trainer:
    """One autoencoder being trained: `step(i, batch)` in order, `save` and `load` in between.

    Args:
        method: a method of autoencoders.
        sample: activations that sizes, scale and bias are taken from.
        width: latents.
        schedule: how.
        seed: of the first dictionary and of what is drawn.
        dtype: of the parameters.
    """

    def __init__(
        self,
        method: AutoencoderMethod,
        sample: Batch,
        width: int,
        schedule: Schedule,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.method, self.schedule, self.seed, self.done = method, schedule, seed, 0
        target = sample.x if method.target is None else method.target(sample)
        self.model: Any = method.latents.build(method, sample.x.shape[1], width, target.shape[1], seed)
        self.model.to(sample.x.device)
        self.model.prepare(sample)
        kept = {n: b.clone() for n, b in self.model.named_buffers() if n != "b_enc"}
        self.model.to(dtype)
        for name, buffer in kept.items():  # clocks, densities and scales keep their precision
            setattr(self.model, name, buffer)
        self.model.train()
        rate = schedule.rate(width)
        self.optimiser = Optimiser(
            self.model, rate, schedule.steps, schedule.warmup, schedule.decay, schedule.clip, schedule.betas
        )
        self.history: dict[str, float] = {}

    def step(self, index: int, batch: Batch) -> dict[str, float]:
        """One step; the error and L0 of this process' rows.

        Raises:
            NonFiniteError: the loss is not finite.
        """
        model, schedule = self.model, self.schedule
        self.optimiser.zero()
        losses = model.loss(batch, Moment(index / schedule.steps, batch.gradients))
        if not bool(torch.isfinite(losses.total)):
            raise NonFiniteError(
                f"{self.method.name!r} has a loss of {float(losses.total)} at step {index}: lower the learning rate."
            )
        losses.total.backward()
        self.optimiser.share()
        model.project_gradients()
        self.optimiser.step(index)
        self.optimiser.publish()
        model.constrain()
        self._note(batch, losses.coded)
        self._renew(index, batch, losses.residual)
        self.optimiser.gather()
        self.done = index + 1
        self.history = {"error": float(losses.error), "l0": float(losses.coded.l0()) if losses.coded else math.nan}
        return self.history

    def _note(self, batch: Batch, coded: Coded | None) -> None:
        if coded is None:
            return
        on = coded.codes.values.detach() != 0 if coded.on is None else coded.on
        fired = torch.bincount(coded.codes.indices[on].long(), minlength=coded.codes.width).double()
        rows = len(batch) * ranks()
        threshold, above = coded.threshold, coded.above
        if ranks() > 1:
            dist.all_reduce(fired)
            if threshold is not None:
                threshold = _mean_known(threshold.clone())
            if above is not None:
                dist.all_reduce(above)
        self.model.note(rows, fired, threshold, above, self.schedule.steps)

    def _renew(self, index: int, batch: Batch, residual: Tensor) -> None:
        auxiliary = self.method.auxiliary
        if auxiliary is None:
            return
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        with torch.no_grad():
            x = self.model.centre(batch.x.to(residual.dtype) * self.model.scale.to(residual.dtype))
            latents = auxiliary.renew(self.model, x, residual, generator)
            if latents is not None:
                if ranks() > 1:  # the first process' examples for all
                    for p in self.optimiser.parameters:
                        dist.broadcast(p.data, 0)
                self.optimiser.forget(latents, self.model.width)

    def save(self, path: Path) -> None:
        """Write the state, whole or not at all.

        Raises:
            CheckpointError: the disk is full or not writable.
        """
        facts = {"done": self.done, "of": self._facts()}
        save_training(path, self.model, self.optimiser.adam, facts, extra=self.optimiser.extra())

    def load(self, path: Path) -> None:
        """Go on from a saved state.

        Raises:
            CheckpointError: damaged, or of another training.
        """
        state = torch.get_rng_state()
        facts, extra = load_training(path, self.model, self.optimiser.adam)
        torch.set_rng_state(state)
        if facts.get("of") != self._facts():
            raise CheckpointError(f"{path} is of another training ({facts.get('of')}); delete it or change the folder.")
        self.optimiser.restore(extra)
        self.done = int(facts["done"])

    def _facts(self) -> dict[str, Any]:
        s = self.schedule
        plain = [s.steps, s.batch, s.lr, s.warmup, s.decay, s.clip, list(s.betas), self.seed]
        return {"method": self.method.to_config(), "schedule": plain, "ranks": ranks()}


def _mean_known(values: Tensor) -> Tensor:
    """Mean over processes of what is not NaN."""
    known = (~torch.isnan(values)).to(values.dtype)
    total = torch.nan_to_num(values, nan=0.0)
    dist.all_reduce(total)
    dist.all_reduce(known)
    return torch.where(known > 0, total / known, torch.nan)
