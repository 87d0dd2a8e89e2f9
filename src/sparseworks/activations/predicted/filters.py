"""Filters of a convolution that a linear head on the layer's input predicts to answer weakly to this image are not computed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from sparseworks.activations.trained.activation import ACTIVATIONS, Activation, TrainedMethod
from sparseworks.core.budget import Budget, Mass
from sparseworks.core.errors import BudgetError, ModelError, RecipeError
from sparseworks.core.select import top

M = TypeVar("M", bound=nn.Module)


@ACTIVATIONS.register("filter_mass")
@dataclass(frozen=True)
class FilterMass(Activation):
    """Filter f stays if it is among those of largest max |y_f| over the map that hold a share r of the sum over filters, image by image.

    r = 1 removes filters that are zero everywhere. Called on maps it zeroes the others: what `PredictedFilters` learn to foresee.

    Source: Elkerdawy et al., 2021, arXiv 2110.08232.
    """

    built_with: ClassVar[str] = "predict_filters(model, method)"

    budget: Budget = Mass(0.9)  # noqa: RUF009 - frozen

    @classmethod
    def example(cls) -> Self:
        """Half of the mass: few filters are enough to see zeros."""
        return cls(Mass(0.5))

    def mask(self, y: Float[Tensor, "batch filters h w"]) -> Bool[Tensor, "batch filters"]:
        """True where a filter stays.

        Raises:
            BudgetError: a budget that does not look at responses.
        """
        if not self.budget.needs_scores:
            raise BudgetError(
                f"How many filters stay follows from their responses; {self.budget} does not look at them."
            )
        response = y.abs().amax(dim=(2, 3))
        return top(response, self.budget.counts(response))

    def __call__(self, x: Float[Tensor, "batch filters h w"]) -> Float[Tensor, "batch filters h w"]:
        """x with zeros for weak filters."""
        return x * self.mask(x.detach())[:, :, None, None]


class PredictedFilters(nn.Module):
    """y_f = layer(x)_f where (W softmax(||x||) + b)_f > 0, else 0; ||x|| is the L2 norm over the map, channel by channel.

    The head learns from the layer's own responses by binary cross-entropy on a detached input (decoupled from the task), and a single
    image in evaluation reads only the kept filters, and of those only channels of x that are not zero.

    Attributes:
        layer: convolution, and the norm by channel and the elementwise function behind it.
        masking: masks are applied; off while heads warm up.
        learning: heads learn; off once they are frozen.
        joint: the gradient of the task reaches the head as well, straight through the mask: the paper's ablation.
        kept: masks of the last pass.
        loss: cross-entropy of the last pass in training.
        accuracy: share of mask entries of the last pass that were right; only where the layer ran whole.
        share: multiplications of the last pass, kept filters x channels that are not zero, over all.

    Source: Elkerdawy et al., 2021, arXiv 2110.08232.
    """

    kept: Bool[Tensor, "batch filters"]
    loss: Tensor
    accuracy: float
    share: float

    def __init__(self, layer: nn.Sequential, target: FilterMass, *, joint: bool = False):
        super().__init__()
        self.layer, self.target, self.joint = layer, target, joint
        self.masking, self.learning = False, True
        self.head = nn.Sequential(  # softmax lies near 1/channels: standardised, a linear head learns in few steps
            nn.BatchNorm1d(self.conv.in_channels, affine=False),
            nn.Linear(self.conv.in_channels, self.conv.out_channels),
        ).to(self.conv.weight)

    @property
    def conv(self) -> nn.Conv2d:
        """The convolution."""
        found = self.layer[0]
        assert isinstance(found, nn.Conv2d)
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Without the loss, whose graph cannot be copied."""
        return {name: value for name, value in self.__dict__.items() if name != "loss"}

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch filters h2 w2"]:
        """The layer with zeros for filters that the head leaves out."""
        if self.training and not self.learning:
            self.head.eval()
        logits = self.head(x.detach().flatten(2).norm(dim=2).softmax(dim=1))
        self.kept = (logits > 0).detach()
        live = x.detach().ne(0).any(dim=3).any(dim=2)
        work = self.kept.sum(1) if self.masking else torch.full_like(self.kept.sum(1), self.kept.shape[1])
        self.share = float((work * live.sum(1)).double().mean()) / max(self.kept.shape[1] * live.shape[1], 1)
        if self.masking and not self.training and len(x) == 1:
            return self._gathered(x, live[0], self.kept[0])
        y = self.layer(x)
        wanted = self.target.mask(y.detach())
        self.accuracy = float((wanted == self.kept).double().mean())
        if self.training and self.learning:
            self.loss = F.binary_cross_entropy_with_logits(logits, wanted.to(logits))
        if not self.masking:
            return y
        gate = self.kept.to(y)
        if self.joint:
            gate = gate + logits.sigmoid() - logits.sigmoid().detach()
        return y * gate[:, :, None, None]

    def _gathered(self, x: Tensor, live: Tensor, kept: Tensor) -> Tensor:
        conv, at = self.conv, kept.nonzero().flatten()
        at = at if len(at) else at.new_zeros(1)  # of no filter one is computed, for the shape of its map
        bias = None if conv.bias is None else conv.bias[at]
        weight = conv.weight[at][:, live]
        if weight.shape[1]:
            y = F.conv2d(x[:, live], weight, bias, conv.stride, conv.padding, conv.dilation)
        else:  # nothing came in: the shape is that of one filter over one channel
            y = F.conv2d(x[:, :1], conv.weight[at][:, :1] * 0, bias, conv.stride, conv.padding, conv.dilation)
        for module in list(self.layer)[1:]:
            y = _norm(module, y, at) if isinstance(module, nn.BatchNorm2d) else module(y)
        return y.new_zeros(1, len(kept), *y.shape[2:]).index_copy(1, at, y * kept[at].to(y)[:, None, None])


