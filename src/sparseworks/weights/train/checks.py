"""What a run of sparse training is about, and whether it can work."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from sparseworks.core.errors import BudgetError, MissingStatError, ModelError
from sparseworks.core.method import Method
from sparseworks.core.regime import Regime
from sparseworks.core.site import Site
from sparseworks.core.stats import WeightGradient
from sparseworks.stream import sites as find_sites
from sparseworks.weights.train.watch import SEEN


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside data-parallel and compiled wrappers, so that sites are named alike on one process and on many."""
    while isinstance(model, DistributedDataParallel) or hasattr(model, "_orig_mod"):
        model = model.module if isinstance(model, DistributedDataParallel) else model._orig_mod  # type: ignore[assignment]
    return model


def chosen(model: nn.Module, sites: Sequence[Site] | None, skip: Sequence[str]) -> list[Site]:
    """The sites given, or all that the model has, without those that `skip` names."""
    listed = list(find_sites(model) if sites is None else sites)
    return [s for s in listed if not any(fnmatch(s.name, text) for text in skip)]


def check(
    method: Method, regime: Regime, optimizer: Optimizer, model: nn.Module, listed: Sequence[Site], steps: int | None
) -> None:
    """Refuse what cannot work before anything is changed; errors as in `Sparsifier`."""
    if not listed:
        raise ModelError("Nothing to make sparse: the model has no sites, or `skip` leaves all of them dense.")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for site in listed:
        method.pattern.check(site.shape)
        if id(site.tensor(model)) not in held:
            raise ModelError(f"The optimiser does not hold {site.parameter!r}; give it the parameters of this model.")
    if method.cycle is not None:
        raise ModelError(f"Method {method.name!r} trains several times: use `sparseworks.cycles`.")
    if regime.timed and (steps is None or steps < 1):
        raise BudgetError(
            f"Method {method.name!r} follows the progress of training: give `steps`, the length of the run."
        )
    if method.train is None:
        return
    if method.budget.needs_scores or method.allocate.needs:
        raise BudgetError(
            f"Method {method.name!r} allocates by statistics of calibration data, which training does not gather."
        )
    needs = method.score.needs | regime.needs
    missing = [k.__name__ for k in needs - {WeightGradient, *regime.gives} if k.source not in SEEN]
    if missing:
        raise MissingStatError(f"Method {method.name!r} scores by {missing[0]}, which training does not gather.")
