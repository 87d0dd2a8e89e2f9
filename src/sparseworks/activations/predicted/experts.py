"""Dense feed-forward layers as experts of which a token runs as many as its predicted norms say: sparsify, split, route."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sparseworks.activations.trained.activation import ACTIVATIONS, Activation, TrainedMethod
from sparseworks.core.budget import Budget, Mass
from sparseworks.core.errors import CalibrationError, ModelError, RecipeError
from sparseworks.core.select import top
from sparseworks.core.site import Coupling, Member
from sparseworks.solve.clusters import balanced_kmeans
from sparseworks.stream import couplings, slice_units
from sparseworks.stream.modes import evaluating
from sparseworks.stream.sites import sites as find_sites
from sparseworks.stream.tree import call

M = TypeVar("M", bound=nn.Module)


def square_hoyer(a: Float[Tensor, "*lead n"]) -> Float[Tensor, ""]:
    """mean over tokens of (sum |a|)^2 / sum a^2, from 1 (one neuron) to n (all alike); tokens without activity count 0.

    Source: Yang et al., 2020, arXiv 1908.09979 (DeepHoyer); here as Szatkowski et al. use it.
    """
    return (a.abs().sum(-1).square() / a.square().sum(-1).clamp(min=1e-12)).mean()


class HoyerPenalty:
    """mean over feed-forward layers of `square_hoyer` of what their last matrix received in the last pass; `remove` ends it.

    Fine-tune with `task + weight * penalty()`. Layers with another function than ReLU are to be given it first.

    Raises:
        ModelError: the model has no feed-forward layers.
    """

    def __init__(self, model: nn.Module):
        self._held: dict[str, Tensor] = {}
        found = {path: _last(model.get_submodule(path), c) for path, c in feed_forwards(model).items()}
        self._handles = [reader.register_forward_pre_hook(self._hold(path)) for path, reader in found.items()]

    def __call__(self) -> Float[Tensor, ""]:
        """The penalty of the last pass, between 1 and the number of neurons."""
        return torch.stack([square_hoyer(a) for a in self._held.values()]).mean()

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _hold(self, name: str) -> Any:
        def hold(module: nn.Module, args: tuple) -> None:
            self._held[name] = args[0]

        return hold


@ACTIVATIONS.register("dynamic_experts")
@dataclass(frozen=True)
class DynamicExperts(Activation):
    """Expert e runs for a token if the budget keeps its predicted output norm among those of all experts; at least one does.

    A mass tau: the fewest experts that hold the share tau of the sum, so that at most 1 - tau of the norms are left out.
    `Peak(1 - tau)`: those of at least 1 - tau of the largest. A count: as many for every token.

    Attributes:
        neurons: of an expert.
        hidden: width of the router.

    Source: Szatkowski et al., 2023, arXiv 2310.04361 (DSTI, D2DMoE).
    """

    built_with: ClassVar[str] = "split_experts(model, method, data)"

    budget: Budget = Mass(0.9)  # noqa: RUF009 - frozen
    neurons: int = 16
    hidden: int = 128

    def mask(self, norms: Float[Tensor, "*lead experts"]) -> Bool[Tensor, "*lead experts"]:
        """True where an expert runs."""
        n = norms.shape[-1]
        keep = self.budget.counts(norms) if self.budget.needs_scores else max(1, self.budget.total({"experts": n}))
        return top(norms, keep) if isinstance(keep, int) else top(norms, keep.clamp(min=1))

    def __call__(self, x: Float[Tensor, "*lead experts"]) -> Float[Tensor, "*lead experts"]:
        """x with zeros for experts that do not run, |x| being their norms."""
        return x * self.mask(x.detach().abs())


class Router(nn.Module):
    """softplus(W_2 relu(W_1 x)) times the mean norm: predicted output norm of every expert."""

    scale: Tensor

    def __init__(self, width: int, experts: int, hidden: int):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, experts))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens experts"]:
        """Predicted norms."""
        return F.softplus(self.body(x)) * self.scale

    def fit(
        self, x: Float[Tensor, "tokens width"], norms: Float[Tensor, "tokens experts"], *, classes: int = 0,
        steps: int = 500, lr: float = 1e-3, batch: int = 128, seed: int = 0,
    ) -> Self:  # fmt: skip
        """Adam with a cosine on mean((prediction - norm)^2), norms over their mean.

        Args:
            classes: instead learn by cross-entropy whether an expert is among this many largest: the router of MoEfication (Zhang et
                al., 2021, arXiv 2110.01786), as a baseline.
        """
        self.scale.fill_(norms.mean().clamp(min=1e-12))
        wanted = top(norms, classes).to(x) if classes else norms / self.scale
        g = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam(self.parameters(), lr=lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        with torch.enable_grad():
            for _ in range(steps):
                at = torch.randint(len(x), (batch,), generator=g)
                optimizer.zero_grad()
                said = self.body(x[at])
                loss = F.binary_cross_entropy_with_logits if classes else _squares
                loss(said, wanted[at]).backward()
                optimizer.step()
                schedule.step()
        return self


def _squares(said: Tensor, wanted: Tensor) -> Tensor:
    return F.mse_loss(F.softplus(said), wanted)


class ExpertFeedForward(nn.Module):
    """y = b + sum over experts e that run of f_e(x): a feed-forward layer by neurons, exact when all run.

    Attributes:
        experts: smaller copies of the layer, without the output's bias.
        rule: which run, from the router's norms.
        width: of the output.
    run: which did for each token of the last pass; their mean is the share of the layer's multiplications.
    """

    run: Bool[Tensor, "tokens experts"]

    def __init__(
        self, experts: Sequence[nn.Module], bias: Tensor | None, router: Router, rule: DynamicExperts, width: int
    ):
        super().__init__()
        self.experts, self.router, self.rule, self.width = nn.ModuleList(experts), router, rule, width
        self.bias = None if bias is None else nn.Parameter(bias)

    @property
    def share(self) -> float:
        """Mean share of the layer that ran in the last pass."""
        return float(self.run.double().mean())

    def forward(self, x: Float[Tensor, "*lead width"]) -> Float[Tensor, "*lead out"]:
        """The experts' sum."""
        flat = x.reshape(-1, x.shape[-1])
        self.run = self.rule.mask(self.router(flat).detach())
        y = x.new_zeros(len(flat), self.width)
        for run, expert in zip(self.run.T, self.experts, strict=True):
            at = run.nonzero().flatten()
            y = y.index_add(0, at, expert(flat[at]).to(y))
        y = y if self.bias is None else y + self.bias
        return y.unflatten(0, x.shape[:-1]) if x.dim() != 2 else y

    @torch.no_grad()
    def norms(self, x: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens experts"]:
        """||f_e(x)|| of every expert: what the router learns."""
        return torch.stack([expert(x).norm(dim=-1) for expert in self.experts], dim=-1)


def feed_forwards(model: nn.Module) -> dict[str, Coupling]:
    """Modules that are one feed-forward layer and nothing else, with the coupling of their neurons named from there.

    Raises:
        ModelError: none.
    """
    named, found = {s.name: s for s in find_sites(model)}, {}
    for c in couplings(model):
        modules = [named[m.site].module for m in c.members]
        path = modules[-1].rpartition(".")[0]
        inside = {s.module for s in named.values() if s.module.startswith(f"{path}.")}
        if c.kind == "neuron" and path and inside == set(modules):
            found[path] = replace(c, members=_below(path, c.members), norms=_below(path, c.norms))
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no modules that are one feed-forward layer of two or three matrices."
        )
    return found


