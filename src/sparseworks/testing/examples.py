"""What the suites feed: one instance of a registered class, small weights, statistics of made-up data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, Field, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import SparseworksError
from sparseworks.core.patterns import parse
from sparseworks.core.solver import Nothing, Select
from sparseworks.core.stats import Stat, Stats
from sparseworks.scores import Magnitude

_BY_TYPE: dict[str, Any] = {
    "float": 0.5,
    "int": 2,
    "bool": True,
    "str": "row",
    "Score": Magnitude(),
    "Repair": Nothing(),
    "Solver": Select(),
    "Pattern": parse("row"),
}


def example(kind: Any) -> Any:
    """An instance of a registered class; an instance is returned as it is.

    A class method `example()` decides where there is one; otherwise fields without a default get one by their type.

    Raises:
        SparseworksError: a field has neither a default nor a known type.
    """
    if not isinstance(kind, type):
        return kind
    if hasattr(kind, "example"):
        return kind.example()  # type: ignore[attr-defined]
    return kind(**{f.name: _value(kind, f) for f in fields(kind) if _required(f)})  # type: ignore[arg-type]


def _required(field: Field) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _value(kind: type, field: Field) -> Any:
    declared = str(field.type)
    if declared not in _BY_TYPE:
        raise SparseworksError(
            f"{kind.__name__}.{field.name} is a {declared} without default: give {kind.__name__} a class method `example()`."
        )
    return _BY_TYPE[declared]


def random_weight(rows: int, cols: int, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """A weight `(rows, cols)` of normal entries, the same for the same seed."""
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed)).to(dtype)


def random_inputs(tokens: int, cols: int, *, seed: int = 0) -> Float[Tensor, "tokens cols"]:
    """Inputs as layers see them: columns of very different size, correlated, with a mean."""
    g = torch.Generator().manual_seed(seed)
    mixed = torch.randn(tokens, cols, generator=g) + torch.randn(tokens, 2, generator=g) @ torch.randn(
        2, cols, generator=g
    )
    return (mixed + 0.3) * torch.logspace(-1, 1, cols)[torch.randperm(cols, generator=g)]


def gathered(
    needs: Iterable[type[Stat]], shape: tuple[int, int], *, tokens: int = 64, seed: int = 0, site: str = "weight"
) -> Stats:
    """Statistics of the types `needs` for a site of `shape`, fed with three batches of made-up data by their source.

    Token sources get `random_inputs`, all others weight-shaped normal tensors.
    """
    stats = Stats.collecting(needs, shape, site=site)
    rows, cols = shape
    for source in {s.source for s in stats}:
        for i in range(3):
            stats.feed(source, made_up(source, rows, cols, tokens // 3 + 1, seed + 10 * i))
    return stats


def made_up(source: str, rows: int, cols: int, tokens: int, seed: int) -> Tensor:
    """One batch of what feeds a statistic: tokens x cols for inputs, tokens x rows for outputs, both beside each other for
    layers, else rows x cols."""
    width = {"input": cols, "output": rows, "layer": cols + rows}.get(source)
    return random_inputs(tokens, width, seed=seed) if width is not None else random_weight(rows, cols, seed=seed)


def require(holds: bool, sentence: str) -> None:
    """Raise AssertionError with `sentence` unless `holds` (unlike `assert`, also under `python -O`)."""
    if not holds:
        raise AssertionError(sentence)


def refused(act: Any, error: type[Exception] | tuple[type[Exception], ...], sentence: str) -> None:
    """Raise AssertionError with `sentence` unless `act()` raises `error` with a message."""
    try:
        act()
    except error as caught:
        text = str(caught)
        require(len(text) > 10 and "{" not in text.replace("{{", ""), f"{sentence} Its message says nothing: {text!r}.")
        return
    raise AssertionError(sentence)
