"""Feature flow regularisation: a penalty on the length and the bending of the way that features take through the layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.core.errors import ModelError
from sparseworks.core.regime import REGIMES, Training
from sparseworks.stream.blocks import blocks
from sparseworks.stream.tree import first_tensor
from sparseworks.weights.train.units import CutGroups


@REGIMES.register("feature_flow")
@dataclass(frozen=True)
class FeatureFlow(CutGroups):
    """loss + length * sum_l |u_{l+1} - u_l| + bending * sum_l |u_{l+1} - 2 u_l + u_{l-1}|, u_l the output of layer l; then a cut.

    |.| is the mean absolute value over samples and entries; terms whose shapes differ (where a stage changes) are left out.
    The penalty is added to the gradient, not to the loss that the training sees.

    Source: Wu et al., 2021, arXiv 2106.02914. Departure: the paper's norm and coefficients could not be checked.

    Attributes:
        length, bending: the coefficients k_1 and k_2.
        layers: names of the modules whose outputs are the features, in order; default: the repeated blocks, or the children
            of the model where nothing repeats.
    """

    length: float = 1.0
    bending: float = 1.0
    layers: tuple[str, ...] = ()

    def attach(self, run: Training) -> None:
        """Watch the layers."""
        super().attach(run)
        repeated = tuple(b.name for b in blocks(run.model) if b.name)
        names = self.layers or repeated or tuple(name for name, _ in run.model.named_children())
        flow = Flow(self.length, self.bending)
        try:
            handles = [run.model.get_submodule(n).register_forward_hook(flow.hook) for n in names]
        except AttributeError as error:
            raise ModelError(f"The model has no such layer ({error}).") from None
        handles.append(run.model.register_forward_pre_hook(flow.restart))
        for handle in handles:
            run.at_end(handle.remove)


class Flow:
    """The features seen in one pass, and the penalty on them."""

    def __init__(self, length: float, bending: float):
        self._length, self._bending = length, bending
        self._seen: list[Tensor] = []

    def restart(self, module: nn.Module, args: Any) -> None:
        """Another pass begins."""
        del module, args
        self._seen = []

    def hook(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Add the terms that end in this layer to the gradient."""
        del args
        feature = first_tensor(output)
        if feature is None or not (module.training and torch.is_grad_enabled()):
            return None
        penalty = feature_flow([*self._seen[-2:], feature], self._length, self._bending)
        self._seen.append(feature)
        if penalty is None or not isinstance(output, Tensor):
            return None
        return _Penalised.apply(output, penalty)


def feature_flow(features: list[Float[Tensor, "..."]], length: float, bending: float) -> Float[Tensor, ""] | None:
    """length * |u_l - u_{l-1}| + bending * |u_l - 2 u_{l-1} + u_{l-2}| of the last of `features`, means of absolute values.

    None where there is nothing before it of its shape.
    """
    last, *before = features[::-1]
    if not before or before[0].shape != last.shape:
        return None
    total = length * (last - before[0]).abs().mean()
    if len(before) > 1 and before[1].shape == last.shape:
        total = total + bending * (last - 2 * before[0] + before[1]).abs().mean()
    return total


class _Penalised(torch.autograd.Function):
    """The identity, which sends the gradient 1 to a penalty."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, penalty: Tensor) -> Tensor:
        ctx.penalty = penalty.shape, penalty.dtype, penalty.device
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        shape, dtype, device = ctx.penalty
        return grads[0], torch.ones(shape, dtype=dtype, device=device)
