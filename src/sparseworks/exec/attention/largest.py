"""The largest scores of a row as a list of places, and the limit that a weight of entries reaches: for one query, where a mask is waste."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from sparseworks.core.errors import NonFiniteError, ShapeError
from sparseworks.core.select import top
from sparseworks.exec.native import native


def best(
    scores: Float[Tensor, "rows n"], keep: Int[Tensor, " rows"]
) -> tuple[Int[Tensor, " rows+1"], Int[Tensor, " count"]]:
    """`(ptr, idx)`: of row r the places idx[ptr[r]:ptr[r+1]] of its `keep[r]` largest scores, ascending; of those that tie the first.

    Scores of inf are among them in any case, those of -inf never: there are min(max(keep, infinite), above -inf) of them.

    Raises:
        ShapeError: not as many counts as rows.
        NonFiniteError: NaN in the scores.
    """
    rows, n = scores.shape
    if keep.shape != (rows,):
        raise ShapeError(f"There are {rows} rows of scores and {tuple(keep.shape)} counts.")
    _refuse_nan(scores)
    module = native()
    if module is None or not scores.is_cpu or scores.dtype is not torch.float32 or not scores.numel():
        must, live = ((x.sum(-1)) for x in (scores == torch.inf, scores > -torch.inf))
        counts = torch.maximum(keep.to(must), must).minimum(live)
        mask = top(scores, counts) if scores.numel() else torch.zeros_like(scores, dtype=torch.bool)
        return _pointers(counts.cpu()), mask.nonzero()[:, 1].int().cpu()
    scores, keep = scores.detach().contiguous(), keep.detach().cpu().int().contiguous()
    idx, counts = torch.empty(rows, n, dtype=torch.int32), torch.empty(rows, dtype=torch.int32)
    module.best(*(t.data_ptr() for t in (scores, keep, idx, counts)), rows, n, torch.get_num_threads())
    return _pointers(counts), torch.cat([row[:count] for row, count in zip(idx, counts.tolist(), strict=True)])


def cut(scores: Float[Tensor, " n"], weight: Int[Tensor, " n"], keep: int) -> float:
    """The largest limit that entries of a weight of `keep` in all reach; -inf where all weigh less.

    Raises:
        ShapeError: not as many weights as scores.
        NonFiniteError: NaN in the scores.
    """
    if scores.dim() != 1 or weight.shape != scores.shape:
        raise ShapeError(f"Scores and weights are two vectors, got {tuple(scores.shape)} and {tuple(weight.shape)}.")
    _refuse_nan(scores)
    module = native()
    if module is not None and scores.is_cpu and scores.dtype is torch.float32:
        scores, weight = scores.detach().contiguous(), weight.detach().int().contiguous()
        return module.cut(scores.data_ptr(), weight.data_ptr(), len(scores), keep)
    found, order = scores.sort(descending=True)
    reached = (weight[order].cumsum(0) >= keep).nonzero()[:, 0]
    return float(found[reached[0]]) if len(reached) else -torch.inf


def _refuse_nan(scores: Tensor) -> None:
    if scores.numel() and bool(scores.amax().isnan()):
        raise NonFiniteError("Scores hold NaN; a selection needs every entry to be comparable.")


def _pointers(counts: Tensor) -> Tensor:
    return F.pad(counts.cumsum(0), (1, 0)).int()
