"""How sparse a model's activations are by themselves: the share that is not zero after every nonlinearity, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparseworks.activations.trained.convert import Neurons
from sparseworks.core.errors import CalibrationError, ModelError
from sparseworks.stream.tree import call, first_tensor

NONLINEAR: tuple[type[nn.Module], ...] = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, Neurons)


@dataclass(frozen=True)
class Nonzeros:
    """Counts of one layer.

    Attributes:
        nonzero: entries other than zero.
        entries: all entries.
        tokens: rows that they lie in.
    """

    nonzero: int = 0
    entries: int = 0
    tokens: int = 0

    @property
    def share(self) -> float:
        """Nonzeros over entries."""
        return self.nonzero / max(self.entries, 1)

    @property
    def per_token(self) -> float:
        """Mean nonzeros of a row."""
        return self.nonzero / max(self.tokens, 1)

    def __add__(self, other: Nonzeros) -> Nonzeros:
        return Nonzeros(self.nonzero + other.nonzero, self.entries + other.entries, self.tokens + other.tokens)


@torch.no_grad()
def measure_nonzeros(
    model: nn.Module, data: Iterable[Any], kinds: tuple[type[nn.Module], ...] = NONLINEAR
) -> dict[str, Nonzeros]:
    """Module name -> nonzeros of its outputs over all batches; call it on training and on held-out data.

    Source: Li et al., 2022, arXiv 2210.06313 (lazy neurons: about half are not zero at the start, a few percent after training).

    Args:
        data: batches as the model takes them: a tensor, a tuple of arguments, or a mapping of them.
        kinds: the modules whose outputs count.

    Raises:
        ModelError: the model has no such modules.
        CalibrationError: no data.
    """
    modules = {name: m for name, m in model.named_modules() if isinstance(m, kinds)}
    if not modules:
        raise ModelError(f"{type(model).__name__} has none of the modules {', '.join(k.__name__ for k in kinds)}.")
    found = dict.fromkeys(modules, Nonzeros())

    def count(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            x = first_tensor(output)
            if isinstance(x, Tensor):
                found[name] += Nonzeros(int(x.count_nonzero()), x.numel(), x.numel() // max(x.shape[-1], 1))

        return hook

    handles = [m.register_forward_hook(count(name)) for name, m in modules.items()]
    training = model.training
    batches = 0
    try:
        model.eval()
        for batch in data:
            call(model, batch)
            batches += 1
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    if not batches:
        raise CalibrationError("Activations are counted on data, and there are no batches.")
    return found
