"""One matrix: any post-training method applied to a weight and its calibration inputs; the step every larger driver repeats."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import gcd, lcm

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparseworks.core.errors import CalibrationError, DtypeError, MissingStatError, NonFiniteError, ShapeError
from sparseworks.core.finite import all_finite
from sparseworks.core.method import Method
from sparseworks.core.pattern import Keep, to_groups
from sparseworks.core.solver import Nothing, Select
from sparseworks.core.stats import Gram, InputMoments, Stat, Stats
from sparseworks.core.support import Support

_ARGUMENT = {"input": "inputs", "output": "inputs", "gradient": "gradients", "training": "gradients"}
"""Source of a statistic -> the argument of `prune_matrix` that feeds it; all others come through `stats`."""
_AT_ONCE = 1 << 18  # entries that are solved, or whose error is summed, together


@dataclass(frozen=True)
class Solved:
    """A matrix after pruning.

    Attributes:
        weight: new values, exact zeros outside the support, in the dtype of the old.
        support: kept entries.
        bias: what to add to the layer's bias, or None.
        error: relative squared output error, see `relative_error`.
    """

    weight: Float[Tensor, "rows cols"]
    support: Support
    bias: Float[Tensor, " rows"] | None
    error: float


def prune_matrix(
    weight: Float[Tensor, "rows cols"],
    method: Method | str,
    inputs: Float[Tensor, "*tokens cols"] | None = None,
    gradients: Float[Tensor, "*batches rows cols"] | None = None,
    *,
    stats: Iterable[Stat] = (),
) -> tuple[Float[Tensor, "rows cols"], Support]:
    """`(new_weight, support)` of one linear layer `y = x W^T`; the allocator has nothing to decide and is passed over.

    Args:
        weight: out x in; not changed.
        method: a method or its registered name.
        inputs: calibration inputs, tokens x in, for scores and repairs that look at them.
        gradients: loss gradients of the weight, one or a stack of them, for gradient scores.
        stats: statistics gathered elsewhere (`HessianGradient` for GraSP, `SynapticFlow` for SynFlow).

    Raises:
        ShapeError: sizes do not fit together.
        DtypeError: not floating point.
        NonFiniteError: NaN or infinity in weight, inputs or gradients.
        CalibrationError: no tokens.
        MissingStatError: the method needs inputs or gradients that were not given; the message names them.
        BudgetError, PatternError: the budget or the pattern does not fit the matrix.
    """
    method = Method.of(method)
    check_weight(weight, "weight")
    gathered = Stats(stats)
    missing = [kind for kind in method.needs if kind not in gathered]
    gathered = Stats([*gathered, *_gather(weight, missing, method, inputs, gradients)])
    count = None if method.budget.needs_scores else method.budget.total({"weight": weight.numel()})
    solved = solve_matrix(weight, gathered, method, count=count)
    return solved.weight, solved.support


def solve_matrix(
    weight: Float[Tensor, "rows cols"],
    stats: Stats,
    method: Method,
    *,
    count: int | None = None,
    mask: Bool[Tensor, "rows cols"] | None = None,
    in_place: bool = False,
) -> Solved:
    """Support and values of one matrix from its statistics, in float32 (float64 stays), given its share of the budget.

    Where rows have nothing to do with one another, some of them are solved at a time, so that work space stays small.

    Args:
        count: kept entries; not used where the pattern's quota or a scored budget decides.
        mask: a support chosen beforehand (global selection, rounds). Repairs take it as it is; a solver that chooses the
            support itself takes its number of entries.
        in_place: new values may go where the old were; they are in the result all the same.
    """
    step = stripe(weight.shape, method) if mask is None else None
    if step is None or step >= weight.shape[0]:
        old = _wide(weight)
        new, support = _solve(old, stats, method, count, mask)
        bias = method.solve.bias(old, new, stats)
        new = new.to(weight.dtype)
        return Solved(new, support, bias, relative_error(old, new.to(old.dtype), stats, bias))
    keep, groups = _keep(weight, stats, method, count), method.pattern.capacity(weight.shape)[0]
    new, bits, lost, whole = weight.detach() if in_place else torch.empty_like(weight), [], 0.0, 0.0
    for at in range(0, weight.shape[0], step):
        part = slice(at, at + step)
        old = weight[part].detach().to(torch.float64 if weight.dtype == torch.float64 else torch.float32, copy=True)
        seen = Stats([s.as_rows(old.shape[0]) for s in stats], site=stats.site)
        some = (
            keep[at * groups // weight.shape[0] :][: step * groups // weight.shape[0]]
            if isinstance(keep, Tensor)
            else None
        )
        values, support = method.solve(old, seen, method.score, method.pattern, some)
        new[part] = values.to(weight.dtype)
        bits.append(support.bits())
        lost, whole = lost + _lost(old, new[part], seen), whole + _energy(_rows(old), seen)
    return Solved(new, Support.from_bits(torch.cat(bits), weight.shape), None, lost / whole if whole > 0 else 0.0)


def stripe(shape: Sequence[int], method: Method) -> int | None:
    """How many rows of a matrix are solved at a time by a method whose rows are independent; None where they are not.

    A multiple of the rows that groups and chunks of the pattern span, and of a whole number of bytes of support.
    """
    pattern, solve = method.pattern, method.solve
    alone = type(solve) is Select and type(solve.repair) is Nothing and method.score.rowwise
    span = (pattern.unit.rows or 0) * (pattern.group.rows or 0)
    spread = pattern.across or pattern.quota == "live" or pattern.inner is not None or method.budget.needs_scores
    fed = all(kind.source == "input" for kind in method.needs)
    if not alone or not span or spread or not fed or not shape[0] or not shape[1]:
        return None
    least = lcm(span, pattern.chunk, 8 // gcd(shape[1], 8))
    return max(1, _AT_ONCE // (least * shape[1])) * least


def relative_error(
    old: Float[Tensor, "rows cols"],
    new: Float[Tensor, "rows cols"],
    stats: Stats,
    bias: Float[Tensor, " rows"] | None = None,
) -> float:
    """E|(W' - W) x + b|^2 / E|W x|^2 over the calibration inputs.

    By the second-moment matrix where it was gathered, otherwise by the second moments of every input as if inputs were
    uncorrelated, and without data by the weights alone, |W' - W|^2 / |W|^2.
    """
    lost, whole = _lost(old, new, stats), _energy(_rows(old), stats)
    seen = next((stats[kind] for kind in (Gram, InputMoments) if kind in stats), None)
    if bias is not None and seen is not None:
        b = bias.double().cpu()
        lost += float((2 * b * ((new.double() - old.double()).cpu() @ seen.mean) + b.square()).sum())
    return max(lost, 0.0) / whole if whole > 0 else 0.0


def check_weight(weight: Tensor, name: str) -> None:
    """Refuse what is not a finite floating-point matrix.

    Raises:
        ShapeError, DtypeError, NonFiniteError.
    """
    if weight.dim() != 2:
        raise ShapeError(f"{name} must be a matrix (out, in), got shape {tuple(weight.shape)}.")
    if not weight.is_floating_point():
        raise DtypeError(
            f"{name} must be floating point, got {weight.dtype}; quantised weights must be dequantised first."
        )
    if not all_finite(weight):
        where = (~torch.isfinite(weight)).nonzero()[0].tolist()
        raise NonFiniteError(f"{name} holds NaN or infinity, first at {where}: the checkpoint is damaged.")


def _keep(weight: Tensor, stats: Stats, method: Method, count: int | None) -> Keep | None:
    pattern = method.pattern
    if isinstance(pattern.quota, int):
        pattern.check(weight.shape)
        return None
    if not method.budget.needs_scores:
        return pattern.counts(weight.shape, count)
    units = to_groups(method.score(weight, stats), pattern.unit).sum(dim=-1)
    return method.budget.counts(to_groups(units.reshape(pattern.grid(weight.shape)), pattern.group))


def _solve(
    old: Float[Tensor, "rows cols"], stats: Stats, method: Method, count: int | None, mask: Tensor | None
) -> tuple[Float[Tensor, "rows cols"], Support]:
    if mask is not None and isinstance(method.solve, Select):
        support = Support.from_mask(mask)
        return method.solve.repair(old, support, stats), support
    pattern = replace(method.pattern, across=False)
    keep = _keep(old, stats, method, count if mask is None else int(mask.sum()))
    return method.solve(old, stats, method.score, pattern, keep)


def _wide(weight: Tensor) -> Tensor:
    return weight.detach() if weight.dtype == torch.float64 else weight.detach().float()


def _lost(old: Float[Tensor, "rows cols"], new: Float[Tensor, "rows cols"], stats: Stats) -> float:
    return _energy((n.double() - o.double() for o, n in zip(_rows(old), _rows(new), strict=True)), stats)


def _energy(parts: Iterable[Float[Tensor, "some cols"]], stats: Stats) -> float:
    """E|W x|^2 of a matrix that comes some rows at a time."""
    wide = (part.double().cpu() for part in parts)
    if Gram in stats:
        total, count = stats[Gram].total, stats[Gram].tokens  # divided at the end: the mean is a copy of the sum
        return sum(float(((w @ total) * w).sum()) for w in wide) / count
    if InputMoments in stats:
        square = stats[InputMoments].norm.square()
        return sum(float((w.square() @ square).sum()) for w in wide)
    return sum(float(w.square().sum()) for w in wide)


def _rows(w: Float[Tensor, "rows cols"]) -> Sequence[Float[Tensor, "some cols"]]:
    return w.split(max(1, _AT_ONCE // max(w.shape[1], 1)))


def _gather(
    weight: Tensor, kinds: list[type[Stat]], method: Method, inputs: Tensor | None, gradients: Tensor | None
) -> Iterator[Stat]:
    for kind in kinds:
        argument = _ARGUMENT.get(kind.source, "stats")
        if {"inputs": inputs, "gradients": gradients}.get(argument) is None:
            raise MissingStatError(f"Method {method.name!r} needs {kind.__name__}; give it with `{argument}=`.")
    for kind in kinds:
        stat = kind(*weight.shape)
        for x in _feeds(kind.source, weight, inputs, gradients):
            stat.update(x)
        yield stat


def _feeds(source: str, weight: Tensor, inputs: Tensor | None, gradients: Tensor | None) -> Iterator[Tensor]:
    if _ARGUMENT[source] == "inputs":
        assert inputs is not None
        x = _inputs(weight, inputs)
        yield x if source == "input" else x @ weight.detach().to(x.dtype).T
        return
    assert gradients is not None
    if gradients.dim() < 2 or gradients.shape[-2:] != weight.shape:
        raise ShapeError(f"gradients must end in {tuple(weight.shape)}, got {tuple(gradients.shape)}.")
    for g in gradients.reshape(-1, *weight.shape):
        yield g if source == "gradient" else -weight.detach() * g


def _inputs(weight: Tensor, x: Tensor) -> Float[Tensor, "tokens cols"]:
    if not x.is_floating_point():
        raise DtypeError(f"inputs must be floating point, got {x.dtype}.")
    if x.dim() < 1 or x.shape[-1] != weight.shape[1]:
        raise ShapeError(f"inputs are tokens x {weight.shape[1]} for this weight, got shape {tuple(x.shape)}.")
    if x.numel() == 0:
        raise CalibrationError("inputs hold no tokens; give at least one.")
    return x.detach().reshape(-1, x.shape[-1]).to(weight.device)
