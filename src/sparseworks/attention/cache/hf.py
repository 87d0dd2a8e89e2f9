"""The cache as transformers wants it: layers that report what was seen and hold what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from sparseworks.attention.cache.store import RaggedStore
from sparseworks.core.errors import CheckpointError, ModelError

if TYPE_CHECKING:
    from sparseworks.attention.hf import Attending


class RaggedLayer(CacheLayerMixin):
    """One layer. `update` hands new keys and values through: the attention function stores them after it has attended.

    Attributes:
        seen: tokens of the text so far, padding included; what positions are counted from.
        store: what is held (None before the first token).
        count: real tokens of each sequence so far.
        new: tokens since the method last looked at the cache.
    """

    is_croppable = True
    supports_early_init = False
    is_sliding = False

    def __init__(self, run: Attending):
        super().__init__()
        self.run, self.seen, self.new = run, 0, 0
        self.count: Tensor | None = None
        self.store: RaggedStore | None = None
        self.memory: dict[Any, Any] = {}

    @property
    def holding(self) -> RaggedStore:
        """The store.

        Raises:
            ModelError: nothing was stored yet.
        """
        if self.store is None:
            raise ModelError("The cache is empty: the first call must come through `sw.attention`.")
        return self.store

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the store for these sizes."""
        batch, heads, _, d = key_states.shape
        self.store = RaggedStore(batch, heads, d, dtype=key_states.dtype, device=key_states.device)
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The new keys and values themselves."""
        del args, kwargs
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.run.pending = self
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Tokens of the text so far."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As if nothing had gone: masks speak of the text."""
        return self.seen + query_length, 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens of the text.

        Raises:
            ModelError: a positive number (transformers counts what is removed as negative).
        """
        if tokens_to_remove > 0:
            raise ModelError(f"Tokens to remove are given as a negative number, got {tokens_to_remove}.")
        if tokens_to_remove and self.store is not None:
            self.seen = max(0, self.seen + tokens_to_remove)
            self.count = None if self.count is None else (self.count + tokens_to_remove).clamp(min=0)
            self.store.keep(self.store.padded()[2] < self.seen)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Sequences in another order."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every sequence several times."""
        if self.store is not None:
            self.batch_select_indices(torch.arange(self.store.batch).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only these sequences."""
        if self.store is not None:
            self.store.take(indices)
            self.count = None if self.count is None else self.count[indices.cpu()]
            self.memory = {k: _taken(v, indices) for k, v in self.memory.items()}

    def reset(self) -> None:
        """Empty."""
        self.__init__(self.run)

    def offload(self) -> None:
        """Nothing: placing tokens elsewhere is for a method to decide."""

    def prefetch(self) -> None:
        """Nothing."""


class RaggedCache(Cache):
    """What `sw.attention` gives a model to generate with; `nbytes` is what it really takes."""

    def __init__(self, run: Attending, layers: int):
        super().__init__(layers=[RaggedLayer(run) for _ in range(layers)])

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        return sum(layer.store.nbytes for layer in self.ragged if layer.store is not None)

    @property
    def tokens(self) -> int:
        """Tokens held, over layers, sequences and heads."""
        return sum(layer.store.tokens for layer in self.ragged if layer.store is not None)

    @property
    def ragged(self) -> list[RaggedLayer]:
        """The layers."""
        return [layer for layer in self.layers if isinstance(layer, RaggedLayer)]

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens of the text in every layer."""
        for layer in self.ragged:
            layer.crop(tokens_to_remove)

    def save(self, path: Path | str) -> None:
        """Write what is held to one safetensors file, through a temporary one. What methods remember is not written."""
        path, data = Path(path), {}
        for i, layer in enumerate(self.ragged):
            if layer.store is not None:
                data |= {f"{i}.{name}": t.contiguous() for name, t in layer.store.state().items()}
                data[f"{i}.seen"] = torch.tensor(layer.seen)
                data[f"{i}.count"] = layer.count if layer.count is not None else torch.tensor([layer.seen])
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
        if {int(name.split(".")[0]) for name in data} != set(range(len(self.ragged))):
            raise CheckpointError(
                f"The cache {str(path)!r} is not of a model with {len(self.ragged)} attention layers."
            )
        for i, layer in enumerate(self.ragged):
            parts = {name.split(".")[1]: t for name, t in data.items() if name.split(".")[0] == str(i)}
            heads = len(parts["length"]) // len(parts["count"])
            store = RaggedStore(len(parts["count"]), heads, parts["k"].shape[1], dtype=parts["k"].dtype)
            store.load(parts)
            layer.store, layer.count, layer.seen, layer.is_initialized = store, parts["count"], int(parts["seen"]), True


def _taken(value: Any, indices: Tensor) -> Any:
    """Per-sequence tensors that a score remembers follow their sequences."""
    return value[indices] if isinstance(value, Tensor) and value.dim() else value
