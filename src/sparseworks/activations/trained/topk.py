"""Top-k activations: the largest entries of each token, or of each few consecutive ones; what gradient the others get is a field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparseworks.activations.trained.activation import ACTIVATIONS, Activation
from sparseworks.core.errors import BudgetError, ShapeError
from sparseworks.core.select import top

Backward = Literal["straight", "kept"]
Scale = Literal["unit", "same", "none"]


def straight_through(x: Float[Tensor, "*s"], sparse: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """`sparse`, with the gradient of x (Bengio et al., 2013, arXiv 1308.3432)."""
    return x + (sparse - x).detach()


def rescaled(sparse: Float[Tensor, "*lead n"], x: Float[Tensor, "*lead n"], scale: Scale) -> Float[Tensor, "*lead n"]:
    """x' sqrt(n) / ||x'|| ("unit": mean square 1), x' ||x|| / ||x'|| ("same": the length of x), or x' ("none")."""
    if scale == "none":
        return sparse
    length = sparse.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    to = x.norm(dim=-1, keepdim=True) if scale == "same" else x.shape[-1] ** 0.5
    return sparse * (to / length)


@dataclass(frozen=True)
class _Straight(Activation):
    backward: Backward = "straight"
    scale: Scale = "unit"
    bits: int | None = None

    def __post_init__(self):
        if self.backward not in ("straight", "kept") or self.scale not in ("unit", "same", "none"):
            raise BudgetError(
                f"backward is 'straight' or 'kept', scale 'unit', 'same' or 'none'; got {self.backward!r}, {self.scale!r}."
            )
        if self.bits is not None and not 2 <= self.bits <= 16:
            raise BudgetError(f"Inputs are quantised to 2 to 16 bits, or to none; got {self.bits}.")

    def mask(self, x: Float[Tensor, "*lead n"]) -> Bool[Tensor, "*lead n"]:
        """True where x stays."""
        raise NotImplementedError

    def __call__(self, x: Float[Tensor, "*lead n"]) -> Float[Tensor, "*lead n"]:
        """The kept entries of x, quantised if asked for, then rescaled."""
        x = x if self.bits is None else straight_through(x, quantised(x, self.bits))
        sparse = x * self.mask(x.detach())
        return rescaled(straight_through(x, sparse) if self.backward == "straight" else sparse, x, self.scale)


@ACTIVATIONS.register("topk_inputs")
@dataclass(frozen=True)
class TopKInputs(_Straight):
    """X' = X * TopK(|X|) per token, K = round(share n), divided by its L2 norm; d X' / d X ignores the mask.

    `scale` "unit" divides by the root mean square, which is the norm but for the constant sqrt(n): outputs keep their size under
    usual initialisations. `bits` rounds X to a grid of its largest entry first. `backward` "kept" lets the gradient of kept inputs alone pass.

    Source: Wang et al., 2024, arXiv 2407.10969 (Q-Sparse).
    """

    share: float = 0.6

    def __post_init__(self):
        super().__post_init__()
        if not 0.0 < self.share <= 1.0:
            raise BudgetError(f"The share of inputs kept lies in (0, 1], got {self.share}.")

    def kept(self, n: int) -> int:
        """K of n inputs, at least one."""
        return max(1, round(self.share * n))

    def mask(self, x: Float[Tensor, "*lead n"]) -> Bool[Tensor, "*lead n"]:
        """True at the K largest |x| of each token, ties to the lower index."""
        return top(x.abs(), self.kept(x.shape[-1]))


@ACTIVATIONS.register("block_topk_inputs")
@dataclass(frozen=True)
class BlockTopKInputs(_Straight):
    """As `topk_inputs`, but the `keep` largest of every `of` consecutive inputs, so that a batch shares a form that hardware knows.

    Source: Wang et al., 2024, arXiv 2407.10969 (Block Q-Sparse).
    """

    keep: int = 16
    of: int = 32

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.keep <= self.of:
            raise BudgetError(f"Of every {self.of} inputs 1 to {self.of} can be kept, not {self.keep}.")

    @classmethod
    def example(cls) -> BlockTopKInputs:
        """2 of 4."""
        return cls(keep=2, of=4)

    def mask(self, x: Float[Tensor, "*lead n"]) -> Bool[Tensor, "*lead n"]:
        """True at the largest of each block.

        Raises:
            ShapeError: n is no multiple of `of`.
        """
        if x.shape[-1] % self.of:
            raise ShapeError(f"{x.shape[-1]} inputs do not divide into blocks of {self.of}.")
        blocks = x.abs().unflatten(-1, (-1, self.of))
        return top(blocks, self.keep).flatten(-2)


@ACTIVATIONS.register("topk_neurons")
@dataclass(frozen=True)
class TopKNeurons(Activation):
    """The `keep` largest ReLU(x) of each token; the gradient passes through what is kept.

    Source: Li et al., 2022, arXiv 2210.06313 (Top-k transformer: 128 of 3,072).
    """

    nonlinear: ClassVar[bool] = True

    keep: int = 128

    def __post_init__(self):
        if self.keep < 1:
            raise BudgetError(f"At least one neuron is kept, got {self.keep}.")

    @classmethod
    def example(cls) -> TopKNeurons:
        """3."""
        return cls(keep=3)

    def __call__(self, x: Float[Tensor, "*lead n"]) -> Float[Tensor, "*lead n"]:
        """ReLU(x) * TopK."""
        active = x.relu()
        return active * top(active.detach(), min(self.keep, x.shape[-1]))


def quantised(x: Float[Tensor, "*lead n"], bits: int = 8) -> Float[Tensor, "*lead n"]:
    """round(x q / max|x|) max|x| / q per token, q = 2^(bits - 1) - 1."""
    q = 2 ** (bits - 1) - 1
    step = x.abs().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny) / q
    return (x / step).round() * step
