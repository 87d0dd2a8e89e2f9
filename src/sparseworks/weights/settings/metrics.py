"""What a stream of tasks is judged by: accuracy, forgetting, backward transfer, cumulative errors, FLOPs of training."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.core.errors import ShapeError
from sparseworks.core.site import Site
from sparseworks.core.stats import WeightGradient
from sparseworks.stream.sites import sites
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
    """Multiplications and additions of training: per token 2 (kept + kept + gradients) forward, to inputs, and to weights.

    flops = TrainingFlops(run, gradients=0.2); ... ; flops.total / flops.dense; flops.close()

    A step whose dense gradient chooses the next support costs 2 (kept + kept + size), as RigL counts (Evci et al., 2020,
    arXiv 1911.11134, appendix H). Passes that no gradient is taken of count once, those in evaluation mode do not count. The
    gradient of the first layer's inputs is counted with the others, as is usual; biases are not, nor what measures scores on data
    of its own. Sites that the run leaves alone are dense.

    Attributes:
        total, dense: what the supports asked for so far, and what a dense run would have.
    """

    def __init__(self, run: Sparsifier | nn.Module, gradients: float | None = None):
        """Hook the model of a run, or a model that is trained dense.

        Args:
            run: gives the supports as they are at every pass.
            gradients: density of the weight gradients that are computed: 1 for straight-through training; default: the kept entries'.
        """
        self.total = self.dense = 0.0
        self._run, self._gradients = run if isinstance(run, Sparsifier) else None, gradients
        self._places = {p.name: p for p in self._run.sites} if self._run else {}
        self._counted: dict[str, tuple[Tensor, int]] = {}
        model = run.model if isinstance(run, Sparsifier) else run
        listed = {s.name: s for s in [*sites(model), *(p.site for p in self._places.values())]}
        owners: dict[str, list[Site]] = {}
        for site in listed.values():
            if site.kind != "embedding":  # rows are looked up, not multiplied
                owners.setdefault(site.module, []).append(site)
        self._handles = [
            model.get_submodule(name).register_forward_hook(self._hook(own)) for name, own in owners.items()
        ]

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def _learns(self, site: Site) -> tuple[int, int]:
        """Entries kept, and entries whose gradient is computed."""
        if site.name not in self._places or self._run is None:
            return site.size, site.size
        kept, regime = self._kept(site.name), self._run.regime
        if WeightGradient in regime.needs and regime.due(self._run):
            return kept, site.size
        return kept, kept if self._gradients is None else round(self._gradients * site.size)

    def _kept(self, name: str) -> int:
        """Entries kept, counted once a support: on a GPU to count is to wait."""
        mask = self._places[name].mask
        if name not in self._counted or self._counted[name][0] is not mask:
            self._counted[name] = mask, int(mask.sum())
        return self._counted[name][1]

    def _hook(self, listed: list[Site]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            del args
            if not module.training:
                return
            tokens = output.numel() // (output.shape[1] if listed[0].kernel else output.shape[-1])
            for site in listed:
                kept, moved = self._learns(site)
                self.total += 2.0 * tokens * (2 * kept + moved if output.requires_grad else kept)
                self.dense += 2.0 * tokens * site.size * (3 if output.requires_grad else 1)

        return hook
