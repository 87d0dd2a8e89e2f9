"""A model whose blocks lie on disk: mapped into memory for their turn, written to the output folder when they were changed."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from sparseworks.core.errors import CheckpointError, ModelError
from sparseworks.core.support import Support
from sparseworks.stream.blocks import Block, block_of
from sparseworks.stream.blocks import blocks as find_blocks
from sparseworks.stream.kept import SUPPORTS, write_supports
from sparseworks.stream.layout import sources
from sparseworks.stream.memory import trim_heap
from sparseworks.stream.raw import Place, copy_tensors, places
from sparseworks.stream.residency import held
from sparseworks.stream.shards import INDEX, SINGLE, Shards, write_index, write_shard
from sparseworks.stream.tables import read_by_rows

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".ckpt")
_REST = -1  # where lies what is outside blocks or shared by several


class OnDisk:
    """Residency of a model whose weights lie in a folder of safetensors files (Hugging Face layout).

    What lies outside blocks (norms, the head) and what several blocks share is mapped from the start, and embeddings read
    the rows that they look up; a block is mapped while it is entered and freed when it is left, so that peak memory is
    about the largest block and what the caller holds. Forward passes of the model or of a block enter and leave by themselves.

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
        self._load(_REST)
        self._tables = self._find_tables()
        self._unwrap = [self._wrap(b) for b in self.blocks]
        self._unwrap += [read_by_rows(m, place, lambda: _REST in self._changed) for m, _, place in self._tables]

    @property
    def resident_bytes(self) -> int:
        """Bytes outside blocks, but for embeddings, and of the largest block."""
        sizes, by_rows = Counter({b.index: 0 for b in self.blocks}), {name for _, name, _ in self._tables}
        for name, home in self._homes.items():
            if name not in by_rows:
                sizes[home] += self._meta[name].numel() * self._meta[name].element_size()
        buffers = sum(b.numel() * b.element_size() for b in self.model.buffers())
        return sizes[_REST] + buffers + max(sizes[b.index] for b in self.blocks)

    def enter(self, block: Block | None) -> None:
        """Map the block's weights; what lies outside blocks is mapped already."""
        if block is None:
            return
        trim_heap()  # also before each pass of a block that is held already: what solving it left behind
        self._entered[block.index] += 1
        if self._entered[block.index] == 1:
            self._load(block.index)

    def leave(self, block: Block | None, *, changed: bool = False) -> None:
        """Free the block's weights, and write them out first where they were changed; the rest is written at `finish`."""
        if changed:
            self._changed.add(_REST if block is None else block.index)
        if block is None:
            return
        self._entered[block.index] -= 1
        if self._entered[block.index]:
            return
        if block.index in self._changed:
            self._write(block.index)
            self._changed.discard(block.index)
        self._free(block.index)

    def keep(self, name: str, supports: Mapping[str, Support]) -> dict[str, Support]:
        """The supports in a file of the output folder, `supports/NAME.safetensors`, mapped from there.

        Raises:
            CheckpointError: it cannot be written.
        """
        if self._partial is None:
            return dict(supports)
        return write_supports(self._partial / SUPPORTS / f"{name}.safetensors", supports)

    def finish(self, texts: Mapping[str, str] = MappingProxyType({})) -> Path:
        """Write what was not written yet, copy what was not changed, the index and the files beside the weights; `out` appears. The path of `out`.

        The model is not usable afterwards.

        Args:
            texts: name of a further file -> what it holds.

        Raises:
            CheckpointError: something cannot be written.
        """
        if self.out is None or self._partial is None:
            raise CheckpointError("This model was opened without an output folder.")
        for home in (*(b.index for b in self.blocks), _REST):
            if home in self._written or (home not in self._changed and self._copy(home)):
                continue
            if home != _REST:
                self._load(home)
            self._write(home)
            self._free(home)
        where: dict[str, str] = {}
        for shards in self._written.values():
            where |= shards.where
        try:
            write_index(self._partial, where, _total(self._meta.values()))
            _copy_beside(self.shards.folder, self._partial)
            for name, text in texts.items():
                (self._partial / name).write_text(text, encoding="utf-8")
            os.replace(self._partial, self.out)
        except OSError as error:
            raise CheckpointError(f"Cannot complete {self.out}: {error}.") from error
        self.close()
        return self.out

    def discard(self) -> None:
        """Close, and remove what was written for an output folder that is not complete."""
        self.close()
        if self._partial is not None:
            shutil.rmtree(self._partial, ignore_errors=True)

    def close(self) -> None:
        """Give the blocks their own forward passes back."""
        for undo in self._unwrap:
            undo()
        self._unwrap = []

    # -- inside -------------------------------------------------------------------------------------------------------

    def _find_tables(self) -> list[tuple[nn.Embedding, str, Place]]:
        """Embeddings outside blocks whose table lies in the file as the model has it: module, parameter, place."""
        first = {id(p): n for n, p in self.model.named_parameters()}
        tables = [m for m in self.model.modules() if isinstance(m, nn.Embedding) and id(m.weight) in first]
        outside = [(m, first[id(m.weight)]) for m in tables if self._homes[first[id(m.weight)]] == _REST]
        found = [(m, name, self._places([name])) for m, name in outside if self._as_stored([name])]
        return [(m, name, place) for m, name, lying in found for place in lying.values()]

    def _as_stored(self, names: Iterable[str]) -> bool:
        """Whether the files hold these parameters and buffers in the model's own types."""
        values = {n: self._meta[n] if n in self._meta else self.model.get_buffer(n) for n in names}
        return all(
            t.dtype == value.dtype
            for n, value in values.items()
            for t in self.shards.read(self._sources[n].names).values()
        )

    def _places(self, names: Iterable[str]) -> dict[str, Place]:
        """Name in the files -> place, of the pieces of these parameters and buffers."""
        keys = [key for n in names for key in self._sources[n].names]
        lying = {file: places(self.shards.folder / file) for file in {self.shards.where[k] for k in keys}}
        return {key: lying[self.shards.where[key]][key] for key in keys}

    def _names(self, home: int) -> list[str]:
        return [name for name, where in self._homes.items() if where == home]

    def _buffers(self, home: int) -> dict[str, Tensor]:
        """Buffers that checkpoints hold; all are in memory from the start."""
        return {} if home != _REST else {n: b for n, b in self.model.named_buffers() if n in self._sources}

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
        values = {n: self.model.get_parameter(n) for n in self._names(home)} | self._buffers(home)
        tensors = {key: piece for n, value in values.items() for key, piece in self._sources[n].pieces(value)}
        write_shard(self._partial / _file(home), tensors)
        self._written[home] = Shards(self._partial, dict.fromkeys(tensors, _file(home)))

    def _copy(self, home: int) -> bool:
        """Copy what lies there from file to file; whether that was possible."""
        assert self._partial is not None
        names = [*self._names(home), *self._buffers(home)]
        if not self._as_stored(names):
            return False
        lying = self._places(names)
        copy_tensors(self._partial / _file(home), lying)
        self._written[home] = Shards(self._partial, dict.fromkeys(lying, _file(home)))
        return True

    def _wrap(self, block: Block) -> Callable[[], None]:
        module = block.module(self.model)
        own = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            with held(self, block):
                return own(*args, **kwargs)

        module.forward = forward
        return lambda: module.__dict__.pop("forward", None)


def _file(home: int) -> str:
    return "model-rest.safetensors" if home == _REST else f"model-block-{home:05d}.safetensors"


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
