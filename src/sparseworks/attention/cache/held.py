"""Held: what one layer's cache holds when it is asked what may go, and KVScore, which answers."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sparseworks.core.registry import Registry

KV_SCORES: Registry[type[KVScore]] = Registry("KV score", "sparseworks.attention")

KVPhase = Literal["prefill", "decode", "between_turns"]


@dataclass(frozen=True)
class Held:
    """Tokens held by one layer, the newest included, and the queries that have just been answered.

    Attributes:
        k, v: keys (after rotary embedding) and values; heads with fewer tokens are padded, see `valid`.
        positions: of the tokens in the text, -1 where there is none.
        q: queries of this call, the last at position `now`.
        seen: real tokens of the text so far, those that went included.
        scale: of scores.
        module, hidden: the attention module and what its projections read, where the caller knows.
        memory: what a score keeps for this layer from call to call.
    """

    k: Float[Tensor, "batch kv_heads held d"]
    v: Float[Tensor, "batch kv_heads held d"]
    positions: Int[Tensor, "batch kv_heads held"]
    valid: Bool[Tensor, "batch kv_heads held"]
    q: Float[Tensor, "batch heads queries d"]
    now: Int[Tensor, " batch"]
    seen: Int[Tensor, " batch"]
    scale: float
    phase: KVPhase
    layer: int
    layers: int
    memory: MutableMapping[Any, Any]
    module: nn.Module | None = None
    hidden: Float[Tensor, "batch tokens width"] | None = None

    @property
    def group(self) -> int:
        """Query heads of a key head."""
        return self.q.shape[1] // self.k.shape[1]

    def attention(self, last: int | None = None) -> Float[Tensor, "batch kv_heads group queries held"]:
        """softmax of the last queries over what is held, causal, at least float32."""
        wide = torch.promote_types(self.q.dtype, torch.float32)
        q = self.q if last is None else self.q[:, :, -last:]
        n = q.shape[2]
        grouped = q.unflatten(1, (self.k.shape[1], self.group)).to(wide)
        scores = grouped @ self.k.to(wide).mT.unsqueeze(2) * self.scale
        at = self.now[:, None] - torch.arange(n - 1, -1, -1, device=q.device)
        seen = (self.positions[:, :, None] <= at[:, None, :, None]) & self.valid[:, :, None]
        return scores.masked_fill(~seen.unsqueeze(2), -torch.inf).softmax(-1).nan_to_num(0.0)


class KVScore:
    """Importance of every held token; register a frozen dataclass and name it in a method.

    Attributes:
        phases: when it can say anything.
        before: whether, in decoding, tokens go before the new query attends, not after.
    """

    registered_name: ClassVar[str] = ""
    before: ClassVar[bool] = False
    phases: ClassVar[frozenset[str]] = frozenset({"prefill", "decode", "between_turns"})

    def __call__(self, held: Held) -> Float[Tensor, "batch kv_heads held"]:
        """Higher stays."""
        raise NotImplementedError

    def kept(self, mask: Bool[Tensor, "batch kv_heads held"], held: Held) -> None:
        """Told which tokens stay, for scores that remember something per token."""


class Merge:
    """What becomes of the tokens that go (fate `merge`); register a frozen dataclass."""

    registered_name: ClassVar[str] = ""

    def __call__(self, held: Held, kept: Bool[Tensor, "batch kv_heads held"]) -> tuple[Tensor, Tensor]:
        """Keys and values with those that go taken up by those that stay."""
        raise NotImplementedError


MERGES: Registry[type[Merge]] = Registry("merge", "sparseworks.attention")
