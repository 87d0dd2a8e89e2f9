"""Bitmap: the large entries of every key and value vector, one bit for each place (S10, Mustafar)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparseworks.attention.cache.form import KV_FORMS, Coded, KVForm, everything
from sparseworks.core.errors import BudgetError
from sparseworks.core.select import top
from sparseworks.core.support import Support
from sparseworks.exec.attention.checks import STEP
from sparseworks.exec.format import FORMATS, Packed
from sparseworks.exec.kernel import KERNELS
from sparseworks.exec.kernels.cpu import CheckedKernel
from sparseworks.exec.native import native

_KERNELS = {torch.float32: "bitmask-fp32", torch.bfloat16: "bitmask-bf16"}
_FEW = 16
"""Queries of a segment, up to which a pass of its own pays."""


class BitmapCoded(Coded):
    """K and V' packed as `bitmask`: products with a query and with weights read the packed form.

    Parts of K (tokens x d) begin with `k_`, those of V' (d x tokens) with `v_`.
    """

    _inspected = False

    @classmethod
    def of(cls, k: Tensor, v: Tensor, key_mask: Tensor, value_mask: Tensor) -> BitmapCoded:
        """Pack the marked entries."""
        pack, dtype = FORMATS.get("bitmask").pack, k.dtype
        held = {
            "k": pack(k, Support.from_mask(key_mask.cpu()), dtype=dtype),
            "v": pack(v.mT.contiguous(), Support.from_mask(value_mask.mT.contiguous().cpu()), dtype=dtype),
        }
        parts = {f"{side}_{n}": t for side, p in held.items() for n, t in p.parts.items()}
        return cls(parts, len(k))

    @property
    def pointers(self) -> list[int]:
        """Addresses of the parts of K and of V', inspected when they are first followed, and how many tokens there are."""
        if not self._inspected:
            for side in "kv":
                packed = self.packed(side)
                kernel = KERNELS.get(_KERNELS[packed.dtype])
                assert isinstance(kernel, CheckedKernel)
                kernel.arguments(packed)
            self._inspected = True
        return [self.parts[f"{s}_{n}"].data_ptr() for s in "kv" for n in ("bits", "values", "ptr")] + [self.tokens]

    def packed(self, side: str) -> Packed:
        """One of the two."""
        parts = {n[2:]: t for n, t in self.parts.items() if n.startswith(side)}
        d = len(self.parts["v_ptr"]) - 1
        shape = (self.tokens, d) if side == "k" else (d, self.tokens)
        return Packed("bitmask", shape, parts["values"].dtype, parts)

    def decoded(self) -> tuple[Float[Tensor, "tokens d"], Float[Tensor, "tokens d"]]:
        """Dense, zeros where entries were cut."""
        (k, _), (v, _) = (FORMATS.get("bitmask").unpack(self.packed(s)) for s in "kv")
        return k.float(), v.mT.float()

    def keep(self, mask: Bool[Tensor, " tokens"]) -> BitmapCoded:
        """The rows of the marked tokens."""
        (k, at), (v, to) = (FORMATS.get("bitmask").unpack(self.packed(s)) for s in "kv")
        return self.of(k[mask], v.mT[mask], at.mask()[mask], to.mask().mT[mask])

    def scores(self, q: Float[Tensor, "queries d"]) -> Float[Tensor, "queries tokens"]:
        """By the kernel of packed weights."""
        return product(q, self.packed("k"))

    def mixed(self, weights: Float[Tensor, "queries tokens"]) -> Float[Tensor, "queries d"]:
        """By the kernel of packed weights."""
        return product(weights, self.packed("v"))


def product(x: Float[Tensor, "rows in"], packed: Packed) -> Float[Tensor, "rows out"]:
    """x W' for a packed W, by its native kernel where there is one."""
    kernel = KERNELS.get(_KERNELS.get(packed.dtype, "bitmask-fp32"))
    x = x.detach().float().cpu().contiguous()
    if native() is None or packed.dtype not in _KERNELS or not x.numel():
        return kernel.reference(x, packed, None)
    return kernel(x, packed, None)


