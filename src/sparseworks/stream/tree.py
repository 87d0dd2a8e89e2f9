"""Nested call arguments (tuples, lists, dicts of tensors): map, find the hidden state, cut into micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class _Hidden:
    """Stands where the hidden state was."""

    def __repr__(self) -> str:
        return "HIDDEN"


HIDDEN = _Hidden()


def call(model: nn.Module, batch: Any) -> Any:
    """Run a module on a batch: a mapping of keyword arguments, a tuple of positional ones, or one tensor."""
    if hasattr(batch, "keys"):
        return model(**{k: batch[k] for k in batch.keys()})  # noqa: SIM118 - a BatchEncoding iterates over other things
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


def map_tensors(value: Any, f: Callable[[Tensor], Any]) -> Any:
    """`value` with every tensor replaced by `f(tensor)`; containers are rebuilt, everything else is passed on."""
    if isinstance(value, Tensor):
        return f(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(v, f) for v in value))
    if isinstance(value, tuple | list):
        return type(value)(map_tensors(v, f) for v in value)
    if type(value) is dict:
        return {k: map_tensors(v, f) for k, v in value.items()}
    return value


def first_tensor(value: Any) -> Tensor | None:
    """The first floating tensor in reading order: a block's hidden state."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else None
    items = value.values() if hasattr(value, "values") else value if isinstance(value, tuple | list) else ()
    for item in items:
        found = first_tensor(item)
        if found is not None:
            return found
    return None


def put_hidden(value: Any, hidden: Tensor) -> Any:
    """`value` with the placeholder replaced by the hidden state."""
    if value is HIDDEN:
        return hidden
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(put_hidden(v, hidden) for v in value))
    if isinstance(value, tuple | list):
        return type(value)(put_hidden(v, hidden) for v in value)
    if type(value) is dict:
        return {k: put_hidden(v, hidden) for k, v in value.items()}
    return value


def same(a: Any, b: Any) -> bool:
    """Whether two nested values hold equal tensors at the same places, and equal or identical things elsewhere."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        alike = isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and a.dtype == b.dtype
        return a is b or (alike and bool((a == b).all()))
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if type(a) is dict:
        return type(b) is dict and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return a is b or bool(a == b)


def without_caches(value: Any) -> Any:
    """`value` with key-value caches replaced by None: a cache would grow at every replay."""
    if type(value).__name__.endswith("Cache"):
        return None
    if type(value) in (tuple, list):
        return type(value)(without_caches(v) for v in value)
    if type(value) is dict:
        return {k: False if k == "use_cache" else without_caches(v) for k, v in value.items()}
    return value


def cut(value: Any, batch: int, at: slice) -> Any:
    """The rows `at` of every tensor whose first axis is the batch; what is shared by the batch is passed on."""

    def rows(x: Tensor) -> Tensor:
        return x[at] if x.dim() >= 2 and x.shape[0] == batch else x

    return map_tensors(value, rows)
