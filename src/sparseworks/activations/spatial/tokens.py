"""Image tokens unlike the class token leave the sequence; the elbow of the sorted similarities says how many stay, image by image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from sparseworks.activations.trained.activation import ACTIVATIONS, Activation
from sparseworks.core.budget import Budget, Elbow
from sparseworks.core.errors import BudgetError
from sparseworks.core.select import top


@ACTIVATIONS.register("elbow_tokens")
@dataclass(frozen=True)
class ElbowTokens(Activation):
    """Token j stays if cos(x_j, x_cls) is among the largest, as many as the budget says from the sorted similarities of its image.

    The class token is the first and always stays. Called on a sequence it zeroes the others; `compact` shortens it. The sequence is
    what leaves the last block of an encoder: earlier, class tokens of small transformers are unlike the tokens that matter.

    Source: Yu et al., 2024, arXiv 2409.01162, its first pruning: the long tail of similarities to the class token.
    """

    built_with: ClassVar[str] = "ElbowTokens.mask and compact"
    free: ClassVar[bool] = True

    budget: Budget = Elbow()  # noqa: RUF009 - frozen

    def mask(self, x: Float[Tensor, "batch tokens c"]) -> Bool[Tensor, "batch tokens"]:
        """True where a token stays.

        Raises:
            BudgetError: a budget that does not look at scores.
        """
        if not self.budget.needs_scores:
            raise BudgetError(
                f"How many tokens stay follows from their similarities; {self.budget} does not look at them."
            )
        similar = F.cosine_similarity(x[:, 1:], x[:, :1], dim=-1)
        kept = top(similar, self.budget.counts(similar))
        return torch.cat([torch.ones_like(kept[:, :1]), kept], dim=1)

    def __call__(self, x: Float[Tensor, "batch tokens c"]) -> Float[Tensor, "batch tokens c"]:
        """x with zeros for tokens that leave."""
        return x * self.mask(x.detach())[:, :, None]


def compact(
    x: Float[Tensor, "batch tokens c"], mask: Bool[Tensor, "batch tokens"]
) -> tuple[Float[Tensor, "batch most c"], Bool[Tensor, "batch most"]]:
    """The kept tokens of each sequence in their order, padded to the longest; and which of them are no padding."""
    most = int(mask.sum(dim=1).max())
    order = (~mask).int().sort(dim=1, stable=True).indices[:, :most]
    return x.gather(1, order[:, :, None].expand(-1, -1, x.shape[-1])), mask.gather(1, order)
