"""KVLayer: one layer of a cache as transformers wants it, and what each kind of cache adds: how it attends, stores, forgets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers.cache_utils import CacheLayerMixin

from sparseworks.core.errors import ModelError
from sparseworks.core.registry import Registry

if TYPE_CHECKING:
    from sparseworks.attention.attending import Attending


KV_LAYERS: Registry[type[KVLayer]] = Registry("kind of cache", "sparseworks.attention.cache.kinds")


@dataclass(frozen=True)
class Call:
    """New tokens of one layer that are to attend to what it holds and to themselves.

    Attributes:
        real: which new tokens are no padding; None: all.
        among: attention among the new tokens alone, by the method of this layer, for a cache that holds nothing yet.
    """

    run: Attending
    layer: int
    module: nn.Module | None
    q: Float[Tensor, "batch heads new d"]
    k: Float[Tensor, "batch kv_heads new d"]
    v: Float[Tensor, "batch kv_heads new d"]
    real: Bool[Tensor, "batch new"] | None
    scale: float | None
    among: Callable[[], Tensor]

    @property
    def new(self) -> int:
        """New tokens of each sequence, padding included."""
        return self.q.shape[2]

    def check_later(self) -> None:
        """Raise ModelError for padding among the tokens of a later turn."""
        if self.real is not None and not bool(self.real.all()):
            raise ModelError(
                "A later turn must bring as many real tokens for every sequence: padding in it is not supported."
            )


class KVLayer(CacheLayerMixin):
    """One layer. `update` hands new keys and values through: the attention function has them attended to and stored here.

    Attributes:
        seen: tokens of the text so far, padding included; what positions are counted from.
        count: real tokens of each sequence so far.
        layer: which one.
        memory: what methods keep for this layer.
        read: bytes that the last decoding step read of keys, values and what is kept beside them.
    """

    registered_name: ClassVar[str] = ""

    is_croppable = True
    supports_early_init = False
    is_sliding = False

    def __init__(self, run: Attending, layer: int = 0):
        super().__init__()
        self.run, self.layer, self.seen = run, layer, 0
        self.count: Tensor | None = None
        self.memory: dict[Any, Any] = {}
        self.read = 0

    # -- what a kind of cache adds ------------------------------------------------------------------------------------

    def begin(self, batch: int, kv_heads: int, d: int, like: Tensor) -> None:
        """Make the store for these sizes, of the type and on the device of `like`."""
        raise NotImplementedError

    def attend(self, call: Call) -> Float[Tensor, "batch heads new d"]:
        """Attend to what is held and to what is new, and store that."""
        raise NotImplementedError

    def forget_from(self, position: int) -> None:
        """Let go of the tokens of the text from `position` on."""
        raise NotImplementedError

    def take(self, sequences: Tensor) -> None:
        """The sequences at these indices, repeated where an index is."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is held."""
        raise NotImplementedError

    @property
    def tokens(self) -> int:
        """Tokens held, over sequences and heads."""
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """What `load_state` brings back."""
        raise ModelError(f"{type(self).__name__} cannot be saved.")

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Inverse of `state`."""
        raise ModelError(f"{type(self).__name__} cannot be loaded.")

    # -- what transformers asks ---------------------------------------------------------------------------------------

    def counted(self, call: Call) -> None:
        """Count new tokens; called by `attend` once they are stored."""
        count = torch.full((len(call.q),), call.new) if call.real is None else call.real.sum(1).cpu()
        self.count = count if self.count is None else self.count + count
        self.seen += call.new

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the store."""
        batch, heads, _, d = key_states.shape
        self.begin(batch, heads, d, key_states)
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
        if tokens_to_remove and self.is_initialized:
            self.seen = max(0, self.seen + tokens_to_remove)
            self.count = None if self.count is None else (self.count + tokens_to_remove).clamp(min=0)
            self.forget_from(self.seen)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Sequences in another order."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every sequence several times."""
        if self.count is not None:
            self.batch_select_indices(torch.arange(len(self.count)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only these sequences; per-sequence tensors that a method remembers follow them."""
        if self.count is None:
            return
        self.take(indices)
        self.count = self.count[indices.cpu()]
        follows = lambda v: isinstance(v, Tensor) and v.dim() > 0  # noqa: E731
        self.memory = {k: v[indices] if follows(v) else v for k, v in self.memory.items()}

    def reset(self) -> None:
        """Empty."""
        self.__init__(self.run, self.layer)

    def offload(self) -> None:
        """Nothing: placing tokens elsewhere is for a method to decide."""

    def prefetch(self) -> None:
        """Nothing."""
