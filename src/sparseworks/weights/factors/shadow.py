"""Sparse factors in training: opened into dense weights of which a `Sparsifier` keeps projections, and closed again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from sparseworks.core.budget import Count, Density
from sparseworks.core.errors import MissingStatError, ModelError
from sparseworks.core.method import Method
from sparseworks.core.operator import OPERATORS
from sparseworks.core.site import Site
from sparseworks.core.support import Support
from sparseworks.weights.factors.parts import Matrix, Sparse


@OPERATORS.register("shadow")
class Shadow(Matrix):
    """A sparse factor while its support is trained: all entries, of which `kept` will be stored again."""

    kept: int = 0


def open_factors(model: nn.Module) -> list[Site]:
    """Turn the sparse factors of all operators of `model` into dense weights, zero where they kept nothing; their sites.

    Build the optimiser afterwards, then `sparseworks.Sparsifier(model, method, optimizer)` with the method that factorised:
    its regime, score and pattern move the supports of these sites. `close_factors` makes them sparse again.

    Raises:
        ModelError: no operator has a sparse factor.
    """
    for path, factor in [(n, m) for n, m in model.named_modules() if isinstance(m, Sparse)]:
        shadow = Shadow(factor.dense().detach())
        shadow.kept = factor.values.numel()
        shadow.matrix.requires_grad_(factor.values.requires_grad)
        _put(model, path, shadow.train(factor.training))
    found = open_sites(model)
    if not found:
        raise ModelError("No layer of the model has a sparse factor; call `sparseworks.factorise` first.")
    return found


def open_sites(model: nn.Module) -> list[Site]:
    """The sparse factors that `open_factors` opened."""
    return [
        Site(path, "linear", f"{path}.matrix", (m.out_features, m.in_features))
        for path, m in model.named_modules()
        if isinstance(m, Shadow)
    ]


@torch.no_grad()
def close_factors(model: nn.Module, supports: Mapping[str, Support]) -> None:
    """Store the opened factors on `supports` (`Sparsifier.finish()`) again; entries outside are dropped.

    Raises:
        MissingStatError: an opened factor has no support; nothing is changed.
    """
    shadows = {n: m for n, m in model.named_modules() if isinstance(m, Shadow)}
    missing = [n for n in shadows if n not in supports]
    if missing:
        raise MissingStatError(f"The opened factor {missing[0]!r} has no support; give those of `Sparsifier.finish()`.")
    for path, shadow in shadows.items():
        factor = Sparse.of(shadow.matrix.detach(), supports[path])
        factor.values.requires_grad_(shadow.matrix.requires_grad)
        _put(model, path, factor.train(shadow.training))


def on_factors(method: Method, model: nn.Module) -> Method:
    """What moves the supports of opened factors: the method without its form, keeping as many entries as were opened.

    Raises:
        ModelError: the method has no regime of training, or nothing is opened.
    """
    shadows = [m for m in model.modules() if isinstance(m, Shadow)]
    if method.train is None or not shadows:
        then = ", then `open_factors(model)`" if method.train is not None else ""
        raise ModelError(f"Method {method.name!r} writes weights as factors: use `sparseworks.factorise`{then}.")
    fixed = method.pattern.fixed_density
    budget = Count(sum(m.kept for m in shadows)) if fixed is None else Density(fixed)
    return replace(method, form=None, budget=budget)


def _put(model: nn.Module, path: str, factor: nn.Module) -> None:
    owner, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(owner), leaf, factor)
