"""Replace the linear layers of a model by random operators, before it is trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from sparseworks.core.allocator import Evidence
from sparseworks.core.errors import BudgetError, ModelError
from sparseworks.core.method import Method
from sparseworks.core.operator import LinearOperator
from sparseworks.core.recipe import Recipe
from sparseworks.core.site import Site
from sparseworks.stream import sites as find_sites
from sparseworks.weights.factors.factorise import _refusal as refusal
from sparseworks.weights.factors.factorise import place
from sparseworks.weights.streaming import about


def reparametrise(
    model: nn.Module,
    method: Method | Recipe | str,
    *,
    sites: Sequence[Site] | None = None,
    skip: Sequence[str] = (),
    seed: int = 0,
) -> dict[str, LinearOperator]:
    """Give the linear layers of `model` another form with random values, in place, for training from scratch.

    sw.reparametrise(model, sw.method("sltrain", density=0.5), skip=["lm_head"])
    optimizer = torch.optim.AdamW(model.parameters())

    Biases stay. `factorise` keeps what the weights compute, this does not. Make the optimiser afterwards: the parameters are new.

    Args:
        model: any torch module.
        method: a method with a form that can start, its name, or a recipe of such methods.
        sites: layers to consider; default: all linear layers that `sparseworks.sites(model)` lists.
        skip: shell-style patterns of names that stay dense.
        seed: of the values and of random supports; each layer draws its own.

    Returns:
        The operator of every layer, in order of the model.

    Raises:
        ModelError: no layer is replaced, a method has no form, or a site is not the whole weight of a linear layer.
        BudgetError: the budget is too small for a layer, needs what is only known of trained weights, or the form has no start.
        ShapeError: the factors do not divide a layer.
    """
    recipe = Recipe.of(method, skip=skip)
    listed = [s for s in find_sites(model) if refusal(model, s) is None] if sites is None else list(sites)
    made: dict[str, LinearOperator] = {}
    for chosen, members in recipe.assign(listed):
        for site, words in _words(model, chosen, members).items():
            generator = torch.Generator().manual_seed((seed + recipe.seed) * 10007 + listed.index(site))
            with about(site):
                made[site.name] = chosen.form.start(site.shape, chosen, words, generator)  # type: ignore[union-attr]
    if not made:
        raise ModelError("Nothing to replace: the model has no linear layers, or all of them are skipped.")
    for site in (s for s in listed if s.name in made):
        layer = model.get_submodule(site.module)
        place(model, site.module, made[site.name].to(layer.get_parameter("weight").dtype), layer)
    return {s.name: made[s.name] for s in listed if s.name in made}


def _words(model: nn.Module, method: Method, members: Sequence[Site]) -> dict[Site, int]:
    """Words of every layer.

    Raises:
        ModelError: the method has no form, or a site cannot be replaced.
        BudgetError: the allocation looks at statistics, scores or errors.
    """
    if method.form is None:
        raise ModelError(
            f"Method {method.name!r} has no form: it keeps matrices and belongs to `sparseworks.Sparsifier`."
        )
    for site in members:
        reason = refusal(model, site)
        if reason is not None:
            raise ModelError(f"Site {site.name!r} {reason}: it cannot be replaced; leave it out with `skip`.")
    if not method.form.sized:
        return {s: s.size for s in members}
    if method.allocate.needs or method.allocate.uses_error or method.allocate.uses_trials or method.budget.needs_scores:
        raise BudgetError(
            f"Method {method.name!r} allocates by what is known of trained weights, which there are none of."
        )
    counts = method.allocate(members, method.budget, evidence=Evidence(weight=lambda name: _read(model, members, name)))
    return {s: counts[s.name] for s in members}


def _read(model: nn.Module, members: Sequence[Site], name: str) -> torch.Tensor:
    return next(s for s in members if s.name == name).read(model)
