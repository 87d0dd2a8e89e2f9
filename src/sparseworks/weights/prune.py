"""Prune a model in place with a method or a recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparseworks.core.budget import Cost
from sparseworks.core.errors import BudgetError, CalibrationError, DtypeError, MissingStatError, ModelError
from sparseworks.core.method import Method
from sparseworks.core.recipe import Recipe
from sparseworks.core.schedule import Rounds
from sparseworks.core.site import Site
from sparseworks.core.stats import Stats
from sparseworks.stream import Residency, blocks
from sparseworks.stream import sites as find_sites
from sparseworks.stream.gradients import SOURCES, Loss
from sparseworks.stream.modes import evaluating
from sparseworks.weights.checkpoint import Workdir, fingerprint
from sparseworks.weights.decide import FORWARD, Job, evidence_needs, streamed_needs
from sparseworks.weights.matrix import check_weight
from sparseworks.weights.show import Shown
from sparseworks.weights.streaming import Pruned, Run, about


def prune(
    model: nn.Module,
    method: Method | Recipe | str,
    data: Iterable[Any] | None = None,
    *,
    sites: Sequence[Site] | None = None,
    skip: Sequence[str] = (),
    workdir: Path | str | None = None,
    seed: int = 0,
    progress: bool = True,
    memory_limit: int | None = None,
    loss: Loss | None = None,
    cost: Cost | None = None,
    stats: Mapping[str, Stats] | None = None,
    device: torch.device | str | None = None,
    residency: Residency | None = None,
    say: Callable[[str], None] | None = None,
) -> Pruned:
    """Prune `model` in place.

    In this order: counts of all sites are fixed as integers (with evidence of the dense model where the allocator wants
    it); then block after block the statistics of its sites are gathered on the current hidden states, every site is
    solved, and the outputs of the *pruned* block go on. Sites outside repeated blocks see whole forward passes.

    Args:
        model: any torch module.
        method: a method or its name for every site, or a recipe.
        data: calibration batches (dicts of keyword arguments, tuples or tensors); not needed by data-free methods.
        sites: sites to consider; default: all that `sparseworks.sites(model)` lists.
        skip: shell-style patterns of site names that stay dense.
        workdir: folder for the state of the run. The same call on the same dense model goes on where it was cut off, and
            ends with the same supports and weights.
        seed: added to the recipe's seed, and that to the seed of every random part.
        progress: show a progress bar and the predicted memory on the standard error stream.
        memory_limit: bytes of main memory; hidden states beyond it lie in memory-mapped files.
        loss: `loss(model, batch) -> scalar` for gradient scores; default: the model's own.
        cost: `cost(site, kept entries)` for budgets in bytes, FLOPs or milliseconds.
        stats: statistics gathered elsewhere, by site (`WeightMovement` of a training run).
        device: where blocks run and are solved while it is their turn; default: where they are.
        residency: where weights lie while they are not needed; default: in memory.
        say: called with lines of text instead of the standard error stream.

    Raises:
        ModelError: no site is pruned, or a bias repair meets a layer without bias.
        CalibrationError: data are missing or empty, or one row of a batch does not fit in memory.
        PatternError, BudgetError: a pattern or a budget does not fit a site; nothing was changed.
        NonFiniteError: weights, activations or gradients hold NaN or infinity.
        CheckpointError: `workdir` belongs to another run or cannot be written.
    """
    recipe = _recipe(method, skip)
    seed += recipe.seed
    listed = list(find_sites(model) if sites is None else sites)
    groups = [(reseeded(m, seed), members) for m, members in recipe.assign(listed)]
    job = Job(
        model, groups, blocks(model, listed), list(data) if data is not None else [], loss, cost, stats or {}, residency
    )
    _check(job)
    work = (
        Workdir.open(workdir, fingerprint(model, recipe.to_yaml(), seed, job.batches, job.sites)) if workdir else None
    )
    shown = Shown(progress, say)
    job.folder = work.folder if work else None
    with evaluating(model):
        return Run(job, work, torch.device(device) if device else None, memory_limit, shown).go()


def reseeded(noun: Any, seed: int) -> Any:
    """The same method, score or solver with `seed` added to every field of that name, at any depth."""
    if not is_dataclass(noun) or isinstance(noun, type):
        return noun
    values = {f.name: getattr(noun, f.name) for f in fields(noun)}
    changed = {k: v + seed if k == "seed" else reseeded(v, seed) for k, v in values.items()}
    return replace(noun, **changed) if changed != values else noun


def _recipe(method: Method | Recipe | str, skip: Sequence[str]) -> Recipe:
    return Recipe.of(method, skip=skip)


def _check(job: Job) -> None:
    """Refuse what cannot work before anything is changed."""
    if not job.groups:
        raise ModelError("Nothing to prune: the model has no sites, or the recipe leaves all of them dense.")
    for method, sites in job.groups:
        if method.form is not None:
            raise ModelError(f"Method {method.name!r} writes weights as factors: use `sparseworks.factorise`.")
        if method.train is not None:
            raise ModelError(f"Method {method.name!r} acts while a model trains: use `sparseworks.Sparsifier`.")
        if method.cycle is not None:
            raise ModelError(f"Method {method.name!r} trains between its prunings: use `sparseworks.cycles`.")
        fed = [k for k in streamed_needs(method) | evidence_needs(method) if k.source in (*FORWARD, *SOURCES)]
        if fed and not job.batches:
            raise CalibrationError(f"Method {method.name!r} gathers {fed[0].__name__}: give calibration `data`.")
        rest = [k for k in method.needs if k.source not in (*FORWARD, *SOURCES)]
        for site in sites:
            with about(site):
                method.pattern.check(site.shape)
            if not site.tensor(job.model).is_floating_point():
                raise DtypeError(
                    f"Site {site.name!r} holds {site.tensor(job.model).dtype}: dequantise the model first."
                )
            with job.reading(site) as weight:
                check_weight(weight, f"Site {site.name!r}")
            missing = [k for k in rest if k not in job.given.get(site.name, ())]
            if missing:
                raise MissingStatError(
                    f"Method {method.name!r} needs {missing[0].__name__} of site {site.name!r}, which training gathers; "
                    f"give it with `stats=`."
                )
        if isinstance(method.schedule, Rounds) and method.pattern.fixed_density is not None:
            raise BudgetError(f"Method {method.name!r}: pattern {method.pattern} fixes the density, it has no rounds.")
