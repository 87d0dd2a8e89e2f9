"""Models without values: built from a configuration with parameters on the meta device, then filled from a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sparseworks.core.errors import ModelError
from sparseworks.io.models import model_class, read_config


class _EmptyOnMeta(TorchFunctionMode):
    """`torch.empty` without a device makes meta tensors: parameters cost nothing, while computed buffers stay real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func is torch.empty and given.get("device") is None:
            given["device"] = "meta"
        return func(*args, **given)


def build(folder: Path) -> nn.Module:
    """The Hugging Face model that `config.json` in `folder` describes, parameters empty on the meta device.

    Raises:
        ModelError: no such configuration, or its class is not in transformers.
    """
    config = read_config(folder)
    kind = model_class(config)
    make = getattr(kind, "_from_config", None) or kind.from_config
    with _default_dtype(getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)):
        with _EmptyOnMeta():
            model = make(config)
        stored = set(model.state_dict())
        if any(buffer.is_meta for name, buffer in model.named_buffers() if name not in stored):
            model = make(config)  # a buffer is computed from an empty one: it needs real memory
    _read_generation(model, folder)
    return model


def _read_generation(model: nn.Module, folder: Path) -> None:
    if hasattr(model, "generation_config") and (folder / "generation_config.json").is_file():
        model.generation_config = type(model.generation_config).from_pretrained(str(folder))  # type: ignore[union-attr]


@contextmanager
def _default_dtype(dtype: Any) -> Iterator[None]:
    before = torch.get_default_dtype()
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def fill(
    model: nn.Module,
    names: Iterable[str],
    values: Iterable[tuple[str, Tensor]],
    tied: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Give `model` parameters and buffers in place; tied names share one parameter.

    Args:
        model: parameters may be on the meta device.
        names: what `values` will yield, so that a wrong model is refused before anything is changed.
        values: name and tensor, one at a time; the tensors are kept, not copied.
        tied: other name -> first name.

    Raises:
        ModelError: names or shapes do not fit: the tensors are another model's.
    """
    expected = model.state_dict(keep_vars=True)
    _compare(expected, {*names, *tied})
    for name, tensor in values:
        _assign(model, name, tensor, expected[name])
    for name, first in tied.items():
        owner, leaf = _owner(model, name)
        source, other = _owner(model, first)
        table = owner._parameters if leaf in owner._parameters else owner._buffers
        table[leaf] = getattr(source, other)


def _compare(expected: Mapping[str, Tensor], given: set[str]) -> None:
    missing, spare = sorted(set(expected) - given), sorted(given - set(expected))
    if missing or spare:
        said = [f"it has no {spare[0]!r} ({len(spare)} such)"] if spare else []
        said += [f"the file has no {missing[0]!r} ({len(missing)} such)"] if missing else []
        raise ModelError(f"The model is not the one that was saved: {'; '.join(said)}.")


def _assign(model: nn.Module, name: str, tensor: Tensor, old: Tensor) -> None:
    if tensor.shape != old.shape:
        raise ModelError(
            f"The model is not the one that was saved: {name!r} is {tuple(old.shape)}, in the file {tuple(tensor.shape)}."
        )
    owner, leaf = _owner(model, name)
    if leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=old.requires_grad)
    else:
        owner._buffers[leaf] = tensor


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf
