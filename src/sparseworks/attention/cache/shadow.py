"""Shadow of a prompt: its keys as a product of low rank before rotary embedding, its values out of the way (ShadowKV)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparseworks.attention.cache.rotation import Angles, turned
from sparseworks.attention.cache.store import RaggedStore
from sparseworks.attention.heads import Heads
from sparseworks.attention.scores.landmarks import ChunkMeans, Landmarks, tokens_of
from sparseworks.exec.attention import attend_ranges, merge

_EXACT = ("low", "basis", "values", "exact_k", "exact_v")


class Shadow:
    """One sequence: k_j = R_j (low_j basis) for tokens of chunks with a landmark, outlier chunks exact, later tokens in a store.

    Attributes:
        index: landmarks and which chunks are outliers.
        parts: `low` (tokens, rank), `basis` (rank, kv_heads d), `values` (kv_heads, tokens, d) in host memory, `exact_k` and
            `exact_v` (kv_heads, exact, d).
        local: tokens after those.
        angles: of the rotary embedding.
    """

    def __init__(self, score: Landmarks, angles: Angles | None):
        self.score, self.angles = score, angles
        self.index = ChunkMeans(score)
        self.parts: dict[str, Tensor] = {}
        self.local: RaggedStore | None = None

    def begin(self, heads: Heads) -> None:
        """The prompt is divided."""
        k, v, n = heads.k[0].detach(), heads.v[0].detach(), self.score.covered(heads.keys)
        self.index = ChunkMeans(self.score)
        self.index.begin(heads)
        self.parts = {}
        if n:
            before = turned(k[:, :n], torch.arange(n), self.angles, back=True)
            low, basis = factors(before.transpose(0, 1).flatten(1), self.score.rank)
            at = self.outlier().nonzero()[:, 1].view(len(k), -1)
            wide = at.unsqueeze(-1).expand(-1, -1, k.shape[-1])
            exact = k[:, :n].gather(1, wide), v[:, :n].gather(1, wide)
            self.parts = dict(
                zip(
                    _EXACT,
                    (low, basis, v[:, :n].cpu().clone(memory_format=torch.contiguous_format), *exact),
                    strict=True,
                )
            )
        self.local = RaggedStore(1, len(k), k.shape[-1], dtype=k.dtype, device=k.device)
        if heads.keys > n:
            self.append(k[:, n:], v[:, n:])

    def append(self, k: Float[Tensor, "kv_heads new d"], v: Float[Tensor, "kv_heads new d"]) -> None:
        """Later tokens."""
        assert self.local is not None
        self.local.append(k[None], v[None], torch.arange(self.tokens, self.tokens + k.shape[1])[None])

    @property
    def covered(self) -> int:
        """Tokens that lie in the shadow."""
        return len(self.parts["low"]) if self.parts else 0

    @property
    def tokens(self) -> int:
        """All tokens."""
        return self.covered + (0 if self.local is None else int(self.local.length[0]))

    def outlier(self) -> Bool[Tensor, "kv_heads covered"]:
        """Tokens of outlier chunks."""
        return self.index.parts["outlier"].repeat_interleave(self.score.chunk, 1)

    def keys(self, head: int, at: Tensor) -> Float[Tensor, "some d"]:
        """Keys of a head built anew at these positions."""
        d = self.parts["values"].shape[-1]
        built = self.parts["low"][at.to(self.parts["low"].device)] @ self.parts["basis"][:, head * d : (head + 1) * d]
        return turned(built, at, self.angles)

    def chosen(
        self, mask: Bool[Tensor, "kv_heads tokens"]
    ) -> tuple[list[tuple[Float[Tensor, "some d"], Float[Tensor, "some d"]]], int]:
        """Keys and values of each head where the mask says, outliers and later tokens exact; and the bytes fetched from the host."""
        assert self.local is not None
        late_k, late_v, _ = (t[0] for t in self.local.padded())
        found, moved = [], 0
        for head, row in enumerate(mask):
            late = row[self.covered :].nonzero()[:, 0]
            k, v = [late_k[head, late]], [late_v[head, late]]
            if self.covered:
                at = (row[: self.covered] & ~self.outlier()[head]).nonzero()[:, 0]
                fetched = self.parts["values"][head, at.cpu()]
                moved += fetched.numel() * fetched.element_size()
                k = [self.keys(head, at), self.parts["exact_k"][head], *k]
                v = [fetched.to(late_v.device), self.parts["exact_v"][head], *v]
            found.append((torch.cat(k), torch.cat(v)))
        return found, moved

    def attend(
        self, q: Float[Tensor, "heads 1 d"], chunks: Int[Tensor, "kv_heads chunks"], tokens: int, scale: float
    ) -> tuple[tuple[Float[Tensor, "heads 1 d"], Float[Tensor, "heads 1"]], int]:
        """Attention of one query to the first `tokens` of these chunks of each key head; and the bytes fetched.

        What is built and fetched goes with the tokens; outliers and later tokens are read where they lie, beside them.
        """
        assert self.local is not None
        out, lse = self.local.attend(q[None].float(), scale=scale)
        parts, moved = [(out[0], lse[0])], 0
        if self.covered:
            parts.append(_whole(q.float(), self.parts["exact_k"].float(), self.parts["exact_v"].float(), scale))
        if tokens:
            fetched = self._fetched(chunks, tokens)
            moved = fetched.numel() * fetched.element_size()
            k = self._built(chunks, tokens)
            parts.append(_whole(q.float(), k.float(), fetched.to(k.device).float(), scale))
        return merge(parts), moved

    def _built(self, chunks: Tensor, tokens: int) -> Float[Tensor, "kv_heads tokens d"]:
        """Keys anew; of the factors whole chunks are read, which lie side by side."""
        low, basis, size = self.parts["low"], self.parts["basis"], self.score.chunk
        rows = low.view(-1, size * low.shape[1]).index_select(0, chunks.flatten().to(low.device))
        rows = rows.view(len(chunks), -1, low.shape[1])[:, :tokens]
        found = rows @ basis.unflatten(1, (len(chunks), -1)).transpose(0, 1)
        return turned(found, tokens_of(chunks, tokens, size), self.angles)

    def _fetched(self, chunks: Tensor, tokens: int) -> Float[Tensor, "kv_heads tokens d"]:
        """Values from host memory: whole chunks side by side, and of the last what is wanted."""
        values, size = self.parts["values"], self.score.chunk
        whole, left = divmod(tokens, size)
        found = values.new_empty(len(values), tokens, values.shape[2])
        for head, at in enumerate(chunks.cpu()):
            width = size * values.shape[2]
            torch.index_select(
                values[head].view(-1, width), 0, at[:whole], out=found[head, : whole * size].view(whole, width)
            )
            if left:
                found[head, whole * size :] = values[head, int(at[whole]) * size :][:left]
        return found

    def crop(self, tokens: int) -> bool:
        """Keep the first `tokens`; False where that would cut into the shadow."""
        assert self.local is not None
        if tokens < self.covered:
            return False
        self.local.keep(
            torch.arange(int(self.local.length[0])).expand(1, self.local.kv_heads, -1) < tokens - self.covered
        )
        return True

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        own = sum(t.untyped_storage().nbytes() for n, t in self.parts.items() if n != "values")
        return own + self.index.nbytes + (0 if self.local is None else self.local.nbytes)

    @property
    def offloaded(self) -> int:
        """Bytes in host memory."""
        return self.parts["values"].untyped_storage().nbytes() if self.parts else 0

    def copy(self) -> Shadow:
        """With memory of its own."""
        return copy.deepcopy(self)

    def state(self) -> dict[str, Tensor]:
        """All tensors by name."""
        assert self.local is not None
        index = {f"index-{n}": t for n, t in self.index.state().items()}
        return self.parts | index | {f"local-{n}": t for n, t in self.local.state().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state`."""
        under = lambda p: {n.removeprefix(p): t for n, t in state.items() if n.startswith(p)}  # noqa: E731
        self.parts = {n: state[n] for n in _EXACT if n in state}
        self.index, rest = ChunkMeans(self.score, under("index-")), under("local-")
        self.local = RaggedStore(1, len(rest["length"]), rest["k"].shape[1], dtype=rest["k"].dtype)
        self.local.load(rest)


def _whole(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Every query to all tokens of its key head."""
    begin = torch.zeros(len(k), dtype=torch.int32)
    return attend_ranges(q, k, v, begin, begin + k.shape[1], scale=scale)


def factors(
    x: Float[Tensor, "tokens width"], rank: int
) -> tuple[Float[Tensor, "tokens rank"], Float[Tensor, "rank width"]]:
    """x B', B: the best approximation of x of that rank is their product (Eckart and Young); B from the eigenvectors of x'x."""
    wide = x.double()
    basis = torch.linalg.eigh(wide.mT @ wide).eigenvectors.flip(-1)[:, : min(rank, *x.shape)]
    return (wide @ basis).to(x.dtype), basis.mT.to(x.dtype).contiguous()


def placeholder(like: Tensor, tokens: int) -> Any:
    """Keys or values of that many tokens that take no memory, where only the shape is asked for."""
    return like[:, :, :1].detach().new_zeros(1).expand(1, like.shape[1], tokens, like.shape[-1])