def _below(path: str, members: tuple[Member, ...]) -> tuple[Member, ...]:
    return tuple(replace(m, site=m.site.removeprefix(f"{path}.")) for m in members)


def split_layer(layer: nn.Module, coupling: Coupling, labels: Int[Tensor, " neurons"]) -> list[nn.Module]:
    """One smaller copy of a feed-forward layer for each label, without the output's bias: their sum is the layer without it."""
    made = []
    for e in range(int(labels.max()) + 1):
        expert = copy.deepcopy(layer)
        _last(expert, coupling).register_parameter("bias", None)
        slice_units(expert, [coupling], {coupling.name: labels == e})
        made.append(expert)
    return made


def _last(layer: nn.Module, coupling: Coupling) -> nn.Module:
    return layer.get_submodule(coupling.members[-1].site)


@torch.no_grad()
def split_experts(
    model: M, method: str | TrainedMethod, data: Sequence[Any], *, classes: int = 0, steps: int = 500, seed: int = 0
) -> M:
    """Split every feed-forward layer by balanced k-means of the rows that feed its neurons, and fit routers to the dense model; in place.

    Args:
        data: batches on which inputs of the layers are seen; the model itself is not trained.
        classes, steps, seed: as `Router.fit`.

    Returns: the model; set `layer.rule` of its `ExpertFeedForward` layers for another budget, without training.

    Raises:
        RecipeError: a method without experts.
        ModelError: no feed-forward layers.
        CalibrationError: no data.
        BudgetError: neurons do not fall into experts of the method's size.
    """
    rule = TrainedMethod.of(method).activation
    if not isinstance(rule, DynamicExperts):
        raise RecipeError(f"Experts are split by a method of `dynamic_experts`, not by {rule}.")
    if not len(data):
        raise CalibrationError("Routers learn from inputs of the dense model: give calibration data.")
    layers = feed_forwards(model)
    for path, x in _inputs(model, list(layers), data).items():
        layer, coupling = model.get_submodule(path), layers[path]
        makers = {s.name: s.read(layer).float().cpu() for s in find_sites(layer)}
        rows = F.normalize(makers[coupling.members[0].site], dim=1)
        labels = balanced_kmeans(rows, max(1, coupling.units // rule.neurons))
        bias = getattr(_last(layer, coupling), "bias", None)
        bias = None if bias is None else bias.detach().clone()
        torch.manual_seed(seed)
        router = Router(x.shape[1], int(labels.max()) + 1, rule.hidden).to(x)
        width = makers[coupling.members[-1].site].shape[0]
        made = ExpertFeedForward(split_layer(layer, coupling, labels), bias, router, rule, width)
        router.fit(x, made.norms(x), classes=classes, steps=steps, seed=seed)
        made.train(layer.training)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, made)
    return model


def _inputs(model: nn.Module, paths: Sequence[str], data: Sequence[Any]) -> dict[str, Tensor]:
    seen: dict[str, list[Tensor]] = {p: [] for p in paths}
    hold = lambda p: lambda _m, args: seen[p].append(args[0].detach().flatten(0, -2))  # noqa: E731
    handles = [model.get_submodule(p).register_forward_pre_hook(hold(p)) for p in paths]
    try:
        with evaluating(model):
            for batch in data:
                call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return {p: torch.cat(parts) for p, parts in seen.items()}
