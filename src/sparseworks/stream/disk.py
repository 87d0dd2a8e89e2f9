"""A model whose blocks lie on disk: mapped into memory for their turn, written to the output folder when they were changed."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparseworks.core.errors import CheckpointError, ModelError
from sparseworks.stream.blocks import Block, block_of
from sparseworks.stream.blocks import blocks as find_blocks
from sparseworks.stream.layout import sources
from sparseworks.stream.residency import held
from sparseworks.stream.shards import INDEX, SINGLE, Shards, write_index, write_shard

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".ckpt")
_REST = "rest"


class OnDisk:
    """Residency of a model whose weights lie in a folder of safetensors files (Hugging Face layout).

    What lies outside blocks (embeddings, norms, the head) and what several blocks share is in memory from the start; a
    block is mapped while it is entered and freed when it is left, so that peak memory is about the former, the largest
    block, and what the caller holds. Forward passes of the model or of a block enter and leave by themselves.

    Args:
        model: the model, best with its parameters on the meta device; buffers that no checkpoint holds must be real.
        folder: where its weights are.
        out: where the changed model goes: it appears, complete, at `finish()`; until then there is `out` + ".partial".
        blocks: the blocks; default: `blocks(model)`.

    Raises:
        CheckpointError: weights are missing or damaged, or of another shape; `out` exists.
        ModelError: the model has no repeated blocks.
    """

    def __init__(
        self, model: nn.Module, folder: Path | str, out: Path | str | None = None, blocks: Sequence[Block] | None = None
    ):
        self.model, self.shards = model, Shards.open(folder)
        self.blocks = find_blocks(model) if blocks is None else list(blocks)
        if not any(b.name for b in self.blocks):
            raise ModelError(f"{type(model).__name__} has no repeated blocks to stream; load it whole.")
        self.out = None if out is None else Path(out)
        self._partial = None if out is None else _fresh(Path(out))
        self._sources = sources(model, self.shards.where, folder)
        self._homes = _homes(model, self.blocks)
        self._meta = {n: nn.Parameter(p.to("meta"), requires_grad=False) for n, p in model.named_parameters()}
        self._aliases = _aliases(model)
        self._entered: Counter[int] = Counter()
        self._changed: set[int] = set()
        self._written: dict[int, Shards] = {}
        for home in (b.index for b in self.blocks):
            self._free(home)
        self._load(-1)
        self._unwrap = [self._wrap(b) for b in self.blocks]

    @property
    def resident_bytes(self) -> int:
        """Bytes outside blocks and of the largest block."""
        sizes = Counter({b.index: 0 for b in self.blocks})
        for name, home in self._homes.items():
            sizes[home] += self._meta[name].numel() * self._meta[name].element_size()
        buffers = sum(b.numel() * b.element_size() for b in self.model.buffers())
        return sizes[-1] + buffers + max(sizes[b.index] for b in self.blocks)

    def enter(self, block: Block) -> None:
        """Map the block's weights."""
        self._entered[block.index] += 1
        if self._entered[block.index] == 1:
            self._load(block.index)

    def leave(self, block: Block, *, changed: bool = False) -> None:
        """Free the block's weights, and write them out first where they were changed."""
        if changed:
            self._changed.add(block.index)
        self._entered[block.index] -= 1
        if self._entered[block.index]:
            return
        if block.index in self._changed:
            self._write(block.index)
            self._changed.discard(block.index)
        self._free(block.index)

    def finish(self) -> Path:
        """Write what was not written yet, the index and the files beside the weights; `out` appears. The path of `out`.

        The model is not usable afterwards.

        Raises:
            CheckpointError: something cannot be written.
        """
        if self.out is None or self._partial is None:
            raise CheckpointError("This model was opened without an output folder.")
        for block in self.blocks:
            if block.index not in self._written:
                self.enter(block)
                self.leave(block, changed=True)
        self._write(-1)
        where: dict[str, str] = {}
        for shards in self._written.values():
            where |= shards.where
        try:
            write_index(self._partial, where, _total(self._meta.values()))
            _copy_beside(self.shards.folder, self._partial)
            os.replace(self._partial, self.out)
        except OSError as error:
            raise CheckpointError(f"Cannot complete {self.out}: {error}.") from error
        self.close()
        return self.out

    def close(self) -> None:
        """Give the blocks their own forward passes back."""
        for undo in self._unwrap:
            undo()
        self._unwrap = []

    # -- inside -------------------------------------------------------------------------------------------------------

    def _names(self, home: int) -> list[str]:
        return [name for name, where in self._homes.items() if where == home]

    def _buffers(self, home: int) -> dict[str, Tensor]:
        """Buffers that checkpoints hold; all are in memory from the start."""
        return {} if home >= 0 else {n: b for n, b in self.model.named_buffers() if n in self._sources}

    def _load(self, home: int) -> None:
        read = self._written.get(home, self.shards).read
        for name in self._names(home):
            value, empty = self._sources[name].load(read), self._meta[name]
            if value.shape != empty.shape:
                raise CheckpointError(
                    f"{self.shards.folder}: {name!r} is {tuple(value.shape)}, the model has {tuple(empty.shape)}."
                )
            self._put(name, value if value.dtype == empty.dtype else value.to(empty.dtype))
        for name, buffer in self._buffers(home).items():
            buffer.copy_(self._sources[name].load(read))

    def _free(self, home: int) -> None:
        for name in self._names(home):
            self._put(name, self._meta[name])

    def _put(self, name: str, value: Tensor) -> None:
        """Under every name that shares the parameter."""
        parameter = value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False)
        for alias in self._aliases[name]:
            path, _, leaf = alias.rpartition(".")
            self.model.get_submodule(path)._parameters[leaf] = parameter

    def _write(self, home: int) -> None:
        if self._partial is None:
            raise CheckpointError("The model was changed, and it was opened without an output folder: give `out`.")
        label = _REST if home < 0 else f"{home:05d}"
        file = f"model-block-{label}.safetensors" if home >= 0 else f"model-{_REST}.safetensors"
        values = {n: self.model.get_parameter(n) for n in self._names(home)} | self._buffers(home)
        tensors = {key: piece for n, value in values.items() for key, piece in self._sources[n].pieces(value)}
        write_shard(self._partial / file, tensors)
        self._written[home] = Shards(self._partial, dict.fromkeys(tensors, file))

    def _wrap(self, block: Block) -> Callable[[], None]:
        module = block.module(self.model)
        own = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            with held(self, block):
                return own(*args, **kwargs)

        module.forward = forward
        return lambda: module.__dict__.pop("forward", None)


