"""KeyIndex: what a score keeps beside the keys of one sequence, so that a step need not read them (labels, codes, centroids)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.attention.heads import Heads


class KeyIndex:
    """Tensors over the tokens of one sequence, grown as keys come; a score that has one names its class in `INDEX`.

    Attributes:
        score: whose index it is, with its options.
        parts: name -> tensor; those named in `grows` have tokens along their second axis, the others are made once.
        inner: the index of the score that this score wraps.
        columns: parts that grow whose tokens lie side by side in memory, those of one channel after the other.
    """

    grows: ClassVar[tuple[str, ...]] = ()
    columns: ClassVar[tuple[str, ...]] = ()

    def __init__(self, score: Any, parts: Mapping[str, Tensor] | None = None, inner: KeyIndex | None = None):
        self.score, self.parts, self.inner = score, dict(parts or {}), inner
        self._buffers: dict[str, Tensor] = {}

    @classmethod
    def of(cls, score: Any, heads: Heads) -> KeyIndex:
        """The index over the keys of one sequence, after a prompt or from the keys of any call."""
        index = cls(score)
        index.begin(heads)
        index.extend(heads.k[0])
        return index

    def begin(self, heads: Heads) -> None:
        """What is decided once, from the queries and keys of the prompt."""

    def encoded(self, k: Float[Tensor, "kv_heads new d"]) -> dict[str, Tensor]:
        """The parts that grow, for new keys."""
        raise NotImplementedError

    def extend(self, k: Float[Tensor, "kv_heads new d"]) -> None:
        """New keys at the end."""
        for name, new in self.encoded(k).items():
            self.parts[name] = self._grown(name, new)
        if self.inner is not None:
            self.inner.extend(k)

    def _grown(self, name: str, new: Tensor) -> Tensor:
        """The part with `new` behind it: in its buffer if that has room, else in a fresh one with room for a thirty-second more."""
        held, buffer = self.parts.get(name), self._buffers.get(name)
        if held is None:
            return new.contiguous()
        count = held.shape[1] + new.shape[1]
        if buffer is None or buffer.data_ptr() != held.data_ptr() or count > buffer.shape[1]:
            with torch.inference_mode(False):  # an inference tensor could not be written to outside of that mode
                room, rest = count + max(16, count // 32), held.shape[2:]
                size = (len(held), *rest, room) if name in self.columns else (len(held), room, *rest)
                buffer = torch.empty(size, dtype=held.dtype, device=held.device)
                buffer = self._buffers[name] = buffer.movedim(-1, 1) if name in self.columns else buffer
            buffer[:, : held.shape[1]] = held
        buffer[:, held.shape[1] : count] = new
        return buffer[:, :count]

    def crop(self, tokens: int, k: Float[Tensor, "kv_heads tokens d"]) -> None:
        """Keep the first `tokens`, whose keys are `k`."""
        for name in self.grows:
            self.parts[name] = self.parts[name][:, :tokens].clone()
        if self.inner is not None:
            self.inner.crop(tokens, k)

    @property
    def nbytes(self) -> int:
        """Bytes of all parts, room for keys to come included."""
        own = sum(t.untyped_storage().nbytes() for t in self.parts.values())
        return own + (0 if self.inner is None else self.inner.nbytes)

    def state(self) -> dict[str, Tensor]:
        """All parts by name, those of the inner index after `inner-`."""
        inner = {} if self.inner is None else {f"inner-{n}": t for n, t in self.inner.state().items()}
        return self.parts | inner

    @classmethod
    def restored(cls, score: Any, state: Mapping[str, Tensor]) -> KeyIndex:
        """Inverse of `state`."""
        own = {n: t for n, t in state.items() if not n.startswith("inner-")}
        rest = {n.removeprefix("inner-"): t for n, t in state.items() if n.startswith("inner-")}
        return cls(score, own, score.base.INDEX.restored(score.base, rest) if rest else None)


def indices_of(score: Any, heads: Heads) -> list[Any]:
    """The index of every sequence: the one that the cache keeps in `heads.memory`, else one made from these keys."""
    held = heads.memory.get("index")
    if held is not None:
        return [held]
    return [score.INDEX.of(score, sequence(heads, b)) for b in range(heads.batch)]


def sequence(heads: Heads, b: int) -> Heads:
    """One sequence of a batch, with nothing remembered."""
    q, k, v = (t[b : b + 1] for t in (heads.q, heads.k, heads.v))
    hidden = None if heads.hidden is None else heads.hidden[b : b + 1]
    return heads.with_(q=q, k=k, v=v, hidden=hidden, memory={})
