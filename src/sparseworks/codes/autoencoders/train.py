"""Train many autoencoders in one pass over a stream of activations: resumable, and on several processes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sparseworks.codes.autoencoders.method import AutoencoderMethod
from sparseworks.codes.autoencoders.optimise import rank, ranks
from sparseworks.codes.autoencoders.stream import Batch, Stream, as_stream
from sparseworks.codes.autoencoders.trainer import Schedule, Trainer
from sparseworks.core.errors import CalibrationError, CheckpointError, SparseworksError
from sparseworks.stream.progress import bar


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
        schedule: further fields of `Schedule`: lr, warmup, decay, clip, betas, eps.

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
    folder = None if workdir is None else Path(workdir)
    make = partial(Trainer, sample=sample, width=width, schedule=how, dtype=dtype, record=folder is None)
    trainers = [make(m, seed=s) for m, s in zip(chosen, own, strict=True)]
    _resume(trainers, folder)
    for index in bar(range(min(t.done for t in trainers), steps), "train autoencoders", progress and not rank()):
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
    for p in model.parameters():
        p.grad = None
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
    problem: SparseworksError | None = None
    if rank() == 0:
        try:
            for i, trainer in enumerate(trainers):
                trainer.save(_path(folder, i))
        except SparseworksError as error:
            problem = error
    if ranks() > 1:  # all stop where the first process could not save
        told = [problem]
        dist.broadcast_object_list(told, 0)
        problem = told[0]
    if problem is not None:
        raise problem


def _path(folder: Path, index: int) -> Path:
    return folder / f"autoencoder-{index}.safetensors"