@KV_FORMS.register("bitmap")
@dataclass(frozen=True)
class Bitmap(KVForm):
    """Of every key and value vector the ceil((1 - sparsity) d) largest |entries| (Joo et al. 2025, arXiv 2505.22913).

    Bytes: (1 - sparsity) values and 1/8 byte an entry, plus a pointer a token (K) and a channel and group (V), see `exec.formats.bitmask`.
    """

    CODED: ClassVar[type[Coded]] = BitmapCoded
    sparsity: float = 0.5
    window: int = 32
    group: int = 32

    def __post_init__(self):
        if not 0 <= self.sparsity < 1 or self.window < 0 or self.group < 1:
            raise BudgetError(f"Sparsity is in [0, 1), window at least 0 and group at least 1; got {self}.")

    def encode(
        self, k: Float[Tensor, "tokens d"], v: Float[Tensor, "tokens d"], important: Bool[Tensor, " tokens"]
    ) -> list[tuple[Coded, Tensor]]:
        """All tokens alike."""
        return [(BitmapCoded.of(k, v, largest(k, self.sparsity), largest(v, self.sparsity)), everything(k))]

    def attend(
        self, pieces: Sequence[Sequence[Coded]], q: Float[Tensor, "segments queries d"], scale: float
    ) -> tuple[Float[Tensor, "segments queries d"], Float[Tensor, "segments queries"]]:
        """In one pass over keys and values, each entry spread once for four queries; many queries by the kernels of packed weights."""
        every = [piece for some in pieces for piece in some]
        types = {piece.parts["k_values"].dtype for piece in every}
        fits = q.is_cpu and not q.shape[-1] % STEP and q.shape[1] <= _FEW and q.numel() and len(types) == 1
        if native() is None or not fits or not types <= _KERNELS.keys():
            return super().attend(pieces, q, scale)
        q = q.detach().float().contiguous()
        table = torch.tensor([piece.pointers for piece in every if isinstance(piece, BitmapCoded)], dtype=torch.long)
        first = torch.tensor([0, *map(len, pieces)], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        out, lse = torch.empty_like(q), q.new_empty(q.shape[:2])
        addresses = [t.data_ptr() for t in (q, table, first, out, lse)]
        half = types == {torch.bfloat16}
        native().bitmaps(*addresses, *q.shape, half, scale, torch.get_num_threads())  # type: ignore[union-attr]
        return out, lse

    def joined(self, first: Coded, second: Coded) -> Coded | None:
        """Packed anew; the supports are those of both."""
        assert isinstance(first, BitmapCoded) and isinstance(second, BitmapCoded)
        sides = []
        for side, dim in (("k", 0), ("v", 1)):
            (x, at), (y, to) = (FORMATS.get("bitmask").unpack(c.packed(side)) for c in (first, second))
            sides.append(
                (torch.cat([x, y], dim).to(first.parts["k_values"].dtype), torch.cat([at.mask(), to.mask()], dim))
            )
        (k, key_mask), (v, value_mask) = sides
        return BitmapCoded.of(k, v.mT, key_mask, value_mask.mT)


def largest(x: Float[Tensor, "tokens d"], sparsity: float) -> Bool[Tensor, "tokens d"]:
    """The ceil((1 - sparsity) d) largest |entries| of every row."""
    return top(x.detach().abs().float(), ceil(round((1 - sparsity) * x.shape[-1], 9)))


def padded_bytes(tokens: int, d: int, kept: int, dtype: torch.dtype = torch.float32) -> int:
    """Bytes of `tokens` keys and values of which `kept` entries stay: what `BitmapCoded.nbytes` says."""
    pointers, words = 4 * (tokens + 1) + 4 * (d + 1), (-(-d // 32) * tokens + -(-tokens // 32) * d) * 4
    return 2 * (kept * tokens + 16) * dtype.itemsize + pointers + words
