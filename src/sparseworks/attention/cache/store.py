"""RaggedStore: keys and values of one layer, as many tokens for every head as it keeps, and no bytes for those that went."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from sparseworks.core.errors import DtypeError, ShapeError
from sparseworks.exec.attention import attend_ranges, attend_tokens

_ROOM = 16
"""Tokens of room behind a segment, at least; a thirty-second of what is held where that is more."""


class RaggedStore:
    """Tokens of `batch` sequences x `kv_heads` heads, one segment each in a common buffer, in the order in which they came.

    Attributes:
        batch, kv_heads, d: sizes.
        length: tokens of each segment.

    Raises:
        ShapeError: sizes below 1.
        DtypeError: not floating.
    """

    def __init__(
        self,
        batch: int,
        kv_heads: int,
        d: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        if min(batch, kv_heads, d) < 1:
            raise ShapeError(
                f"A store needs sequences, heads and a head size of at least 1; got {batch}, {kv_heads}, {d}."
            )
        if not dtype.is_floating_point:
            raise DtypeError(f"Keys and values are floating, not {dtype}.")
        self.batch, self.kv_heads, self.d = batch, kv_heads, d
        self.length: Int[Tensor, " segments"] = torch.zeros(batch * kv_heads, dtype=torch.long)
        self._start = torch.zeros_like(self.length)
        self._k = torch.empty(0, d, dtype=dtype, device=device)
        self._v = torch.empty(0, d, dtype=dtype, device=device)
        self._at = torch.empty(0, dtype=torch.int32, device=device)

    @property
    def tokens(self) -> int:
        """Tokens held, over all segments."""
        return int(self.length.sum())

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and positions, room for tokens to come included."""
        return sum(t.untyped_storage().nbytes() for t in (self._k, self._v, self._at))

    @property
    def token_bytes(self) -> int:
        """Bytes of the key and the value of a token of one head."""
        return 2 * self.d * self._k.element_size()

    @property
    def device(self) -> torch.device:
        """Where keys and values lie."""
        return self._k.device

    @property
    def even(self) -> bool:
        """Whether all segments hold equally many."""
        return bool((self.length == self.length[:1]).all())

    # -- writing ------------------------------------------------------------------------------------------------------

    def append(
        self,
        k: Float[Tensor, "batch kv_heads new d"],
        v: Float[Tensor, "batch kv_heads new d"],
        positions: Int[Tensor, "batch new"],
        real: Bool[Tensor, "batch new"] | None = None,
    ) -> None:
        """Add tokens at the end of every segment; those that are not `real` (padding) are not stored.

        Raises:
            ShapeError: sizes that do not fit.
        """
        want = (self.batch, self.kv_heads, k.shape[2], self.d)
        if tuple(k.shape) != want or v.shape != k.shape or tuple(positions.shape) != (want[0], want[2]):
            raise ShapeError(f"Keys and values should be {want}, got {tuple(k.shape)} and {tuple(v.shape)}.")
        if real is None and k.shape[2] == 1:
            return self._append_one(k, v, positions)
        stays = torch.ones(self.batch, k.shape[2], dtype=torch.bool) if real is None else real.cpu()
        count = stays.sum(1).repeat_interleave(self.kv_heads)
        self._reserve(count)
        within = (stays.cumsum(1) - 1)[:, None].expand(-1, self.kv_heads, -1).reshape(len(count), -1)
        rows = self._start[:, None] + self.length[:, None] + within
        chosen = stays[:, None].expand(-1, self.kv_heads, -1).reshape(len(count), -1)
        rows = rows[chosen].to(self._k.device)
        for buffer, new in ((self._k, k), (self._v, v)):
            buffer[rows] = new.detach().reshape(*chosen.shape, self.d)[chosen.to(new.device)].to(buffer)
        at = positions[:, None].expand(-1, self.kv_heads, -1).reshape(*chosen.shape)
        self._at[rows] = at[chosen.to(at.device)].to(self._at)
        self.length = self.length + count

    def _append_one(self, k: Tensor, v: Tensor, positions: Tensor) -> None:
        """A token for every segment."""
        self._reserve(torch.ones_like(self.length))
        rows = (self._start + self.length).to(self.device)
        at = positions.repeat_interleave(self.kv_heads, 0)
        for buffer, new in ((self._k, k), (self._v, v), (self._at, at)):
            buffer.index_copy_(0, rows, new.detach().reshape(len(rows), *buffer.shape[1:]).to(buffer))
        self.length = self.length + 1

    def keep(self, mask: Bool[Tensor, "batch kv_heads most"]) -> None:
        """Of every segment keep the tokens marked.

        Few that go leave room behind their segment or before it, where tokens to come lie; where that were more than twice the room of a
        fresh store, memory is given back.

        Raises:
            ShapeError: a mask of another shape, or one that keeps what is not there.
        """
        want = (self.batch, self.kv_heads, self._most())
        if tuple(mask.shape) != want:
            raise ShapeError(f"The mask over held tokens should be {want}, is {tuple(mask.shape)}.")
        mask = mask.reshape(len(self.length), -1).cpu() & self.valid().reshape(len(self.length), -1)
        if mask.shape[1] and bool(mask.sum(1).eq(self.length).all()):
            return
        count = mask.sum(1)
        if len(self._k) <= int(count.sum()) + 2 * len(count) * _room(count):
            self._close(mask, count)
            return
        rows = (self._start[:, None] + torch.arange(mask.shape[1]))[mask]
        self._rebuild(count, rows, _room(count))

    def _close(self, mask: Bool[Tensor, "segments most"], count: Int[Tensor, " segments"]) -> None:
        """Close the gaps of every segment in place, by moving what lies before the last of them, or behind the first if that is less."""
        place = torch.arange(mask.shape[1])
        gone = ~mask & (place < self.length[:, None])
        first = gone.byte().argmax(1)
        last = mask.shape[1] - 1 - gone.flip(1).byte().argmax(1)
        gaps = self.length - count
        behind, before = self.length - first - gaps, last + 1 - gaps
        right = before < behind
        from_, to = torch.where(right, 0, first), torch.where(right, last + 1, self.length)
        moving = mask & (place >= from_[:, None]) & (place < torch.where(gaps > 0, to, 0)[:, None])
        segment, old = moving.nonzero().unbind(1)
        rank = moving.cumsum(1)[segment, old] - 1
        new = (self._start + from_ + torch.where(right, gaps, 0))[segment] + rank
        old, new = ((x).to(self.device) for x in (self._start[segment] + old, new))
        for buffer in (self._k, self._v, self._at):
            buffer[new] = buffer[old]
        self._start, self.length = self._start + torch.where(right, gaps, 0), count

    def set_values(self, values: Float[Tensor, "batch kv_heads most d"]) -> None:
        """Overwrite the values of all held tokens (merging); `values` as `padded` gives them."""
        rows, places = self._rows(), self.valid().reshape(-1)
        self._v[rows] = values.reshape(-1, self.d)[places.to(values.device)].to(self._v)

    def set_keys(self, keys: Float[Tensor, "batch kv_heads most d"]) -> None:
        """Overwrite the keys of all held tokens."""
        rows, places = self._rows(), self.valid().reshape(-1)
        self._k[rows] = keys.reshape(-1, self.d)[places.to(keys.device)].to(self._k)

    # -- reading ------------------------------------------------------------------------------------------------------

    def valid(self) -> Bool[Tensor, "batch kv_heads most"]:
        """Which places of the padded views hold a token."""
        most = self._most()
        return (torch.arange(most) < self.length[:, None]).view(self.batch, self.kv_heads, most)

    def padded(
        self,
    ) -> tuple[
        Float[Tensor, "batch kv_heads most d"],
        Float[Tensor, "batch kv_heads most d"],
        Int[Tensor, "batch kv_heads most"],
    ]:
        """Keys, values and positions with all segments as long as the longest; places beyond a segment hold zeros and -1."""
        if self.even and self._most():
            return self._views()
        valid = self.valid().reshape(-1)
        rows = self._rows()
        out = []
        for buffer, fill in ((self._k, 0.0), (self._v, 0.0), (self._at, -1)):
            full = torch.full((len(valid), *buffer.shape[1:]), fill, dtype=buffer.dtype, device=buffer.device)
            full[valid.to(buffer.device)] = buffer[rows]
            out.append(full.view(self.batch, self.kv_heads, -1, *buffer.shape[1:]))
        return out[0], out[1], out[2]

    def sequence(self, b: int) -> tuple[Float[Tensor, "kv_heads held d"], Float[Tensor, "kv_heads held d"]]:
        """Keys and values of a sequence whose heads hold equally many tokens; nothing is copied where their segments lie evenly.

        Raises:
            ShapeError: heads of different lengths.
        """
        own = slice(b * self.kv_heads, (b + 1) * self.kv_heads)
        start, length = self._start[own].tolist(), self.length[own].tolist()
        if min(length) != max(length):
            raise ShapeError(f"The heads of sequence {b} hold {min(length)} to {max(length)} tokens, not equally many.")
        apart = start[1] - start[0] if len(start) > 1 else 0
        if any(s != start[0] + i * apart for i, s in enumerate(start)):
            k, v = (torch.stack([x[s : s + length[0]] for s in start]) for x in (self._k, self._v))
            return k, v
        size, stride = (self.kv_heads, length[0], self.d), (apart * self.d, self.d, 1)
        k, v = (x.as_strided(size, stride, start[0] * self.d) for x in (self._k, self._v))
        return k, v

    def _views(self) -> tuple[Tensor, Tensor, Tensor]:
        """`padded` where no place is empty and segments lie evenly: nothing is copied."""
        start = self._start.tolist()
        apart = start[1] - start[0] if len(start) > 1 else 0
        if any(s != start[0] + i * apart for i, s in enumerate(start)):
            rows = self._rows()
            parts = [b[rows].view(self.batch, self.kv_heads, -1, *b.shape[1:]) for b in (self._k, self._v, self._at)]
            return parts[0], parts[1], parts[2]
        lead = (self.batch, self.kv_heads, self._most())
        k, v = (
            b.as_strided(
                (*lead, self.d), (apart * self.kv_heads * self.d, apart * self.d, self.d, 1), start[0] * self.d
            )
            for b in (self._k, self._v)
        )
        return k, v, self._at.as_strided(lead, (apart * self.kv_heads, apart, 1), start[0])

    def attend(
        self,
        q: Float[Tensor, "batch heads new d"],
        *,
        scale: float | None = None,
        chosen: Bool[Tensor, "batch kv_heads most"] | None = None,
    ) -> tuple[Float[Tensor, "batch heads new d"], Float[Tensor, "batch heads new"]]:
        """Attention of every query to all tokens of its segment (or those `chosen`), and its log-sum-exp; no gradients."""
        batch, heads, new, d = q.shape
        stacked = q.reshape(len(self.length), heads // self.kv_heads * new, d)
        parts = stacked.to(self._k.dtype).contiguous(), self._k[None], self._v[None]
        if chosen is None:
            out, lse = attend_ranges(*parts, self._start, self._start + self.length, scale=scale)
        else:
            out, lse = attend_tokens(*parts, *self._listed(chosen), scale=scale)
        return out.view(q.shape).to(q.dtype), lse.view(batch, heads, new)

    def _listed(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        mask = chosen.reshape(len(self.length), -1).cpu() & self.valid().reshape(len(self.length), -1)
        rows = (self._start[:, None] + torch.arange(mask.shape[1]))[mask]
        return F.pad(mask.sum(1).cumsum(0), (1, 0)).int(), rows.int()

    # -- as a whole ---------------------------------------------------------------------------------------------------

    def take(self, sequences: Int[Tensor, " some"]) -> None:
        """The sequences at these indices, in this order, repeated where an index is (beams)."""
        segments = (sequences.cpu()[:, None] * self.kv_heads + torch.arange(self.kv_heads)).reshape(-1)
        length, start = self.length[segments], self._start[segments]
        rows = torch.cat([torch.arange(s, s + n) for s, n in zip(start.tolist(), length.tolist(), strict=True)])
        self.batch = len(sequences)
        self._rebuild(length, rows, _room(length))

    def state(self) -> dict[str, Tensor]:
        """What `load` brings back."""
        rows = self._rows()
        return {"k": self._k[rows], "v": self._v[rows], "at": self._at[rows], "length": self.length.clone()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state`.

        Raises:
            ShapeError: of another store.
        """
        if len(state["length"]) % self.kv_heads or state["k"].shape[1:] != (self.d,):
            raise ShapeError(f"The state does not fit {self.kv_heads} heads of size {self.d}.")
        self.length, self.batch = state["length"].clone(), len(state["length"]) // self.kv_heads
        self._k, self._v, self._at = (state[n].clone() for n in ("k", "v", "at"))
        self._start = F.pad(self.length.cumsum(0), (1, 0))[:-1]

    # -- memory -------------------------------------------------------------------------------------------------------

    def _most(self) -> int:
        return int(self.length.max()) if len(self.length) else 0

    def _rows(self) -> Tensor:
        """Rows of the buffer that hold tokens, segment by segment."""
        before = F.pad(self.length.cumsum(0), (1, 0))[:-1]
        return torch.arange(self.tokens) + (self._start - before).repeat_interleave(self.length)

    def _reserve(self, count: Tensor) -> None:
        ends = torch.cat([self._start[1:], torch.tensor([len(self._k)])])
        if bool((self._start + self.length + count > ends).any()):
            room = _room(self.length + count)
            self._rebuild(self.length, self._rows(), room, count)

    def _rebuild(self, length: Tensor, rows: Tensor, room: int, extra: Tensor | None = None) -> None:
        """Fresh buffers for `rows` in segments of `length`, with room behind each."""
        size = length + room + (0 if extra is None else extra)
        start = F.pad(size.cumsum(0), (1, 0))[:-1]
        before = F.pad(length.cumsum(0), (1, 0))[:-1]
        to = torch.arange(int(length.sum())) + (start - before).repeat_interleave(length)
        for name in ("_k", "_v", "_at"):
            old = getattr(self, name)
            fresh = old.new_zeros(int(size.sum()), *old.shape[1:])
            fresh[to] = old[rows]
            setattr(self, name, fresh)
        self.length, self._start = length.clone(), start


def _room(length: Int[Tensor, " segments"]) -> int:
    """Room behind each segment for tokens to come."""
    return max(_ROOM, int(length.float().mean()) // 32) if len(length) else _ROOM
