"""Pages that are kept but not all read: the cache behind methods that bound the keys of a page while decoding."""

from __future__ import annotations

import copy
from math import ceil

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.attention.cache.layer import KV_LAYERS, Call, KVLayer
from sparseworks.attention.cache.ragged import among
from sparseworks.attention.heads import Heads
from sparseworks.attention.kept import attend_kept, whole
from sparseworks.core.budget import Count, Density
from sparseworks.core.errors import ModelError
from sparseworks.exec.attention import KeyPages, merge
from sparseworks.exec.attention.pages import PAGE


class PagedStore:
    """Pages of every sequence of a batch, float32 on the CPU."""

    def __init__(self, batch: int, kv_heads: int, d: int):
        self.sequences = [KeyPages(kv_heads, d) for _ in range(batch)]

    @property
    def tokens(self) -> int:
        """Tokens held, over sequences and heads."""
        return sum(p.tokens * p.kv_heads for p in self.sequences)

    @property
    def nbytes(self) -> int:
        """Bytes of all pages."""
        return sum(p.nbytes for p in self.sequences)

    def append(self, k: Tensor, v: Tensor, real: Tensor | None) -> None:
        """New tokens of every sequence, those that are no padding."""
        for b, pages in enumerate(self.sequences):
            stays = slice(None) if real is None else real[b]
            pages.append(k[b][:, stays], v[b][:, stays])

    def decode(
        self, q: Float[Tensor, "batch heads 1 d"], budget: Density | Count, scale: float | None
    ) -> tuple[Float[Tensor, "batch heads 1 d"], float]:
        """Attention of one query a sequence to the pages of the largest bounds; and the share of pages read."""
        outs, read, held = [], 0, 0
        for b, pages in enumerate(self.sequences):
            top = pages_of(budget, pages.tokens)
            outs.append(pages.attend(q[b, :, 0], top=top, scale=scale)[0])
            read, held = read + min(top, pages.pages), held + pages.pages
        return torch.stack(outs).unsqueeze(2).to(q.dtype), read / max(held, 1)

    def all(self, q: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
        """Attention of several queries to everything held, for a later turn."""
        parts = []
        for b, pages in enumerate(self.sequences):
            one = Heads(q[b : b + 1], pages.keys()[None], pages.values()[None], causal=False, scale=scale)
            parts.append(attend_kept(one, whole(one)))
        return torch.cat([o for o, _ in parts]), torch.cat([lse for _, lse in parts])

    def take(self, indices: Tensor) -> None:
        """The sequences at these indices; one that is taken twice is copied."""
        used: set[int] = set()
        fresh = []
        for i in indices.tolist():
            fresh.append(copy.deepcopy(self.sequences[i]) if i in used else self.sequences[i])
            used.add(i)
        self.sequences = fresh


def pages_of(budget: Density | Count, tokens: int) -> int:
    """Pages that the budget allows of so many tokens, at least one."""
    pages = ceil(tokens / PAGE)
    return max(1, ceil(budget.value / PAGE) if isinstance(budget, Count) else round(budget.value * pages))


@KV_LAYERS.register("pages")
class PagedLayer(KVLayer):
    """Prefill attends among the new tokens; a decoding step to the pages of the largest bounds; a later turn to everything."""

    store: PagedStore | None = None

    def begin(self, batch: int, kv_heads: int, d: int, like: Tensor) -> None:
        """Empty pages.

        Raises:
            ModelError: not on the CPU.
        """
        if not like.is_cpu:
            raise ModelError("Pages are read by a kernel of the CPU; on a GPU use pages of another size than 64.")
        self.store = PagedStore(batch, kv_heads, d)

    def attend(self, call: Call) -> Float[Tensor, "batch heads new d"]:
        """See the class; new tokens are stored first where they are attended to as pages."""
        store, method = self._holding(), call.run.methods[call.layer]
        if not store.tokens:
            out = call.among()
            store.append(call.k, call.v, call.real)
        elif call.new == 1:
            store.append(call.k, call.v, call.real)
            budget = method.budget
            assert isinstance(budget, Density | Count)
            out, read = store.decode(call.q, budget, call.scale)
            call.run.note(call.layer, "decode", read)
        else:
            call.check_later()
            out = merge([store.all(call.q, call.scale), among(call)])[0]
            store.append(call.k, call.v, None)
        self.counted(call)
        return out

    def forget_from(self, position: int) -> None:
        """The last tokens of every sequence go."""
        for pages, count in zip(self._holding().sequences, (self.count if self.count is not None else []), strict=True):
            pages.crop(pages.tokens - int(count))

    def take(self, sequences: Tensor) -> None:
        """The sequences at these indices."""
        self._holding().take(sequences)

    @property
    def nbytes(self) -> int:
        """Bytes of all pages and bounds."""
        return 0 if self.store is None else self.store.nbytes

    @property
    def tokens(self) -> int:
        """Tokens held, over sequences and heads."""
        return 0 if self.store is None else self.store.tokens

    def _holding(self) -> PagedStore:
        if self.store is None:
            raise ModelError("The cache is empty: the first call must come through `sw.attention`.")
        return self.store
