"""The ragged layer: it holds for every head what its method keeps, and frees the rest after each call."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.attention.cache.held import Held, KVPhase
from sparseworks.attention.cache.layer import KV_LAYERS, Call, KVLayer
from sparseworks.attention.cache.method import kept_tokens
from sparseworks.attention.cache.store import RaggedStore
from sparseworks.attention.heads import Heads
from sparseworks.attention.kept import attend_kept, whole
from sparseworks.core.errors import ModelError
from sparseworks.exec.attention import merge
from sparseworks.exec.attention.checks import scale_of


@KV_LAYERS.register("ragged")
class RaggedLayer(KVLayer):
    """Prefill attends among the new tokens; later calls to what is held and to what is new.

    Attributes:
        store: what is held (None before the first token).
        new: tokens since the method last looked at the cache.
    """

    store: RaggedStore | None = None
    new: int = 0

    @property
    def holding(self) -> RaggedStore:
        """The store.

        Raises:
            ModelError: nothing was stored yet.
        """
        if self.store is None:
            raise ModelError("The cache is empty: the first call must come through `sw.attention`.")
        return self.store

    def begin(self, batch: int, kv_heads: int, d: int, like: Tensor) -> None:
        """An empty ragged store."""
        self.store, self.new = RaggedStore(batch, kv_heads, d, dtype=like.dtype, device=like.device), 0

    def attend(self, call: Call) -> Float[Tensor, "batch heads new d"]:
        """Attention to what is held and what is new; then what the method gives up is freed."""
        first, store = not self.holding.tokens, self.holding
        phase: KVPhase = "prefill" if first else "decode" if call.new == 1 else "between_turns"
        positions = torch.arange(self.seen, self.seen + call.new).expand(len(call.q), -1)
        if first:
            out = call.among()
            store.append(call.k, call.v, positions, call.real)
            self.stored(call)
        elif call.new == 1:
            store.append(call.k, call.v, positions, call.real)
            self.stored(call)
            if self.goes_before(call):
                self.counted(call)
                self.new += 1
                self.let_go(call, phase)
                return self.next(call)
            out = self.next(call)
        else:
            call.check_later()
            out = merge([store.attend(call.q, scale=call.scale), among(call)])[0]
            store.append(call.k, call.v, positions)
            self.stored(call)
        self.counted(call)
        self.new += call.new
        self.let_go(call, phase)
        return out

    def stored(self, call: Call) -> None:
        """Called as soon as the new tokens of a call lie in the store."""

    def next(self, call: Call) -> Float[Tensor, "batch heads 1 d"]:
        """A decoding step, its own token stored already."""
        store = self.holding
        self.read = store.tokens * store.token_bytes
        return store.attend(call.q, scale=call.scale)[0]

    def goes_before(self, call: Call) -> bool:
        """Whether tokens go before the new query attends."""
        method = call.run.caching.get(call.layer)
        return method is not None and method.score is not None and method.score.before

    def let_go(self, call: Call, phase: KVPhase) -> None:
        """What the method gives up is freed."""
        method = call.run.caching.get(call.layer)
        if method is None or self.count is None or not method.acts(phase, self.new):
            return
        held = self.held(call, phase)
        mask = kept_tokens(held, method)
        self.new = 0
        if method.merge is not None:
            keys, values = method.merge(held, mask)
            self.holding.set_keys(keys)
            self.holding.set_values(values)
        if method.score is not None:
            method.score.kept(mask, held)
        self.holding.keep(mask)

    def held(self, call: Call, phase: KVPhase) -> Held:
        """What a score sees."""
        k, v, positions = self.holding.padded()
        assert self.count is not None
        valid, count = (
            self.holding.valid().to(k.device),
            self.count.to(k.device),
        )  # counts are kept on the CPU, scores are not
        now = torch.full_like(count, self.seen - 1)
        return Held(
            k, v, positions, valid, call.q.detach(), now, count, scale_of(call.scale, call.q.shape[-1]),
            phase, call.layer, call.run.count, self.memory, call.module,
        )  # fmt: skip

    def forget_from(self, position: int) -> None:
        """Tokens at and after `position` go."""
        self.holding.keep(self.holding.padded()[2] < position)

    def take(self, sequences: Tensor) -> None:
        """The sequences at these indices."""
        self.holding.take(sequences)

    @property
    def nbytes(self) -> int:
        """Bytes of the store."""
        return 0 if self.store is None else self.store.nbytes

    @property
    def tokens(self) -> int:
        """Tokens held, over sequences and heads."""
        return 0 if self.store is None else self.store.tokens

    def state(self) -> dict[str, Tensor]:
        """Keys, values, positions, lengths."""
        return self.holding.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Inverse of `state`; `count` tells how many sequences there are."""
        heads = len(state["length"]) // len(state["count"])
        self.store = RaggedStore(len(state["count"]), heads, state["k"].shape[1], dtype=state["k"].dtype)
        self.store.load(state)


def among(call: Call) -> tuple[Tensor, Tensor]:
    """New tokens among themselves, causal, with the log-sum-exp."""
    heads = Heads(call.q, call.k, call.v, scale=call.scale)
    return attend_kept(heads, whole(heads))
