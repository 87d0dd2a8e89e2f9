"""Reshape: the denominator that sparse attention lacks, and the output that it missed, both from the last dense step (Re-ttention)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.attention.heads import Heads
from sparseworks.attention.kept import Kept, Output
from sparseworks.attention.rest import RESTS, Rest


@RESTS.register("reshape")
@dataclass(frozen=True)
class Reshape(Rest):
    """rho_i o_i + R_i with rho_i = sum_kept e^s_ij / sum_all e^s_ij and R = o_dense - rho o_kept of the last dense step.

    The weights of a row sum to rho_i instead of 1, as those of the kept pairs did when all were computed. rho grows by `drift` a
    step since then, to at most 1 (Chen et al. 2025, arXiv 2505.22918). Before any dense step nothing is changed.

    Attributes:
        residual: whether R is added.
    """

    drift: float = 0.04
    residual: bool = True
    learns: ClassVar[bool] = True

    def __call__(self, heads: Heads, kept: Kept, found: Output) -> Output:
        """Output of the whole map, approximately; log-sum-exp lse - log rho."""
        known = heads.memory.get("reshape")
        if known is None or known[0].shape != found[1].shape:
            return found
        ratio, rest, step = known
        ratio = (ratio + self.drift * (heads.step - step)).clamp(max=1.0)
        out = found[0] * ratio.unsqueeze(-1).to(found[0].dtype)
        return (out + rest.to(out.dtype) if self.residual else out), found[1] - ratio.log()

    def cost(self, heads: Heads, kept: Kept) -> Float[Tensor, "batch heads"]:
        """None: ratio and residual are remembered. Dense calls attend to the kept pairs once more, which is counted there."""
        return kept.mask.new_zeros(heads.batch, heads.heads, dtype=torch.float64)

    def after_dense(self, heads: Heads, kept: Kept, found: Output, dense: Output) -> None:
        """Ratio, residual, and the step they are of."""
        ratio = torch.where(dense[1].isneginf(), 1.0, (found[1] - dense[1]).exp()).detach()
        rest = (dense[0] - found[0] * ratio.unsqueeze(-1).to(found[0].dtype)).detach()
        heads.memory["reshape"] = ratio, rest, heads.step
