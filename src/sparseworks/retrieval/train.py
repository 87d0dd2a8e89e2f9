"""Train a term encoder on pairs of queries and documents, alone or after teachers; an interrupted run goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import BudgetError, CalibrationError, CheckpointError, NonFiniteError
from sparseworks.retrieval.encoders.encoder import TermEncoder
from sparseworks.retrieval.encoders.method import TermMethod
from sparseworks.retrieval.losses import RankingLoss
from sparseworks.retrieval.regularisers import CodeRegulariser, quadratic_ramp
from sparseworks.stream.progress import bar

Teacher = Callable[[Sequence[str], Sequence[str]], Float[Tensor, "queries documents"]]
"""(queries, documents) -> scores of all pairs; whether their scale counts is the loss's."""


@dataclass
class Progress:
    """What training saw, one entry a step.

    Attributes:
        loss: of ranking, without regularisers.
        nnz_query, nnz_document: mean entries of a code.
        resumed: the step it went on from; 0: from the start.
    """

    loss: list[float] = field(default_factory=list)
    nnz_query: list[float] = field(default_factory=list)
    nnz_document: list[float] = field(default_factory=list)
    resumed: int = 0


@dataclass
class DenseTeacher:
    """Inner products of dense embeddings; a text is embedded once.

    Args:
        embed: texts -> vectors, one a row.
        embed_documents: for models with another form for documents; default: `embed`.
    """

    embed: Callable[[list[str]], Float[Tensor, "texts width"]]
    embed_documents: Callable[[list[str]], Float[Tensor, "texts width"]] | None = None

    def __post_init__(self):
        self._known: dict[tuple[bool, str], Tensor] = {}

    def __call__(self, queries: Sequence[str], documents: Sequence[str]) -> Float[Tensor, "queries documents"]:
        """Scores of all pairs."""
        return self._of(queries, False) @ self._of(documents, True).T

    def _of(self, texts: Sequence[str], documents: bool) -> Tensor:
        new = [t for t in dict.fromkeys(texts) if (documents, t) not in self._known]
        if new:
            with torch.no_grad():
                vectors = (self.embed_documents if documents and self.embed_documents else self.embed)(new)
            self._known.update(zip(((documents, t) for t in new), vectors, strict=True))
        return torch.stack([self._known[documents, t] for t in texts])


def train_retriever(
    encoder: TermEncoder,
    method: TermMethod | str,
    pairs: Sequence[Sequence[str]],
    *,
    teachers: Sequence[Teacher] = (),
    steps: int = 1000,
    batch_size: int = 32,
    rate: float = 2e-5,
    weight_decay: float = 0.01,
    idf: Float[Tensor, " width"] | None = None,
    seed: int = 0,
    folder: Path | str | None = None,
    save_every: int = 200,
    progress: bool = False,
) -> Progress:
    """Minimise loss(<w_q, w_d>, teacher) + ramp(t) (lambda_q R(w_q) + lambda_d R(w_d)) over batches of pairs.

    R sees the weights before the window and the normalisation of a side.

    Args:
        encoder: of the method's sides (`method.encoder(model, tokenizer)`); trained in place, left in evaluation mode.
        method: loss, regularisers and ramp.
        pairs: (query, its document, other documents ...); all documents of a batch compete for each query, or its own (the loss's
            `in_batch`), and regularisers take the mean over documents of the same place in their rows.
        teachers: their scores are put together as the loss says: `DistillKL` normalises them query by query (`ensemble`), `MarginMSE` takes
            the mean of them as they are.
        steps: optimiser steps; the rate rises over the first twentieth and falls linearly.
        rate, weight_decay: of AdamW; the decay is that of SPLADE's and of the inference-free retrievers' code.
        idf: for regularisers that ask for it.
        seed: of the order of pairs and of dropout.
        folder: where the run is kept; a run of the same method, seed and sizes is continued.
        save_every: steps between two writes.

    Raises:
        CalibrationError: no pairs, rows without document or of different lengths, or a loss without its teacher.
        BudgetError: no steps or an empty batch.
        CheckpointError: the folder holds another run, or cannot be read or written.
        NonFiniteError: the loss became NaN or infinite.
        RecipeError: the encoder's sides are not those of the method.
    """
    method = TermMethod.of(method)
    _check(encoder, method, pairs, teachers, steps, batch_size)
    batch_size = min(batch_size, len(pairs))
    texts = _Texts(encoder, method, pairs, teachers, idf)
    parameters = [p for p in encoder.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: _rate(t, steps))
    seen = Progress()
    key = {"method": method.to_config(), "seed": seed, "steps": steps, "batch": batch_size, "pairs": len(pairs)}
    encoder.train()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        run = None if folder is None else _Run(Path(folder), key, encoder, optimizer, schedule, seen)
        start = run.resume() if run else 0
        for step in bar(range(start, steps), "train", progress):
            rank, cost = texts.losses(_rows(step, batch_size, len(pairs), seed), seen)
            total = rank + quadratic_ramp(step + 1, round(method.ramp * steps)) * cost
            if not bool(torch.isfinite(total)):
                raise NonFiniteError(f"The loss is {float(total)} at step {step}: lower the rate.")
            optimizer.zero_grad()
            if total.requires_grad:
                total.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
            schedule.step()
            if run and ((step + 1) % save_every == 0 or step + 1 == steps):
                run.save(step + 1)
    encoder.eval()
    return seen


