"""How well does a dictionary approximate, control and name what a task needs, beside a dictionary made from the task's attributes?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparseworks.codes.autoencoders.rules.pursuit import merged
from sparseworks.codes.autoencoders.splice import hooked
from sparseworks.core.codes import Codes
from sparseworks.core.errors import BudgetError, CalibrationError, DtypeError, ShapeError
from sparseworks.stream.tree import call


class SupervisedDictionary:
    """x^ = E[x] + sum_i u_{i, a_i}, one atom u for each value of each attribute.

    Args:
        x: activations of prompts.
        attributes: value of each attribute in each prompt, from 0 on; -1: it has none.
        fit: "mean" (u_iv = E[x | a_i = v] - E[x]) or "least_squares" (all u together, for attributes that go with one another).

    Raises:
        ShapeError, DtypeError: activations and attributes that do not fit, or attributes that are not integers.
        CalibrationError: no prompts, or another `fit`.

    Source: Makelov, Lange and Nanda, 2024, arXiv 2405.08366.
    """

    def __init__(
        self, x: Float[Tensor, "prompts d"], attributes: Int[Tensor, "prompts attributes"], fit: str = "mean"
    ) -> None:
        _check(x, attributes)
        if fit not in ("mean", "least_squares"):
            raise CalibrationError(f'Supervised features are fitted by "mean" or "least_squares", got {fit!r}.')
        self.sizes = [int(column.max()) + 1 for column in attributes.T]
        self.width, self.b_dec = sum(self.sizes), x.mean(0)
        on = self.coded(attributes).dense().to(x.dtype)
        away = x - self.b_dec
        if fit == "mean":
            self.W_dec = on.T @ away / on.sum(0).clamp(min=1).unsqueeze(1)
        else:  # the values of an attribute sum to 1 in every row, so that only the least solution is unique
            self.W_dec = torch.linalg.pinv(on) @ away

    def coded(self, attributes: Int[Tensor, "prompts attributes"]) -> Codes:
        """A 1 for each value that a prompt has.

        Raises:
            ShapeError: other attributes, or values that no prompt had when it was fitted.
        """
        top = attributes.amax(0).tolist() if len(attributes) else self.sizes
        if attributes.shape[1:] != (len(self.sizes),) or any(t >= s for t, s in zip(top, self.sizes, strict=True)):
            raise ShapeError(f"Attributes have {self.sizes} values, got a table {tuple(attributes.shape)} up to {top}.")
        hot = [F.one_hot(a + 1, size + 1)[:, 1:] for a, size in zip(attributes.T, self.sizes, strict=True)]
        return Codes.from_dense(torch.cat(hot, 1).to(self.b_dec.dtype))

    def decode(self, codes: Codes) -> Float[Tensor, "rows d"]:
        """z W_dec + b_dec."""
        return codes.dense() @ self.W_dec + self.b_dec


@dataclass(frozen=True)
class Edited:
    """Activations after edits.

    Attributes:
        x: after 1, 2, ... edits.
        edits: how many each row got.
    """

    x: Float[Tensor, "k rows d"]
    edits: Int[Tensor, " rows"]


def sparse_edits(
    x: Float[Tensor, "rows d"],
    target: Float[Tensor, "rows d"],
    codes: Codes,
    wanted: Codes,
    atoms: Float[Tensor, "width d"],
    k: int,
) -> Edited:
    """x + sum over at most k latents of (z'_i - z_i) d_i, greedily the one that lowers ||target - x||^2 most.

    What may be removed are latents of x, what may be added those of the target; a latent of both goes from one value to the other by one edit. A
    row ends where no edit lowers the distance. What no latent explains stays.

    Args:
        x, target: activations of prompts and of their counterfactuals.
        codes, wanted: their codes.
        atoms: one a latent.
        k: edits.

    Raises:
        BudgetError: k below 1.
        ShapeError: rows that do not belong together.

    Source: Makelov, Lange and Nanda, 2024, arXiv 2405.08366 (|R u A| <= k, and as in their code).
    """
    if k < 1:
        raise BudgetError(f"Sparse control takes at least one edit, got {k}.")
    if x.shape != target.shape or not len(x) == len(codes) == len(wanted):
        raise ShapeError(f"Edits lead from {tuple(x.shape)} to {tuple(target.shape)}, with one row of codes for each.")
    both = torch.cat([-codes.values, wanted.values], 1), torch.cat([codes.indices, wanted.indices], 1)
    change = merged(*both, codes.width)
    values, moves = change.values, change.values.unsqueeze(2) * atoms[change.indices.long()]
    free, rows, found = values.abs() > 0, torch.arange(len(x)), []
    edits, now, squares = torch.zeros(len(x), dtype=torch.long), x, moves.square().sum(2)
    for _ in range(k):
        gain = 2 * torch.einsum("rcd,rd->rc", moves, target - now) - squares
        best, at = gain.masked_fill(~free, -torch.inf).max(1) if values.shape[1] else (torch.zeros(len(x)), None)
        if at is not None:
            go = best > 0
            now = now + moves[rows, at] * go.unsqueeze(1)
            free = free & ~(F.one_hot(at, values.shape[1]).bool() & go.unsqueeze(1))
            edits += go
        found.append(now)
    return Edited(torch.stack(found), edits)


def union_f1(codes: Codes, attributes: Int[Tensor, "rows attributes"]) -> Float[Tensor, " width"]:
    """Best F1 = 2 |A n B| / (|A| + |B|) of each latent, A where it is on, B where an attribute has one of some values; NaN: never on.

    The best union of an attribute's values holds those with the largest P(on | value), so that only their prefixes are tried.

    Raises:
        ShapeError: another number of rows.
    """
    if attributes.dim() != 2 or len(codes) != len(attributes):
        raise ShapeError(
            f"Codes of {len(codes)} rows do not belong to a table of attributes {tuple(attributes.shape)}."
        )
    on = (codes.dense() != 0).double()
    size, best = on.sum(0), torch.zeros(codes.width, dtype=torch.float64)
    for column in attributes.T:
        hot = F.one_hot(column + 1)[:, 1:].double()
        hot = hot[:, hot.sum(0) > 0]
        both, each = hot.T @ on, hot.sum(0).unsqueeze(1)
        order = (both / each).argsort(0, descending=True)
        together, sizes = both.gather(0, order).cumsum(0), each.expand_as(both).gather(0, order).cumsum(0)
        if len(hot.T):
            best = torch.maximum(best, (2 * together / (size + sizes)).amax(0))
    return torch.where(size > 0, best, torch.nan)


@dataclass(frozen=True)
class Evaluation:
    """What a dictionary is worth on a task; 1 is best everywhere.

    Attributes:
        sufficiency: share of the logit difference over that of the mean activation that is kept when x is x^.
        necessity: share of it that is lost when x is x - (x^ - E[x]).
        success: share of counterfactuals whose prediction one gets by at most 1, 2, ... edits.
        edits: mean number of edits when all are allowed.
        f1: mean of `union_f1` over latents that are ever on.
    """

    sufficiency: float
    necessity: float
    success: tuple[float, ...]
    edits: float
    f1: float


@torch.no_grad()
def sae_principled_eval(
    model: nn.Module,
    site: str,
    inputs: Any,
    changed: Any,
    attributes: Int[Tensor, "prompts attributes"],
    changed_attributes: Int[Tensor, "prompts attributes"],
    right: Int[Tensor, " prompts"],
    wrong: Int[Tensor, " prompts"],
    *,
    dictionary: Any = None,
    k: int = 4,
    position: int = -1,
    fit: str = "mean",
) -> Evaluation:
    """Approximation, sparse control and interpretability of a dictionary on a task whose attributes are known.

    Activations are those of one position of a site, and so are the logits that are looked at.

    Args:
        model: gives logits, or an output with `logits`.
        site: as in `splice`.
        inputs, changed: prompts, and their counterfactuals with one attribute changed, as the model takes them.
        attributes, changed_attributes: their values, from 0 on; -1: none.
        right, wrong: tokens whose logit difference the task is about.
        dictionary: an autoencoder, or anything with `encode`, `decode` and `W_dec`; None: the supervised one of these attributes.
        k: edits that are allowed.
        position: of the token.
        fit: of the supervised dictionary.

    Raises:
        ShapeError, DtypeError, CalibrationError: tables that do not belong together.
        BudgetError: no edits.
        ModelError: no such site.

    Source: Makelov, Lange and Nanda, 2024, arXiv 2405.08366.
    """
    x, logits = _read(model, site, inputs, position)
    target, counterfactual = _read(model, site, changed, position)
    _check(x, attributes)
    _check(target, changed_attributes)
    own: Any = SupervisedDictionary(x, attributes, fit) if dictionary is None else dictionary
    if dictionary is None:
        codes, wanted = own.coded(attributes), own.coded(changed_attributes)
    else:
        codes, wanted = own.encode(x), own.encode(target)
    rebuilt, mean = own.decode(codes), x.mean(0)

    def put(new: Tensor) -> Tensor:
        with _at(model, site, position, lambda _: new):
            return _logits(call(model, inputs), position)

    def difference(found: Tensor) -> float:
        return float((found.gather(1, right[:, None]) - found.gather(1, wrong[:, None])).mean())

    clean, none = difference(logits), difference(put(mean.expand_as(x)))
    whole = clean - none or torch.nan
    edited = sparse_edits(x, target, codes, wanted, own.W_dec, k)
    goal = counterfactual.argmax(1)
    f1 = union_f1(codes, attributes)
    return Evaluation(
        sufficiency=(difference(put(rebuilt)) - none) / whole,
        necessity=(clean - difference(put(x - rebuilt + mean))) / whole,
        success=tuple(float((put(e).argmax(1) == goal).double().mean()) for e in edited.x),
        edits=float(edited.edits.double().mean()),
        f1=float(f1.nanmean()),
    )


@contextmanager
def _at(model: nn.Module, site: str, position: int, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    def swap(x: Tensor) -> Tensor | None:
        new = change(x[:, position])
        if new is None:
            return None
        out = x.clone()
        out[:, position] = new
        return out

    with hooked(model, site, swap):
        yield


def _read(model: nn.Module, site: str, inputs: Any, position: int) -> tuple[Tensor, Tensor]:
    """Activations and logits of the position."""
    seen: list[Tensor] = []
    with _at(model, site, position, seen.append):
        output = call(model, inputs)
    return seen[-1].clone(), _logits(output, position)


def _logits(output: Any, position: int) -> Float[Tensor, "prompts tokens"]:
    logits = output if isinstance(output, Tensor) else output["logits"]
    return logits[:, position]


def _check(x: Tensor, attributes: Tensor) -> None:
    if attributes.dim() != 2 or x.dim() != 2 or len(x) != len(attributes):
        raise ShapeError(
            f"Activations {tuple(x.shape)} and attributes {tuple(attributes.shape)} have one row a prompt."
        )
    if attributes.is_floating_point() or attributes.dtype == torch.bool:
        raise DtypeError(f"Values of attributes are integers from 0 on (-1: none), got {attributes.dtype}.")
    if not len(x) or not attributes.shape[1]:
        raise CalibrationError("An evaluation needs at least one prompt with one attribute.")
