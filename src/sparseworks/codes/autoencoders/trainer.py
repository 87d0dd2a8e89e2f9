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
from sparseworks.codes.autoencoders.protocol import Losses
from sparseworks.codes.autoencoders.replay import Replay
from sparseworks.codes.autoencoders.stream import Batch
from sparseworks.core.ahead import running_ahead
from sparseworks.core.errors import BudgetError, CheckpointError, NonFiniteError
from sparseworks.io.training import load_training, save_training

_LOOK = 100  # steps on a GPU between looks at whether losses were finite


@dataclass(frozen=True)
class Schedule:
    """How autoencoders are trained.

    Attributes:
        steps: batches.
        batch: tokens a batch, of all processes together.
        lr: highest learning rate; None: 2e-4 / sqrt(width / 16384) (Gao et al., 2024), at most 3e-3.
        warmup, decay: shares of the steps with a rising and a falling rate.
        clip: largest norm of a gradient; 0: none.
        betas, eps: of Adam; None: as the method was published.
    """

    steps: int
    batch: int = 1024
    lr: float | None = None
    warmup: float = 0.05
    decay: float = 0.2
    clip: float = 1.0
    betas: tuple[float, float] | None = None
    eps: float | None = None

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
        record: on a GPU, record a step and replay it, where all parts of the method are `steady`; such a training's state cannot be saved.

    Attributes:
        ahead: on a GPU: steps are run ahead of the device (`core.ahead`), without a look at entries.
        history: error and L0 of the last step; where steps are replayed the next one overwrites these tensors.
    """

    def __init__(
        self,
        method: AutoencoderMethod,
        sample: Batch,
        width: int,
        schedule: Schedule,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        record: bool = False,
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
        self.ahead = sample.x.is_cuda
        parts = (method.latents, method.auxiliary, method.prefixes, method.target)
        steady = all(part is None or part.steady for part in parts)
        record = record and steady and self.ahead and torch.cuda.is_available() and ranks() == 1
        self.optimiser = Optimiser(
            self.model, schedule.rate(width), schedule.steps, schedule.warmup, schedule.decay, schedule.clip, *self._adam(), record
        )  # fmt: skip
        self._recorded = record
        self._learn = Replay(self._learned) if record else self._learned
        self._finite = torch.ones((), dtype=torch.bool, device=sample.x.device)
        self._residual: Tensor | None = None
        self.history: dict[str, Tensor] = {}

    def step(self, index: int, batch: Batch) -> dict[str, Tensor]:
        """One step; the error and L0 of this process' rows, tensors without dimensions that stay on the device (`float` waits for it).

        Raises:
            NonFiniteError: a loss is not finite; on a GPU that is looked at every hundred steps, and when the state is saved.
        """
        self.optimiser.at(index)
        with running_ahead(self.ahead):
            self._learn(batch)
            self._renew(index, batch)
        self.done = index + 1
        if not self.ahead or self.done % _LOOK == 0 or self.done == self.schedule.steps:
            self._look(index)
        return {name: value.clone() for name, value in self.history.items()} if self._recorded else self.history

    def _learned(self, batch: Batch) -> None:
        model, optimiser = self.model, self.optimiser
        optimiser.zero()
        losses = model.loss(batch, Moment(self.done / self.schedule.steps, batch.gradients))
        self._finite.logical_and_(torch.isfinite(losses.total))
        if not self.ahead:
            self._look(self.done)
        losses.total.backward()
        optimiser.share()
        model.project_gradients()
        optimiser.step()
        optimiser.publish()
        model.constrain()
        self._note(batch, losses)
        optimiser.gather()
        self._residual = losses.residual
        self.history = {"error": losses.error, "l0": losses.coded.l0() if losses.coded else losses.error * math.nan}

    def _look(self, index: int) -> None:
        if not bool(self._finite):
            raise NonFiniteError(
                f"{self.method.name!r} has a loss that is not finite {'by' if self.ahead else 'at'} step {index}: lower the learning rate."
            )

    def _note(self, batch: Batch, losses: Losses) -> None:
        coded: Coded | None = losses.coded
        if coded is None:
            return
        fired = coded.codes.counts(coded.on).double()
        rows = len(batch) * ranks()
        threshold, above, worth = coded.threshold, coded.above, losses.worth
        if ranks() > 1:
            dist.all_reduce(fired)
            if threshold is not None:
                threshold = _mean_known(threshold.clone())
            for counted in (above, worth):
                if counted is not None:
                    dist.all_reduce(counted)
        self.model.note(rows, fired, threshold, above, worth, self.schedule.steps)

    def _renew(self, index: int, batch: Batch) -> None:
        auxiliary, residual = self.method.auxiliary, self._residual
        if auxiliary is None or residual is None or not auxiliary.due(index + 1):
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
                self.optimiser.gather()

    def save(self, path: Path) -> None:
        """Write the state, whole or not at all.

        Raises:
            NonFiniteError: a loss was not finite: the last state stays.
            CheckpointError: the disk is full or not writable.
        """
        self._look(self.done)
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

    def _adam(self) -> tuple[tuple[float, float], float]:
        own, rule = self.schedule, self.method.latents
        return rule.betas if own.betas is None else own.betas, rule.eps if own.eps is None else own.eps

    def _facts(self) -> dict[str, Any]:
        s = self.schedule
        betas, eps = self._adam()
        plain = [s.steps, s.batch, s.lr, s.warmup, s.decay, s.clip, list(betas), eps, self.seed]
        return {"method": self.method.to_config(), "schedule": plain, "ranks": ranks()}


def _mean_known(values: Tensor) -> Tensor:
    """Mean over processes of what is not NaN."""
    known = (~torch.isnan(values)).to(values.dtype)
    total = torch.nan_to_num(values, nan=0.0)
    dist.all_reduce(total)
    dist.all_reduce(known)
    return torch.where(known > 0, total / known, torch.nan)
