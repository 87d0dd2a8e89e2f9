"""Statistical top-k: a threshold from mean and deviation instead of a sort, and a soft cut that has a gradient everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from sparseworks.activations.trained.activation import ACTIVATIONS, Activation
from sparseworks.core.errors import BudgetError
from sparseworks.core.normal import normal_threshold


@ACTIVATIONS.register("statistical_topk")
@dataclass(frozen=True)
class StatisticalTopK(Activation):
    """max(x - theta, 0), theta = mean(x) + std(x) Phi^-1(1 - share): about the share of the largest, shrunk; no sort, differentiable.

    Source: You et al., 2025, arXiv 2506.06644 (Spark Transformer: 8 % of the neurons).
    """

    built_with: ClassVar[str] = "SparkFeedForward"

    share: float = 0.08

    def __post_init__(self):
        if not 0.0 < self.share < 1.0:
            raise BudgetError(f"The share kept lies in (0, 1), got {self.share}.")

    def __call__(self, x: Float[Tensor, "*lead n"]) -> Float[Tensor, "*lead n"]:
        """What exceeds the threshold of its token."""
        return (x - normal_threshold(x, self.share * x.shape[-1])).relu()


@ACTIVATIONS.register("statistical_keys")
@dataclass(frozen=True)
class StatisticalKeys(Activation):
    """The keys of a query whose logit is at least mean + std Phi^-1(1 - keep / keys), `keep` of them or so; the rest weigh nothing.

    Called on logits it gives those kept, zeros elsewhere; attention with it is `spark_attention`.

    Source: You et al., 2025, arXiv 2506.06644 (Spark Transformer: at most 256 keys).
    """

    built_with: ClassVar[str] = "spark_attention"

    keep: int = 256

    def __post_init__(self):
        if self.keep < 1:
            raise BudgetError(f"Every query keeps at least one key, got keep={self.keep}.")

    @classmethod
    def example(cls) -> StatisticalKeys:
        """2."""
        return cls(keep=2)

    def __call__(self, x: Float[Tensor, "*lead keys"]) -> Float[Tensor, "*lead keys"]:
        """The logits kept."""
        if self.keep >= x.shape[-1]:
            return x
        return x.where(x >= normal_threshold(x.detach(), self.keep).minimum(x.amax(dim=-1, keepdim=True)), 0.0)
