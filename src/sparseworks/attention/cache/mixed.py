"""Mixed precision: important tokens in more bits than the others, none is dropped (ZipVL)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparseworks.attention.cache.form import KV_FORMS, Coded, KVForm
from sparseworks.attention.codes import decode, encode
from sparseworks.core.errors import BudgetError


class BitsCoded(Coded):
    """Keys (`k_...`) and values (`v_...`) in few bits, a scale and a zero point a token."""

    @classmethod
    def of(cls, k: Tensor, v: Tensor, bits: int) -> BitsCoded:
        """Code both."""
        parts = {f"{s}_{n}": t for s, x in (("k", k), ("v", v)) for n, t in encode(x, bits).items()}
        return cls(parts | {"bits": torch.tensor(bits, dtype=torch.uint8)}, len(k))

    def decoded(self) -> tuple[Float[Tensor, "tokens d"], Float[Tensor, "tokens d"]]:
        """Scales times codes."""
        bits = int(self.parts["bits"])
        k, v = ({n[2:]: t for n, t in self.parts.items() if n.startswith(s)} for s in ("k_", "v_"))
        return decode(k, bits), decode(v, bits)

    def keep(self, mask: Bool[Tensor, " tokens"]) -> BitsCoded:
        """Rows of the marked tokens."""
        mine = mask.to(self.parts["k_scale"].device)
        return BitsCoded({n: t if n == "bits" else t[mine] for n, t in self.parts.items()}, int(mask.sum()))


@KV_FORMS.register("mixed_bits")
@dataclass(frozen=True)
class MixedBits(KVForm):
    """Tokens that the score keeps in `high` bits, the others in `low` (He et al. 2024, arXiv 2410.08584)."""

    CODED: ClassVar[type[Coded]] = BitsCoded
    high: int = 4
    low: int = 2
    window: int = 32
    group: int = 32

    def __post_init__(self):
        if self.low > self.high or self.window < 0 or self.group < 1:
            raise BudgetError(f"Important tokens take as many bits as others at least; got {self}.")

    def encode(
        self, k: Float[Tensor, "tokens d"], v: Float[Tensor, "tokens d"], important: Bool[Tensor, " tokens"]
    ) -> list[tuple[Coded, Tensor]]:
        """Two pieces, where both have tokens."""
        important = important.to(k.device)
        return [
            (BitsCoded.of(k[mask], v[mask], bits), mask.nonzero()[:, 0].cpu())
            for mask, bits in ((important, self.high), (~important, self.low))
            if bool(mask.any())
        ]
