"""A pooled side branch beside sparse layers: a little dense capacity for what the pattern takes away."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.core.errors import ModelError, PatternError
from sparseworks.core.support import Support


class PooledLinear(nn.Linear):
    """y = W x + b + V P x: P sums every `pool` consecutive inputs, V (out x in / pool) is trained.

    Attributes:
        branch: V.
        pool: inputs summed.
    """

    branch: nn.Parameter
    pool: int

    def forward(self, input: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """The layer and its branch."""
        pooled = input.unflatten(-1, (-1, self.pool)).sum(dim=-1)
        return F.linear(input, self.weight, self.bias) + F.linear(pooled, self.branch)


@torch.no_grad()
def add_branches(model: nn.Module, supports: Mapping[str, Support], pool: int = 64) -> list[str]:
    """Give every `nn.Linear` with a support a branch that begins at the mean of the dropped weights of each `pool` inputs.

    Call it before the optimiser is built, with the supports that training begins with (`prune` on a copy). Parameters keep
    their names and identity; each layer gains `branch`.

    Source: Huang et al., 2024, arXiv 2407.20584 (SLoRB; 64 in their code, 16 in their smallest models). P is not trained.

    Returns:
        Names of the layers.

    Raises:
        PatternError: `pool` does not divide the inputs of a layer.
        ModelError: nothing to give a branch to.
    """
    found = [(name, m) for name, m in model.named_modules() if type(m) is nn.Linear and name in supports]
    if not found:
        raise ModelError("No nn.Linear of the model has a support; give `prune(copy, method).supports`.")
    for name, layer in found:
        if layer.in_features % pool:
            raise PatternError(f"The {layer.in_features} inputs of {name!r} cannot be pooled by {pool}.")
    for name, layer in found:
        layer.__class__ = PooledLinear
        assert isinstance(layer, PooledLinear)
        layer.pool = pool
        dropped = layer.weight * ~supports[name].mask().to(layer.weight.device)
        layer.branch = nn.Parameter(dropped.unflatten(-1, (-1, pool)).mean(dim=-1))
    return [name for name, _ in found]
