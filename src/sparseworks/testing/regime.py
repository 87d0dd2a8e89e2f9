"""What every method that acts while a model trains must hold."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields, replace

import torch
from torch import Tensor, nn

from sparseworks.core.errors import ModelError
from sparseworks.core.method import Method
from sparseworks.testing.examples import refused, require
from sparseworks.weights.prune import prune
from sparseworks.weights.train import Sparsifier

STEPS = 24
Build = Callable[[], nn.Module]


def check_training(method: Method | str, build: Build | None = None) -> None:
    """A short training of a toy model: the budget, the pattern, exact zeros, and a run cut in two equal to the whole, bit for bit.

    Args:
        build: makes the model, the same at every call, for inputs of 16 features; default: three linear layers.

    Raises:
        AssertionError: with a sentence that names the method and what broke.
    """
    method = _brisk(Method.of(method))
    build = build or (_normed if method.train is not None and method.train.grouped else _net)
    model, optimizer, sparsifier = _start(method, build)
    sparse = sparsifier.density < 1.0 and not sparsifier.regime.dense
    require(
        sparsifier.regime.starts_sparse == sparse or not sparsifier.regime.moves,
        f"{method.name}: `starts_sparse` is {sparsifier.regime.starts_sparse}, its first support has density {sparsifier.density:g}.",
    )
    first = sparsifier.supports
    _train(model, optimizer, sparsifier, range(STEPS))
    supports = sparsifier.finish()
    require(sparsifier.regime.moves or supports == first, f"{method.name}: the support moved, which `moves` rules out.")
    _check_end(method, model, supports)
    first, optimizer, sparsifier = _start(method, build)
    _train(first, optimizer, sparsifier, range(STEPS // 2))
    states = copy.deepcopy((first.state_dict(), optimizer.state_dict(), sparsifier.state_dict()))
    second, optimizer, sparsifier = _start(method, build)
    second.load_state_dict(states[0])
    optimizer.load_state_dict(states[1])
    sparsifier.load_state_dict(states[2])
    _train(second, optimizer, sparsifier, range(STEPS // 2, STEPS))
    require(sparsifier.finish() == supports, f"{method.name}: a resumed run ends with other supports.")
    same = all(torch.equal(a, b) for a, b in zip(model.parameters(), second.parameters(), strict=True))
    require(same, f"{method.name}: a resumed run ends with other weights.")
    refused(
        lambda: prune(build(), method, progress=False),
        ModelError,
        f"{method.name}: `prune` takes a method that trains.",
    )


def _check_end(method: Method, model: nn.Module, supports: dict) -> None:
    from sparseworks.stream import sites

    listed = [s for s in sites(model) if s.name in supports]
    for site in listed:
        weight, support = site.read(model), supports[site.name]
        require(bool(torch.isfinite(weight).all()), f"{method.name}: {site.name} holds NaN or infinity.")
        require(not bool(weight[~support.mask()].any()), f"{method.name}: {site.name} has values outside its support.")
        alone = replace(method.pattern, across=False)
        require(
            alone.admits(support), f"{method.name}: {site.name} has a support that {method.pattern} does not admit."
        )
    emergent = method.train is not None and (method.train.emergent or method.train.grouped)
    if method.pattern.quota not in ("equal", "live") and not method.budget.needs_scores and not emergent:
        total, kept = method.budget.total({s.name: s.size for s in listed}), sum(s.count for s in supports.values())
        require(kept == total, f"{method.name}: {kept} entries are kept at the end, the budget is {total}.")


def _brisk(method: Method) -> Method:
    """The method with changes often enough for a run of seconds."""
    regime = method.train
    require(regime is not None, f"{method.name} has no regime of training.")
    known = {f.name for f in fields(regime)}  # type: ignore[arg-type]
    return method.with_(train=replace(regime, every=3)) if "every" in known else method  # type: ignore[type-var]


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))


def _normed() -> nn.Module:
    torch.manual_seed(0)
    norms = [nn.BatchNorm1d(32), nn.BatchNorm1d(32)]
    return nn.Sequential(
        nn.Linear(16, 32), norms[0], nn.ReLU(), nn.Linear(32, 32), norms[1], nn.ReLU(), nn.Linear(32, 8)
    )


def _start(method: Method, build: Build) -> tuple[nn.Module, torch.optim.Optimizer, Sparsifier]:
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return model, optimizer, Sparsifier(model, method, optimizer, steps=STEPS)


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, sparsifier: Sparsifier, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)  # a run that goes on restores the generator too
        optimizer.zero_grad()
        x, y = _batch(step)
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        sparsifier.step()


def _batch(step: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(step)
    x = torch.randn(16, 16, generator=g)
    return x, x[:, :8].sin() + x[:, 8:]