def _norm(norm: nn.BatchNorm2d, y: Tensor, at: Tensor) -> Tensor:
    vectors = [v if v is None else v[at] for v in (norm.running_mean, norm.running_var, norm.weight, norm.bias)]
    return F.batch_norm(y, *vectors, training=norm.running_mean is None, eps=norm.eps)


def predict_filters(model: M, method: str | TrainedMethod = "ftwt", *, joint: bool = False) -> M:
    """Give every convolution of the model's sequences a head that predicts its filters, in place; those with one input channel stay.

    Train with `task + filter_loss(model)`: first with heads that warm up, then `filter_phase(model, masking=True)`, at the end with
    `learning=False`.

    Args:
        joint: heads also get the gradient of the task.

    Returns: the model.

    Raises:
        RecipeError: a method without filters.
        ModelError: no `nn.Sequential` holds a convolution followed by ReLU, with or without a batch norm between.
    """
    activation = TrainedMethod.of(method).activation
    if not isinstance(activation, FilterMass):
        raise RecipeError(f"Filters are predicted by a method of `filter_mass`, not by {activation}.")
    found = 0
    for parent in [m for m in model.modules() if isinstance(m, nn.Sequential)]:
        for first, length in _runs(parent):
            layer = nn.Sequential(*list(parent)[first : first + length])
            parent[first] = PredictedFilters(layer, activation, joint=joint).train(parent.training)
            for after in range(first + 1, first + length):  # later modules keep their names
                parent[after] = nn.Identity()
            found += 1
    if not found:
        raise ModelError(f"{type(model).__name__} has no sequence of convolution (and batch norm) and ReLU.")
    return model


def _runs(parent: nn.Sequential) -> Iterator[tuple[int, int]]:
    children = list(parent)
    for i, conv in enumerate(children):
        if not isinstance(conv, nn.Conv2d) or conv.groups > 1 or conv.in_channels < 2 or conv.padding_mode != "zeros":
            continue
        normed = i + 1 < len(children) and isinstance(children[i + 1], nn.BatchNorm2d)
        last = i + 1 + normed
        if last < len(children) and isinstance(children[last], nn.ReLU | nn.ReLU6):
            yield i, last - i + 1


def predicted(model: nn.Module) -> list[PredictedFilters]:
    """Layers of the model whose filters are predicted.

    Raises:
        ModelError: none.
    """
    found = [m for m in model.modules() if isinstance(m, PredictedFilters)]
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no layer with predicted filters; make them with `predict_filters`."
        )
    return found


def filter_phase(model: nn.Module, *, masking: bool = True, learning: bool = True) -> None:
    """Apply masks or not, and let heads learn or freeze them, in all layers."""
    for layer in predicted(model):
        layer.masking, layer.learning = masking, learning
        layer.head.requires_grad_(learning)


def filter_loss(model: nn.Module) -> Tensor:
    """Sum over layers of the cross-entropy between predicted and true masks of the last pass; zero once heads are frozen."""
    losses = [layer.loss for layer in predicted(model) if layer.learning]
    return torch.stack(losses).sum() if losses else torch.zeros(())
