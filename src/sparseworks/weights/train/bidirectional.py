"""Two N:M masks of one weight: one for the forward product, one along the other axis for the gradient of the inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.core.errors import ModelError, PatternError
from sparseworks.core.pattern import Pattern
from sparseworks.core.patterns import nm
from sparseworks.core.regime import REGIMES, Trained, Training
from sparseworks.core.select import select_mask
from sparseworks.weights.train.straight import Straight

BACKWARD = "backward_weight"


@REGIMES.register("bidirectional")
@dataclass(frozen=True)
class Bidirectional(Straight):
    """y = x (M_f W)^T and dx = dy (M_b W), M_f along the inputs, M_b along the outputs; dW = dy^T x of all entries.

    The update is SR-STE's, with M_f. Layers (`nn.Linear`, `nn.Conv1d`, `nn.Conv2d`) are replaced by twins that share
    everything with them, until the run is finished; `torch.compile` takes them. Inputs of a layer, not kernel positions, are
    grouped in convolutions.

    Source: Fang, Sun, Zhou and Wang, 2023, arXiv 2309.13015 (BDWP).
    """

    decay: float = 2e-4

    def attach(self, run: Training) -> None:
        """Put the twins in place."""
        other = crosswise(run.method.pattern)
        for site in run.sites:
            other.check(site.shape)
            _check(run, site)
        for site in run.sites:
            _twin(run, site)

    def change(self, run: Training) -> None:
        """Both masks of the weights as they are."""
        other = crosswise(run.method.pattern)
        for name, scores in run.scores().items():
            next(s for s in run.sites if s.name == name).state["backward"] = select_mask(scores, other)
        super().change(run)

    def project(self, run: Training, site: Trained) -> Float[Tensor, "rows cols"]:
        """M_f W for the forward product; M_b W goes to the twin."""
        buffer = getattr(run.model.get_submodule(site.site.module), BACKWARD)
        site.site.put(buffer, site.weight() * site.state["backward"])
        return super().project(run, site)

    def macs(self, density: float) -> float:
        """Two of the three products skip."""
        return (2.0 * density + 1.0) / 3.0


def crosswise(pattern: Pattern) -> Pattern:
    """N:M along the outputs, of N:M along the inputs.

    Raises:
        PatternError: not N:M along the inputs.
    """
    n, m = pattern.quota, pattern.group.cols
    if not isinstance(n, int) or m is None or pattern != nm(n, m):
        raise PatternError(f"Two masks of one weight need a pattern N:M such as 2:8, got {pattern}.")
    return nm(n, m, axis="out")


class _Product(torch.autograd.Function):
    """The layer's product, whose input gradient uses another weight."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, backward: Tensor, bias: Tensor | None, conv: tuple | None
    ) -> Tensor:
        ctx.save_for_backward(x, weight, backward)
        ctx.conv, ctx.bias = conv, bias is not None
        if conv is None:
            return F.linear(x, weight, bias)
        return torch.convolution(x, weight, bias, *conv)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, other = ctx.saved_tensors
        dy = gradients[0]
        if ctx.conv is None:
            rows = dy.reshape(-1, dy.shape[-1])
            dw = (rows.T @ x.reshape(-1, x.shape[-1]).to(dy.dtype)).to(weight.dtype)
            return dy @ other.to(dy.dtype), dw, None, rows.sum(0).to(weight.dtype) if ctx.bias else None, None
        back, sizes = torch.ops.aten.convolution_backward, [weight.shape[0]] if ctx.bias else None
        typed = x.to(dy.dtype)
        dx, _, _ = back(dy, typed, other.to(dy.dtype), sizes, *ctx.conv, [True, False, False])
        _, dw, db = back(dy, typed, weight.to(dy.dtype), sizes, *ctx.conv, [False, True, ctx.bias])
        return dx, dw.to(weight.dtype), None, db.to(weight.dtype) if ctx.bias else None, None


class _Linear(nn.Linear):
    backward_weight: Tensor

    def forward(self, input: Tensor) -> Tensor:
        return _Product.apply(input, self.weight, self.backward_weight, self.bias, None)


def _conv(layer: _Conv1d | _Conv2d, x: Tensor) -> Tensor:
    zeros = [0] * len(layer.kernel_size)
    geometry = (layer.stride, layer.padding, layer.dilation, False, zeros, layer.groups)
    return _Product.apply(x, layer.weight, layer.backward_weight, layer.bias, geometry)


class _Conv1d(nn.Conv1d):
    backward_weight: Tensor

    def forward(self, input: Tensor) -> Tensor:
        return _conv(self, input)


class _Conv2d(nn.Conv2d):
    backward_weight: Tensor

    def forward(self, input: Tensor) -> Tensor:
        return _conv(self, input)


_TWINS: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: _Linear, nn.Conv1d: _Conv1d, nn.Conv2d: _Conv2d}


def _check(run: Training, site: Trained) -> None:
    layer = run.model.get_submodule(site.site.module)
    plain = getattr(layer, "padding_mode", "zeros") == "zeros" and not isinstance(getattr(layer, "padding", 0), str)
    if type(layer) not in {*_TWINS, *_TWINS.values()} or not plain or site.site.size != site.parameter.numel():
        raise ModelError(
            f"Site {site.name!r} lies in a {type(layer).__name__}; a second mask for the backward pass is known for whole "
            f"Linear, Conv1d and Conv2d layers with zero padding. Leave it out with `skip`."
        )


def _twin(run: Training, site: Trained) -> None:
    layer = run.model.get_submodule(site.site.module)
    if not site.site.module:
        raise ModelError("The model itself is a layer, which cannot be replaced; put it into an nn.Sequential.")
    parent, _, child = site.site.module.rpartition(".")
    twin = object.__new__(_TWINS[type(layer)])
    twin.__dict__ = layer.__dict__  # parameters, buffers, hooks: all shared
    layer.register_buffer(BACKWARD, site.parameter.detach().clone(), persistent=False)
    run.model.get_submodule(parent)._modules[child] = twin

    def undo() -> None:
        run.model.get_submodule(parent)._modules[child] = layer
        delattr(layer, BACKWARD)

    run.at_end(undo)
