"""Everything is kept, little is read: keys and values beside the index by which a decoding method finds what to attend to."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.attention.cache.layer import KV_LAYERS, Call
from sparseworks.attention.cache.ragged import RaggedLayer
from sparseworks.attention.cache.shadow import placeholder
from sparseworks.attention.heads import Heads
from sparseworks.attention.index import KeyIndex
from sparseworks.attention.kept import Kept
from sparseworks.attention.method import AttentionMethod
from sparseworks.attention.run import sparse_attention


@KV_LAYERS.register("indexed")
class IndexedLayer(RaggedLayer):
    """The index of every sequence is made from the prompt and grows with every token; a later turn attends to everything.

    Attributes:
        memories: what the method remembers for each sequence; its index is under `index`.
    """

    memories: list[dict[Any, Any]]
    _reads: list[Callable[[], int]]

    def begin(self, batch: int, kv_heads: int, d: int, like: Tensor) -> None:
        """An empty store and no memories."""
        super().begin(batch, kv_heads, d, like)
        self.memories = [{} for _ in range(batch)]

    @property
    def indices(self) -> list[KeyIndex]:
        """The index of each sequence."""
        return [m["index"] for m in self.memories if "index" in m]

    def stored(self, call: Call) -> None:
        """Indices are made from a prompt, and grow with what comes later."""
        index = type(self.scored_by()).INDEX
        for b, memory in enumerate(self.memories):
            real = slice(None) if call.real is None else call.real[b].to(call.k.device)
            k, one = call.k[b][:, real], slice(b, b + 1)
            if "index" in memory:
                memory["index"].extend(k)
            elif index is not None:
                parts = (t[one][:, :, real] for t in (call.q, call.k, call.v))
                q, keys, values = (t.detach() for t in parts)
                memory["index"] = index.of(self.scored_by(), self.heads(call, q, keys, values, {}, b))

    def next(self, call: Call) -> Float[Tensor, "batch heads 1 d"]:
        """Select by the index, and attend to what was selected."""
        method, outs, density = self.method(call), [], 0.0
        self._reads = []
        for b, memory in enumerate(self.memories):
            k, v = (t[None] for t in self.holding.sequence(b))
            heads = self.heads(call, call.q[b : b + 1], k, v, memory, b)
            (out, _), kept = sparse_attention(heads, method)
            outs.append(out)
            if call.run.watch is not None:
                call.run.watch(heads, kept)
            density += 1.0 if kept is None else kept.density(heads)
            like = placeholder(k, heads.keys)  # what is counted later must not hold on to the keys of now
            seen = heads.with_(k=like, v=like, memory={})
            self._reads.append(partial(self.bytes_read, seen, kept, memory.get("index")))
        call.run.note(call.layer, "decode", density / len(outs))
        return torch.cat(outs).to(call.q.dtype)

    def bytes_read(self, heads: Heads, kept: Kept | None, index: KeyIndex | None) -> int:
        """Of the tokens that a head of a key group attends to, and of the index."""
        if kept is None:
            return heads.keys * heads.kv_heads * self.holding.token_bytes
        return kept.read(heads) * self.holding.token_bytes + (0 if index is None else index.nbytes)

    @property
    def read(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Bytes that the last decoding step read, counted when somebody asks."""
        return sum(count() for count in self._reads)

    @read.setter
    def read(self, value: int) -> None:
        """Set before the first step."""
        self._reads = [] if not value else [lambda: value]

    def method(self, call: Call) -> AttentionMethod:
        """The method of this layer."""
        return call.run.methods[call.layer]

    def heads(self, call: Call, q: Tensor, k: Tensor, v: Tensor, memory: dict[Any, Any], b: int) -> Heads:
        """One sequence as a method sees it."""
        return Heads(
            q, k, v, scale=call.scale, layer=call.layer, layers=call.run.count, module=call.module, memory=memory,
            common=call.run.common.setdefault(b, {}),
        )  # fmt: skip

    def forget_from(self, position: int) -> None:
        """Tokens at and after `position` go, and with them what was chosen last."""
        super().forget_from(position)
        k, _, _ = self.holding.padded()
        for b, memory in enumerate(self.memories):
            index = memory.get("index")
            memory.clear()
            if index is not None:
                left = int(self.holding.length[b * self.holding.kv_heads])
                index.crop(left, k[b, :, :left])
                memory["index"] = index

    def take(self, sequences: Tensor) -> None:
        """The sequences at these indices, each with a memory of its own."""
        super().take(sequences)
        self.memories = [copy.deepcopy(self.memories[i]) for i in sequences.tolist()]

    @property
    def nbytes(self) -> int:
        """Bytes of the store and of the indices."""
        return super().nbytes + sum(i.nbytes for i in (self.indices if self.store is not None else []))

    def state(self) -> dict[str, Tensor]:
        """The store and the indices."""
        parts = {f"index-{b}-{n}": t for b, i in enumerate(self.indices) for n, t in i.state().items()}
        return super().state() | parts

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Inverse of `state`."""
        super().load_state(state)
        score = self.scored_by()
        self.memories = []
        for b in range(self.holding.batch):
            own = {n.split("-", 2)[2]: t for n, t in state.items() if n.startswith(f"index-{b}-")}
            kind = type(score).INDEX
            self.memories.append({} if kind is None or not own else {"index": kind.restored(score, own)})

    def scored_by(self) -> Any:
        """The score of the method of this layer."""
        return self.run.methods[self.layer].score
