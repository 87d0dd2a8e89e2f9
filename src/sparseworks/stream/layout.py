"""Where each parameter of a model lies in checkpoint files: under its own name, a base-model prefix, or expert by expert."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparseworks.core.errors import CheckpointError

Read = Callable[[Iterable[str]], dict[str, Tensor]]

_RENAMED = (("", ""), (".mlp.", ".block_sparse_moe."))
_EXPERTS = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
}
"""Last part of a 3-D stack's name -> the matrices of one expert whose rows make up its slice, in files that keep them apart."""


@dataclass(frozen=True)
class Source:
    """The pieces of one parameter.

    Attributes:
        keys: names in the files; for a stack one row per expert, its matrices one below the other.
        stacked: the parameter is a stack of experts that lie apart.
    """

    keys: tuple[tuple[str, ...], ...]
    stacked: bool = False

    @property
    def names(self) -> list[str]:
        """All names in the files."""
        return [k for row in self.keys for k in row]

    def load(self, read: Read) -> Tensor:
        """The parameter: mapped where it lies in one piece, otherwise put together expert by expert."""
        if not self.stacked:
            return read(self.names)[self.keys[0][0]]
        whole: Tensor | None = None
        for i, row in enumerate(self.keys):  # one at a time, so that no second copy of the stack is mapped
            pieces = read(row)
            expert = torch.cat([pieces[k] for k in row])
            whole = expert.new_empty(len(self.keys), *expert.shape) if whole is None else whole
            whole[i] = expert
        assert whole is not None
        return whole

    def pieces(self, value: Tensor) -> Iterator[tuple[str, Tensor]]:
        """What goes back into files, by name."""
        for row, part in zip(self.keys, value if self.stacked else [value], strict=True):
            yield from zip(row, part.chunk(len(row)) if len(row) > 1 else [part], strict=True)


def sources(model: nn.Module, where: Mapping[str, Any], folder: Any) -> dict[str, Source]:
    """Parameter or saved buffer -> its source among the names `where`.

    Raises:
        CheckpointError: a parameter is nowhere to be found.
    """
    prefix = getattr(model, "base_model_prefix", "") or ""
    names: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    found, missing = {}, []
    for name, p in model.named_parameters():
        source = next((s for n in names[id(p)] for s in _tries(n, prefix, p, where)), None)
        found |= {name: source} if source else {}
        missing += [] if source else [name]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} parameters of {type(model).__name__}, first {missing[0]!r}: it holds another "
            f"class of model, or a layout that is converted on loading. Load the model whole instead."
        )
    saved = model.state_dict()
    buffers = {n: next(_tries(n, prefix, b, where), None) for n, b in model.named_buffers() if n in saved}
    return found | {n: s for n, s in buffers.items() if s}


def _tries(name: str, prefix: str, value: Tensor, where: Mapping[str, Any]) -> Iterator[Source]:
    for ours, theirs in _RENAMED:
        renamed = name.replace(ours, theirs) if ours else name
        for key in (renamed, f"{prefix}.{renamed}", renamed.removeprefix(f"{prefix}.")):
            if key in where:
                yield Source(((key,),))
            yield from _apart(key, value, where)


def _apart(key: str, value: Tensor, where: Mapping[str, Any]) -> Iterator[Source]:
    parent, _, last = key.rpartition(".")
    if value.dim() == 3:
        for parts in _EXPERTS.get(last, ()):
            rows = tuple(tuple(f"{parent}.{e}.{part}.weight" for part in parts) for e in range(value.shape[0]))
            if all(k in where for row in rows for k in row):
                yield Source(rows, stacked=True)
