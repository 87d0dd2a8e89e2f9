"""A growing cache of keys and values, and the attention of the next token over all of it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import DtypeError, ShapeError
from sparseworks.exec.attention.checks import scale_of
from sparseworks.exec.native import native

_STEP = 16
_TYPES = (torch.float32, torch.bfloat16)


class KeyValueCache:
    """Keys and values of several sequences of one length, on the CPU, in buffers with room for more tokens.

    Appending to `torch.cat` copies the cache at every token; here it is copied once in many, into buffers a quarter larger.
    What `keys` and `values` have shown is never overwritten: after `crop`, the next token goes into fresh buffers if somebody may
    still hold the tokens that were cropped.

    Attributes:
        batch, kv_heads, d: sizes.
        tokens: how many are held.
        dtype: of what is stored, float32 or bfloat16.

    Raises:
        ShapeError: sizes below 1.
        DtypeError: another type.
    """

    def __init__(self, batch: int, kv_heads: int, d: int, *, tokens: int = 0, dtype: torch.dtype = torch.float32):
        if min(batch, kv_heads, d) < 1 or tokens < 0:
            raise ShapeError(
                f"A cache needs sequences, heads and a head size of at least 1; got {batch}, {kv_heads}, {d}, tokens={tokens}."
            )
        if dtype not in _TYPES:
            raise DtypeError(f"A cache stores float32 or bfloat16, not {dtype}.")
        self.batch, self.kv_heads, self.d, self.dtype = batch, kv_heads, d, dtype
        self.tokens = self._shown = 0
        self._width = d + -d % _STEP
        self._keys, self._values = self._allocate(tokens), self._allocate(tokens)

    def append(self, k: Float[Tensor, "batch kv_heads tokens d"], v: Float[Tensor, "batch kv_heads tokens d"]) -> None:
        """Add tokens at the end, without gradients.

        Raises:
            ShapeError: sizes that do not fit the cache, or k and v unlike.
            DtypeError: not floating.
        """
        fits = k.dim() == 4 and (*k.shape[:2], k.shape[3]) == (self.batch, self.kv_heads, self.d)
        if k.shape != v.shape or not fits:
            raise ShapeError(
                f"Keys and values should be ({self.batch}, {self.kv_heads}, tokens, {self.d}), got {tuple(k.shape)} and "
                f"{tuple(v.shape)}."
            )
        if not (k.is_floating_point() and v.is_floating_point()):
            raise DtypeError(f"Keys and values are floating, got {k.dtype} and {v.dtype}.")
        count = k.shape[2]
        self._reserve(self.tokens + count)
        place = slice(self.tokens, self.tokens + count)
        self._keys[:, :, place, : self.d] = k.detach()
        self._values[:, :, place, : self.d] = v.detach()
        self.tokens += count

    def keys(self) -> Float[Tensor, "batch kv_heads tokens d"]:
        """The keys in order, a view."""
        return self._view(self._keys)

    def values(self) -> Float[Tensor, "batch kv_heads tokens d"]:
        """The values in order, a view."""
        return self._view(self._values)

    def crop(self, count: int) -> None:
        """Forget the last `count` tokens.

        Raises:
            ShapeError: more than are held, or fewer than none.
        """
        if not 0 <= count <= self.tokens:
            raise ShapeError(f"Of {self.tokens} tokens {count} cannot be forgotten.")
        self.tokens -= count

    def attend_next(
        self,
        q: Float[Tensor, "batch heads d"],
        k: Float[Tensor, "batch kv_heads d"],
        v: Float[Tensor, "batch kv_heads d"],
        *,
        angles: tuple[Float[Tensor, "#batch d"], Float[Tensor, "#batch d"]] | None = None,
        mask: Float[Tensor, "batch tokens+1"] | None = None,
        scale: float | None = None,
    ) -> Float[Tensor, "batch heads d"]:
        """Append the next token of every sequence and attend to all: softmax(scale r(q) [keys; r(k)]' + mask) [values; v].

        r(x) = x cos + (-x_2, x_1) sin for x = (x_1, x_2) in halves, in one pass with the attention over the cache, in which query
        heads that share keys read them once. No gradients, float32. Where all scores are -inf the result is 0.
        (Su et al. 2021, arXiv 2104.09864; Ainslie et al. 2023, arXiv 2305.13245)

        Args:
            angles: cos and sin of the token's position, for all sequences or one row each; None: nothing is rotated.
            mask: what is added to the scores, -inf for tokens that are not to be seen.
            scale: default 1 / sqrt(d).

        Raises:
            ShapeError: sizes that do not fit the cache; an odd head size where keys are rotated.
            DtypeError: something not float32 on the CPU.
        """
        self._check(q, k, v, angles, mask)
        factor, module = scale_of(scale, self.d), native()
        if module is None:
            return self._reference(q, k, v, angles, mask, factor)
        out, read = (
            q.new_empty(q.shape),
            [None if t is None else t.contiguous() for t in (q, k, v, *(angles or (None, None)), mask)],
        )
        rows = 1 if angles is None else len(angles[0])
        self.attend_at([0 if t is None else t.data_ptr() for t in read], out.data_ptr(), q.shape[1], rows, factor)
        return out

    def attend_at(self, read: Sequence[int], out: int, heads: int, angles: int, scale: float) -> None:
        """`attend_next` on addresses of contiguous float32 memory, whose sizes nobody checks; for layers that own that memory.

        Args:
            read: q, k, v, cos, sin, mask; 0 for what is not given.
            angles: rows of cos and sin.
        """
        self._reserve(self.tokens + 1)
        sizes = self.batch, heads, self.kv_heads, self.tokens, self._keys.shape[2], self.d, self._width, angles
        addresses = [*read, self._keys.data_ptr(), self._values.data_ptr(), out]
        half = self.dtype is torch.bfloat16
        cast("Any", native()).next_token(addresses, *sizes, half, scale, torch.get_num_threads())
        self.tokens += 1

    def _reference(self, q, k, v, angles, mask, scale: float) -> Tensor:
        if angles is not None:
            q, k = (_rotated(t, *angles) for t in (q, k))
        self._reserve(self.tokens + 1)
        at = self.tokens
        self.tokens += 1
        self._keys[:, :, at, : self.d], self._values[:, :, at, : self.d] = k, v
        group = q.shape[1] // self.kv_heads
        held = (t[:, :, : at + 1, : self.d].float().repeat_interleave(group, 1) for t in (self._keys, self._values))
        keys, values = held
        scores = (q[:, :, None] @ keys.mT)[:, :, 0] * scale + (0.0 if mask is None else mask[:, None])
        nothing = scores.isneginf().all(-1, keepdim=True)
        weights = scores.masked_fill(nothing, 0.0).softmax(-1).masked_fill(nothing, 0.0)
        return (weights[:, :, None] @ values)[:, :, 0]

    def _check(self, q: Tensor, k: Tensor, v: Tensor, angles, mask: Tensor | None) -> None:
        small = self.batch, self.kv_heads, self.d
        if (
            q.dim() != 3
            or (q.shape[0], q.shape[2]) != (self.batch, self.d)
            or not q.shape[1]
            or q.shape[1] % self.kv_heads
        ):
            raise ShapeError(
                f"Queries are ({self.batch}, a multiple of {self.kv_heads} heads, {self.d}), got {tuple(q.shape)}."
            )
        if k.shape != small or v.shape != small:
            raise ShapeError(f"The next key and value are {small}, got {tuple(k.shape)} and {tuple(v.shape)}.")
        for angle in angles or ():
            if self.d % 2 or angle.shape not in ((1, self.d), (self.batch, self.d)) or angle.shape != angles[0].shape:
                raise ShapeError(
                    f"Cosines and sines are (1 or {self.batch}, {self.d}) with an even head size, got {tuple(angle.shape)}."
                )
        if mask is not None and mask.shape != (self.batch, self.tokens + 1):
            raise ShapeError(f"The mask is ({self.batch}, {self.tokens + 1}), got {tuple(mask.shape)}.")
        for t in (q, k, v, *(angles or ()), mask):
            if t is not None and not (t.dtype is torch.float32 and t.is_cpu):
                raise DtypeError(f"The next token is attended in float32 on the CPU, got {t.dtype} on {t.device}.")

    def _view(self, buffer: Tensor) -> Tensor:
        self._shown = max(self._shown, self.tokens)
        return buffer[:, :, : self.tokens, : self.d]

    def _reserve(self, tokens: int) -> None:
        """Room for as many; fresh buffers where there is none, or where somebody may hold what would be overwritten."""
        if tokens <= self._keys.shape[2] and (tokens == self.tokens or self.tokens >= self._shown):
            return
        fresh = [self._allocate(tokens + max(tokens // 4, 1)) for _ in range(2)]
        for to, old in zip(fresh, (self._keys, self._values), strict=True):
            to[:, :, : self.tokens] = old[:, :, : self.tokens]
        self._keys, self._values = fresh
        self._shown = 0

    def _allocate(self, tokens: int) -> Tensor:
        room = tokens + -tokens % 64
        with torch.inference_mode(False):  # an inference tensor could not be written to outside of that mode
            return torch.zeros(self.batch, self.kv_heads, room, self._width, dtype=self.dtype, device="cpu")

    def __copy__(self) -> KeyValueCache:
        return copy.deepcopy(self)  # two caches must not write to one buffer


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]