def _aliases(model: nn.Module) -> dict[str, list[str]]:
    """First name of a parameter -> all its names."""
    first = {id(p): n for n, p in model.named_parameters()}
    names: dict[str, list[str]] = {n: [] for n in first.values()}
    for name, p in model.named_parameters(remove_duplicate=False):
        names[first[id(p)]].append(name)
    return names


def _homes(model: nn.Module, blocks: Sequence[Block]) -> dict[str, int]:
    """Parameter -> index of the block that alone uses it, -1 for what is outside or shared."""
    users: dict[int, set[int]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        users.setdefault(id(p), set()).add(block_of(name, blocks))
    return {n: users[id(p)].copy().pop() if len(users[id(p)]) == 1 else -1 for n, p in model.named_parameters()}


def _fresh(out: Path) -> Path:
    """A new folder beside `out`; what a killed run left there is removed."""
    if out.exists():
        raise CheckpointError(f"{out} exists; give another output folder, or delete it.")
    partial = out.with_name(out.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as error:
        raise CheckpointError(f"Cannot write to {partial}: {error}.") from error
    return partial


def _copy_beside(source: Path, target: Path) -> None:
    """Configuration, tokenizer and whatever else lies beside the weights."""
    for path in sorted(source.iterdir()):
        weights = path.suffix in _WEIGHTS or path.name in (INDEX, SINGLE) or path.name.endswith(".index.json")
        if path.is_file() and not weights:
            shutil.copyfile(path, target / path.name)


def _total(parameters: Any) -> int:
    unique: dict[int, torch.Tensor] = {id(p): p for p in parameters}
    return sum(p.numel() * p.element_size() for p in unique.values())
