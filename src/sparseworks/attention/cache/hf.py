"""The cache that `sw.attention` gives a model: a layer of the kind that its methods ask for, real bytes, save and load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from transformers.cache_utils import Cache

from sparseworks.attention.cache.layer import KV_LAYERS, KVLayer
from sparseworks.core.errors import CheckpointError

if TYPE_CHECKING:
    from sparseworks.attention.attending import Attending


def layer_for(run: Attending, layer: int) -> KVLayer:
    """The kind of cache that the methods of a layer ask for: a method of the cache goes before one of decoding."""
    caching, method = run.caching.get(layer), run.methods.get(layer)
    kind = caching.cache if caching is not None else "" if method is None else method.cache
    return KV_LAYERS.get(kind or "ragged")(run, layer)


class SparseCache(Cache):
    """What `sw.attention` gives a model to generate with; `nbytes` is what it really takes."""

    def __init__(self, run: Attending, layers: int):
        super().__init__(layers=[layer_for(run, i) for i in range(layers)])

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        return sum(layer.nbytes for layer in self.held)

    @property
    def tokens(self) -> int:
        """Tokens held, over layers, sequences and heads."""
        return sum(layer.tokens for layer in self.held)

    @property
    def read(self) -> int:
        """Bytes of keys, values and indices that the last decoding step read."""
        return sum(layer.read for layer in self.held)

    @property
    def held(self) -> list[KVLayer]:
        """The layers."""
        return [layer for layer in self.layers if isinstance(layer, KVLayer)]

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens of the text in every layer."""
        for layer in self.held:
            layer.crop(tokens_to_remove)

    def save(self, path: Path | str) -> None:
        """Write what is held to one safetensors file, through a temporary one. What methods remember is not written."""
        path, data = Path(path), {}
        for i, layer in enumerate(self.held):
            if layer.count is not None:
                data |= {f"{i}.{name}": t.contiguous() for name, t in layer.state().items()}
                data |= {f"{i}.seen": torch.tensor(layer.seen), f"{i}.count": layer.count}
        if not data:
            raise CheckpointError("The cache is empty; there is nothing to save.")
        part = path.with_name(path.name + ".part")
        save_file(data, part)
        part.replace(path)

    def load(self, path: Path | str) -> None:
        """Read what `save` wrote.

        Raises:
            CheckpointError: no such file, damaged, or of a model with other layers.
        """
        try:
            data = load_file(path)
        except Exception as error:
            raise CheckpointError(f"The cache {str(path)!r} cannot be read: {error}.") from error
        if {int(name.split(".")[0]) for name in data} != set(range(len(self.held))):
            raise CheckpointError(f"The cache {str(path)!r} is not of a model with {len(self.held)} attention layers.")
        for i, layer in enumerate(self.held):
            parts = {name.split(".")[1]: t for name, t in data.items() if name.split(".")[0] == str(i)}
            layer.load_state(parts)
            layer.count, layer.seen, layer.is_initialized = parts["count"], int(parts["seen"]), True
