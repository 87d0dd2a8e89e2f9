"""Put activations into a model for training, and turn the trained layers into ones that skip what the activation zeroes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sparseworks.activations.trained.activation import Activation, TrainedMethod
from sparseworks.core.errors import ModelError, RecipeError
from sparseworks.exec.skipping import SkippingLinear
from sparseworks.stream.sites import output_head

_NONLINEAR = (nn.ReLU, nn.GELU, nn.SiLU)
M = TypeVar("M", bound=nn.Module)


class SparseInputs(nn.Module):
    """y = W activation(x) + b: the training form; `linear` is trained as any other.

    Attributes:
        linear: the dense layer.
        activation: what zeroes its inputs.
    """

    def __init__(self, linear: nn.Linear, activation: Activation):
        super().__init__()
        self.linear, self.activation = linear, activation

    def forward(self, x: Float[Tensor, "*lead in"]) -> Float[Tensor, "*lead out"]:
        """The product with the sparse input."""
        return self.linear(self.activation(x))

    def export(self) -> SkippedInputs:
        """The inference form."""
        return SkippedInputs(SkippingLinear.from_linear(self.linear, threshold=0.0), self.activation)


class SkippedInputs(nn.Module):
    """y = W activation(x) + b: the inference form; of few tokens the weights of zeroed inputs are not read."""

    def __init__(self, skipping: SkippingLinear, activation: Activation):
        super().__init__()
        self.skipping, self.activation = skipping, activation

    def forward(self, x: Float[Tensor, "*lead in"]) -> Float[Tensor, "*lead out"]:
        """The product with the sparse input."""
        return self.skipping(self.activation(x))


class Neurons(nn.Module):
    """An activation in place of a nonlinearity."""

    def __init__(self, activation: Activation):
        super().__init__()
        self.activation = activation

    def forward(self, x: Float[Tensor, "*lead n"]) -> Float[Tensor, "*lead n"]:
        """activation(x)."""
        return self.activation(x)

    def extra_repr(self) -> str:
        """The activation."""
        return str(self.activation)


class SquaredReluGlu(nn.Module):
    """y = V ((U x) * ReLU(G x)^2), every product over a sparse input: the feed-forward layer of Q-Sparse.

    ReLU^2 leaves zeros of its own, which raises the sparsity of the last product.

    Source: Wang et al., 2024, arXiv 2407.10969.
    """

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.up, self.gate = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Float[Tensor, "*lead width"]) -> Float[Tensor, "*lead width"]:
        """The gated layer; `train_sparse` makes its inputs sparse as it does those of any linear layer."""
        return self.down(self.up(x) * F.relu(self.gate(x)).square())


def train_sparse(model: M, method: str | TrainedMethod, *, head: bool = False) -> M:
    """Put the activation of `method` into `model`, in place: before its linear layers, or instead of its nonlinearities.

    Args:
        head: also before the output layer, which is left dense otherwise.

    Returns: the model.

    Raises:
        RecipeError: a method that takes modules of its own; the message names them.
        ModelError: there is nothing of the kind in the model.
    """
    method = TrainedMethod.of(method)
    activation = method.activation
    if activation.built_with:
        raise RecipeError(f"{method.name!r} is no layer put into a model: use {activation.built_with}.")
    if activation.nonlinear:
        kinds, swapped = "ReLU, GELU or SiLU modules", _swap(model, _is_nonlinear, lambda m: Neurons(activation))
    else:
        last = None if head else _output(model)
        wanted = lambda m: type(m) is nn.Linear and m is not last  # noqa: E731
        kinds = "linear layers before the output layer"
        swapped = _swap(model, wanted, lambda m: SparseInputs(m, activation))  # pyright: ignore[reportArgumentType]
    if not swapped:
        raise ModelError(f"{method.name!r} needs {kinds}, and {type(model).__name__} has none.")
    return model


def export(model: M) -> M:
    """Every layer with a training form becomes its inference form, in place; the outputs stay the same.

    Raises:
        ModelError: no layer has one.
    """
    if not _swap(model, lambda m: callable(getattr(m, "export", None)), lambda m: m.export()):  # type: ignore[union-attr]
        raise ModelError(f"{type(model).__name__} has no layers in training form; make them with `train_sparse`.")
    return model.eval()


def _is_nonlinear(module: nn.Module) -> bool:
    return isinstance(module, _NONLINEAR)


def _output(model: nn.Module) -> nn.Module | None:
    """The head where the model names one, else its last linear layer."""
    linears = [m for m in model.modules() if type(m) is nn.Linear]
    return output_head(model) or (linears[-1] if linears else None)


def _swap(model: nn.Module, wanted: Callable[[nn.Module], bool], make: Callable[[nn.Module], nn.Module]) -> int:
    """Replace what is wanted below `model`, without looking inside what was put in."""
    found = 0
    for name, child in list(model.named_children()):
        if wanted(child):
            setattr(model, name, make(child))
            found += 1
        else:
            found += _swap(child, wanted, make)
    return found
