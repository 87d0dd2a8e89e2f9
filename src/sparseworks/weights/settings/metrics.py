"""What a stream of tasks is judged by: accuracy, forgetting, backward transfer, cumulative errors, FLOPs of training."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.core.errors import ShapeError
from sparseworks.weights.train.sparsifier import Sparsifier

Accuracies = Float[Tensor, "tasks tasks"]
"""a_ij: accuracy on task j after task i was learned; only j <= i is read."""


def final_accuracy(a: Accuracies) -> float:
    """(1 / T) sum_j a_Tj."""
    return float(_square(a)[-1].mean())


def forgetting(a: Accuracies) -> float:
    """1 / (T - 1) sum_{j < T} (max_{j <= i < T} a_ij - a_Tj) (Chaudhry et al., 2018, arXiv 1801.10112)."""
    lost = [float(_square(a)[j:-1, j].max() - a[-1, j]) for j in range(len(a) - 1)]
    return sum(lost) / max(len(lost), 1)


def backward_transfer(a: Accuracies) -> float:
    """1 / (T - 1) sum_{j < T} (a_Tj - a_jj) (Lopez-Paz and Ranzato, 2017, arXiv 1706.08840)."""
    gained = [float(_square(a)[-1, j] - a[j, j]) for j in range(len(a) - 1)]
    return sum(gained) / max(len(gained), 1)


def _square(a: Tensor) -> Tensor:
    if a.dim() != 2 or a.shape[0] != a.shape[1] or not a.shape[0]:
        raise ShapeError(f"Accuracies are tasks x tasks, got {tuple(a.shape)}.")
    return a


class TrainingFlops:
    """Multiplications and additions of a run's training: per token 2 (kept + kept + gradients) forward, to inputs, and to weights.

    flops = TrainingFlops(run, gradients=0.2); ... ; flops.total / flops.dense; flops.close()

    Passes that no gradient is taken of count once. The gradient of the first layer's inputs is counted with the others, as is
    usual; biases and sites outside the run are not.

    Attributes:
        total, dense: what the supports asked for so far, and what a dense run would have.
    """

    def __init__(self, run: Sparsifier, gradients: float | None = None):
        """Hook the model; `gradients` is the density of weight gradients that are computed, default: the kept entries'."""
        self.total = self.dense = 0.0
        self._run, self._gradients = run, gradients
        self._handles = [
            run.model.get_submodule(name).register_forward_hook(self._hook(name))
            for name in dict.fromkeys(p.site.module for p in run.sites)
        ]

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, module_name: str) -> Callable[..., None]:
        places = [p for p in self._run.sites if p.site.module == module_name]

        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            del args
            channels = output.shape[1] if places[0].site.kernel else output.shape[-1]
            tokens = prod(output.shape) // channels
            for place in places:
                size, kept = place.site.size, int(place.mask.sum())
                moved = kept if self._gradients is None else min(kept, round(self._gradients * size))
                learns = module.training and output.requires_grad
                self.total += 2.0 * tokens * (2 * kept + moved if learns else kept)
                self.dense += 2.0 * tokens * (3 * size if learns else size)

        return hook
