"""KVForm: how tokens that left the window are stored; and Coded, what one form makes of some tokens of one head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparseworks.core.registry import Registry
from sparseworks.exec.attention import merge

KV_FORMS: Registry[type[KVForm]] = Registry("KV form", "sparseworks.attention")


class Coded:
    """Tokens of one head in another form than plain numbers.

    Attributes:
        parts: every tensor it holds.
        tokens: how many.
    """

    def __init__(self, parts: Mapping[str, Tensor], tokens: int):
        self.parts, self.tokens = dict(parts), tokens

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(t.untyped_storage().nbytes() for t in self.parts.values())

    def decoded(self) -> tuple[Float[Tensor, "tokens d"], Float[Tensor, "tokens d"]]:
        """Keys and values as plain numbers, float32."""
        raise NotImplementedError

    def keep(self, mask: Bool[Tensor, " tokens"]) -> Coded:
        """The marked tokens, in the same form."""
        raise NotImplementedError

    def scores(self, q: Float[Tensor, "queries d"]) -> Float[Tensor, "queries tokens"]:
        """q . k_j."""
        return q @ self.decoded()[0].mT

    def mixed(self, weights: Float[Tensor, "queries tokens"]) -> Float[Tensor, "queries d"]:
        """sum_j w_j v_j."""
        return weights @ self.decoded()[1]

    def attend(
        self, q: Float[Tensor, "queries d"], scale: float
    ) -> tuple[Float[Tensor, "queries d"], Float[Tensor, " queries"]]:
        """softmax(scale q k') v and its log-sum-exp, through the form."""
        logits = self.scores(q) * scale
        lse = logits.logsumexp(-1)
        return self.mixed((logits - lse.unsqueeze(-1)).exp()), lse


class KVForm:
    """Register a frozen dataclass and name it in a method of the cache.

    Attributes:
        window: the last tokens stay as they are.
        group: tokens are recoded so many at a time.
    """

    registered_name: ClassVar[str] = ""
    CODED: ClassVar[type[Coded]] = Coded
    window: int = 32
    group: int = 32

    def encode(
        self, k: Float[Tensor, "tokens d"], v: Float[Tensor, "tokens d"], important: Bool[Tensor, " tokens"]
    ) -> list[tuple[Coded, Tensor]]:
        """Pieces and which of the tokens each holds; `important` are those that the score of the method keeps."""
        raise NotImplementedError

    def attend(
        self, pieces: Sequence[Sequence[Coded]], q: Float[Tensor, "segments queries d"], scale: float
    ) -> tuple[Float[Tensor, "segments queries d"], Float[Tensor, "segments queries"]]:
        """Queries of every segment over all its pieces, and the log-sum-exp; 0 and -inf for a segment of none."""
        parts = []
        for i in range(max(map(len, pieces), default=0)):
            out, lse = torch.zeros_like(q), q.new_full(q.shape[:2], -torch.inf)
            for segment, some in enumerate(pieces):
                if i < len(some):
                    out[segment], lse[segment] = some[i].attend(q[segment], scale)
            parts.append((out, lse))
        return merge(parts) if parts else (torch.zeros_like(q), q.new_full(q.shape[:2], -torch.inf))

    def joined(self, first: Coded, second: Coded) -> Coded | None:
        """Two pieces as one, tokens in this order, without loss; None: they stay two."""
        return None

    def restored(self, parts: Mapping[str, Tensor], tokens: int) -> Coded:
        """A piece from its parts."""
        return self.CODED(parts, tokens)


def everything(k: Tensor) -> Tensor:
    """Indices of all tokens."""
    return torch.arange(len(k))
