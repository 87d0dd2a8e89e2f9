"""What every statistic must hold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparseworks.core.errors import NonFiniteError, ShapeError
from sparseworks.core.stats import Stat
from sparseworks.testing.examples import made_up, refused, require

ROWS, COLS = 4, 6


def check_stat(kind: type[Stat]) -> None:
    """Merge equals concatenation, order and batching do not matter, state goes on, bad batches are refused.

    Raises:
        AssertionError: with a sentence that names the statistic and what broke.
    """
    name = kind.__name__
    batches = [made_up(kind.source, ROWS, COLS, tokens, seed) for seed, tokens in enumerate((5, 1, 7, 3))]
    whole = _seen(kind, batches)
    for cut in range(len(batches) + 1):
        first, second = _seen(kind, batches[:cut]), _seen(kind, batches[cut:])
        first.merge(second)
        _same(first, whole, f"{name}: merging after {cut} batches differs from having seen all of them.")
    _same(_seen(kind, batches[::-1]), whole, f"{name} depends on the order of batches.")
    if kind.source in ("input", "output", "layer"):
        _same(_seen(kind, [torch.cat(batches)]), whole, f"{name} depends on how tokens are cut into batches.")
    _goes_on(kind, batches, whole)
    _independent(kind, batches)
    _refusals(kind, batches[0])


def _goes_on(kind: type[Stat], batches: Sequence[Tensor], whole: Stat) -> None:
    name = kind.__name__
    stored = {k: v.clone() for k, v in _seen(kind, batches[:2]).state().items()}
    require(all(isinstance(v, Tensor) for v in stored.values()), f"{name}.state() must hold tensors only.")
    again = kind(ROWS, COLS)
    again.load(stored)
    for x in batches[2:]:
        again.update(x)
    _same(again, whole, f"{name} does not go on from a stored state.")


def _independent(kind: type[Stat], batches: Sequence[Tensor]) -> None:
    one, other = kind(ROWS, COLS), kind(ROWS, COLS)
    before = {k: v.clone() for k, v in other.state().items()}
    kept = batches[0].clone()
    one.update(batches[0])
    alike = all(torch.equal(v, before[k]) for k, v in other.state().items())
    require(alike, f"Two {kind.__name__} share state.")
    require(torch.equal(batches[0], kept), f"{kind.__name__} changes the batch it is fed.")


def _refusals(kind: type[Stat], batch: Tensor) -> None:
    name, bad = kind.__name__, batch.clone()
    bad[0, 0] = float("nan")
    refused(lambda: kind(ROWS, COLS).update(bad), NonFiniteError, f"{name} must refuse NaN.")
    wrong = torch.zeros(2, COLS + ROWS + 1)
    refused(lambda: kind(ROWS, COLS).update(wrong), ShapeError, f"{name} must refuse batches of another width.")
    refused(lambda: kind(ROWS, COLS).merge(kind(ROWS, COLS + 1)), ShapeError, f"{name} must not merge across shapes.")


def _seen(kind: type[Stat], batches: Sequence[Tensor]) -> Stat:
    stat = kind(ROWS, COLS)
    for x in batches:
        stat.update(x)
    return stat


def _same(a: Stat, b: Stat, sentence: str) -> None:
    other = b.state()
    require(a.count == b.count, f"{sentence} ({a.count} counted, not {b.count}.)")
    close = all(torch.allclose(v.double(), other[k].double(), rtol=1e-5, atol=1e-6) for k, v in a.state().items())
    require(close, sentence)
