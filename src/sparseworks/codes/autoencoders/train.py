"""Train many autoencoders in one pass over a stream of activations: resumable, and on several processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sparseworks.codes.autoencoders.latent import Coded, Moment
from sparseworks.codes.autoencoders.method import AutoencoderMethod
from sparseworks.codes.autoencoders.optimise import Optimiser, rank, ranks
from sparseworks.codes.autoencoders.stream import Batch, Stream, as_stream
from sparseworks.core.errors import BudgetError, CalibrationError, CheckpointError, NonFiniteError
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
        kept = {n: b.clone() for n, b in self.model.named_buffers()}
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
        threshold = coded.threshold
        if ranks() > 1:
            dist.all_reduce(fired)
            if threshold is not None:
                threshold = _mean_known(threshold.clone())
        self.model.note(rows, fired, fired.sum() / rows, threshold)

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


def train_autoencoders(
    stream: Stream | Tensor,
    methods: Sequence[str | AutoencoderMethod],
    *,
    width: int,
    steps: int,
    batch: int = 1024,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    workdir: Path | str | None = None,
    save_every: int = 500,
    progress: bool = False,
    dtype: torch.dtype = torch.float32,
    **schedule: Any,
) -> list[Any]:
    """One autoencoder a method, all in one pass over the stream.

    Args:
        stream: activations, one token a row, or a stream of them.
        methods: methods of autoencoders, or their names.
        width: latents of each.
        steps, batch: how many batches of how many tokens (of all processes together; each takes its share of every batch).
        seed: of the order of tokens.
        seeds: of each autoencoder's dictionary; None: `seed` for all.
        workdir: where states are kept; an interrupted call goes on from there and ends bit for bit where it would have.
        save_every: steps between states.
        progress: show a bar.
        dtype: of the parameters; 16-bit ones are trained by masters of 32.
        schedule: further fields of `Schedule`: lr, warmup, decay, clip, betas.

    Raises:
        CalibrationError: the stream holds fewer tokens than processes.
        UnknownNameError, RecipeError: methods that are not of autoencoders.
        BudgetError: no steps, or more latents kept than there are.
        NonFiniteError: a loss is not finite.
        CheckpointError: the states are damaged, or of another training.
    """
    given = as_stream(stream)
    how = Schedule(steps, batch, **schedule)
    chosen = [AutoencoderMethod.of(m) for m in methods]
    if not chosen or not given.tokens:
        raise CalibrationError("Training needs at least one method and one token.")
    if batch < ranks():
        raise CalibrationError(f"A batch of {batch} tokens cannot be shared by {ranks()} processes.")
    sample = given.batch(0, min(given.tokens, 4096), seed)
    own = list(seeds) if seeds is not None else [seed] * len(chosen)
    trainers = [Trainer(m, sample, width, how, s, dtype) for m, s in zip(chosen, own, strict=True)]
    folder = None if workdir is None else Path(workdir)
    _resume(trainers, folder)
    for index in _watched(range(min(t.done for t in trainers), steps), progress):
        part = _share(given.batch(index, batch, seed))
        for trainer in trainers:
            if trainer.done == index:
                trainer.step(index, part)
        if folder is not None and ((index + 1) % save_every == 0 or index + 1 == steps):
            _save(trainers, folder)
    return [_finished(t.model, given) for t in trainers]


def train_autoencoder(stream: Stream | Tensor, method: str | AutoencoderMethod, **options: Any) -> Any:
    """One autoencoder of a stream of activations; `options` as in `train_autoencoders`, `width` and `steps` are needed.

    Raises:
        As `train_autoencoders`.
    """
    return train_autoencoders(stream, [method], **options)[0]


def _finished(model: Any, stream: Stream) -> Any:
    model.labels = dict(getattr(stream, "labels", {}))
    return model.fold().eval()


def _share(batch: Batch) -> Batch:
    if ranks() == 1:
        return batch
    edges = [len(batch) * r // ranks() for r in range(ranks() + 1)]
    return batch.rows(slice(edges[rank()], edges[rank() + 1]))


def _resume(trainers: Sequence[Trainer], folder: Path | None) -> None:
    if folder is None:
        return
    for i, trainer in enumerate(trainers):
        path = _path(folder, i)
        if path.exists():
            trainer.load(path)


def _save(trainers: Sequence[Trainer], folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"Cannot make the folder {folder}: {error}.") from error
    if rank() == 0:
        for i, trainer in enumerate(trainers):
            trainer.save(_path(folder, i))
    if ranks() > 1:
        dist.barrier()


def _path(folder: Path, index: int) -> Path:
    return folder / f"autoencoder-{index}.safetensors"


def _mean_known(values: Tensor) -> Tensor:
    """Mean over processes of what is not NaN."""
    known = (~torch.isnan(values)).to(values.dtype)
    total = torch.nan_to_num(values, nan=0.0)
    dist.all_reduce(total)
    dist.all_reduce(known)
    return torch.where(known > 0, total / known, torch.nan)


def _watched(steps: range, progress: bool) -> Any:
    if not progress or rank():
        return steps
    from rich.progress import track

    return track(steps, description="Training autoencoders", transient=True)