class _Texts:
    """Pairs as token ids, and what a batch of them costs."""

    def __init__(
        self, encoder: TermEncoder, method: TermMethod, pairs: Sequence[Sequence[str]], teachers: Sequence[Teacher],
        idf: Tensor | None,
    ):  # fmt: skip
        self.encoder, self.method, self.pairs, self.teachers, self.idf = encoder, method, pairs, teachers, idf
        self.queries = encoder.token_ids([row[0] for row in pairs], True)
        self.documents = [encoder.token_ids(c, False) for c in zip(*(row[1:] for row in pairs), strict=True)]

    def losses(self, rows: Sequence[int], seen: Progress) -> tuple[Tensor, Tensor]:
        """Loss of ranking, and the regularisers' cost before the ramp."""
        method, weigh = self.method, self.encoder.open_weights
        open_q = weigh([self.queries[i] for i in rows], True)
        open_d = torch.stack([weigh([column[i] for i in rows], False) for column in self.documents])
        wq, wd = method.query.focus(open_q), torch.stack([method.document.focus(w) for w in open_d])
        teacher = _taught(method.loss, self.teachers, self.pairs, rows, wq) if method.loss.needs_teacher else None
        rank = method.loss(wq @ wd.flatten(0, 1).T, torch.arange(len(rows), device=wq.device), teacher)
        seen.loss.append(float(rank.detach()))
        seen.nnz_query.append(_entries(wq))
        seen.nnz_document.append(_entries(wd))
        return rank, _cost(method.query_regulariser, open_q, self.idf) + _cost(
            method.document_regulariser, open_d, self.idf
        )


def _entries(w: Tensor) -> float:
    return float((w.detach() != 0).sum(-1).float().mean())


class _Run:
    """State of a run in one file, written whole or not at all."""

    def __init__(
        self, folder: Path, key: dict[str, Any], encoder: TermEncoder, optimizer: Any, schedule: Any, seen: Progress
    ):
        self.path, self.key, self.seen = folder / "retriever.pt", key, seen
        self.parts = {"encoder": encoder, "optimizer": optimizer, "schedule": schedule}

    def resume(self) -> int:
        if not self.path.exists():
            return 0
        try:
            state = torch.load(self.path, weights_only=True)
            if state["key"] != self.key:
                raise CheckpointError(f"{self.path} belongs to another run: use another folder, or remove it.")
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
            torch.set_rng_state(state["rng"])
            step = int(state["step"])
            self.seen.loss, self.seen.nnz_query, self.seen.nnz_document = (list(s) for s in state["seen"])
        except CheckpointError:
            raise
        except Exception as error:  # torch reports damage by many exceptions of its own
            raise CheckpointError(f"{self.path} is damaged: {error}. Remove it to begin anew.") from error
        self.seen.resumed = step
        return step

    def save(self, step: int) -> None:
        seen = (self.seen.loss, self.seen.nnz_query, self.seen.nnz_document)
        state = {name: part.state_dict() for name, part in self.parts.items()}
        temporary = self.path.with_name(self.path.name + ".tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({**state, "key": self.key, "step": step, "rng": torch.get_rng_state(), "seen": seen}, temporary)
            temporary.replace(self.path)
        except (OSError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)
            raise CheckpointError(f"Cannot write {self.path}: {error}. Free space or choose another folder.") from error


def _check(
    encoder: TermEncoder, method: TermMethod, pairs: Sequence[Sequence[str]], teachers: Sequence[Teacher], steps: int,
    batch_size: int,
) -> None:  # fmt: skip
    from sparseworks.core.errors import RecipeError

    if steps < 1 or batch_size < 1:
        raise BudgetError(f"Training takes at least one step and one pair a batch, got {steps} and {batch_size}.")
    if not len(pairs) or len({len(row) for row in pairs}) != 1 or len(pairs[0]) < 2:
        raise CalibrationError("Pairs are rows (query, document, other documents ...) of one length, at least one row.")
    if method.loss.needs_teacher and not teachers:
        raise CalibrationError(f"The loss of {method.name!r} learns from a teacher: give `teachers=`.")
    if (encoder.query, encoder.document) != (method.query, method.document):
        raise RecipeError(f"The encoder has other sides than {method.name!r}: make it by `method.encoder(...)`.")


def _taught(
    loss: RankingLoss, teachers: Iterable[Teacher], pairs: Sequence[Sequence[str]], rows: Sequence[int], like: Tensor
) -> Tensor:
    asked = [pairs[i][0] for i in rows]
    offered = [pairs[i][c] for c in range(1, len(pairs[0])) for i in rows]
    return loss.taught([teacher(asked, offered).to(like.device, torch.float32) for teacher in teachers]).to(like.dtype)


def _cost(regulariser: CodeRegulariser | None, w: Tensor, idf: Tensor | None) -> Tensor:
    return w.new_zeros(()) if regulariser is None else regulariser.weight * regulariser(w, idf)


def _rate(step: int, steps: int) -> float:
    warm = max(steps // 20, 1)
    return min((step + 1) / warm, max((steps - step) / max(steps - warm, 1), 0.0))


def _rows(step: int, batch: int, pairs: int, seed: int) -> list[int]:
    """The rows of a step: every epoch is a permutation of its own, so that a step does not depend on those before it."""
    epoch, place = divmod(step, pairs // batch)
    order = torch.randperm(pairs, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    return order[place * batch : (place + 1) * batch].tolist()
