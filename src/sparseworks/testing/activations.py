"""What every method of sparse activations that takes a finished model must hold."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sparseworks.activations import ActivationMethod, SparseActivations, sparsify_activations, unmask
from sparseworks.activations.lowrank import LowRankPath
from sparseworks.allocate.greedy import BlockGreedy
from sparseworks.core.budget import Density
from sparseworks.exec.masked import MaskedLinear, MaskedOutput, rule_from
from sparseworks.testing.examples import require

TOLERANCE = 0.08
"""Of the realised density: rules are set on the dense model, whose activations are not those between masked layers."""


def check_activation_method(
    method: ActivationMethod | str, build: Callable[[], nn.Module] | None = None, data: Sequence[Any] | None = None
) -> None:
    """On a toy decoder: density 1 changes nothing; the realised density meets the budget; rules are stored and come back; masks of
    inputs depend on the token and on constants only; weights keep their values.

    Args:
        build: makes the model, the same at every call; default: a LLaMA of two small blocks.
        data: calibration batches for it.

    Raises:
        AssertionError: with a sentence that names the method and what broke.
    """
    method = _brisk(ActivationMethod.of(method))
    build, data = build or _decoder, data if data is not None else _batches()
    budgeted = isinstance(method.budget, Density)
    if budgeted:
        _check_whole(method, build, data)
    model = build()
    done = sparsify_activations(model, method, data, density=0.6 if budgeted else None)
    require(bool(done.rows), f"{method.name} masks nothing.")
    if budgeted:
        wanted = sum(r.size * r.density for r in done.rows) / sum(r.size for r in done.rows)
        require(abs(wanted - 0.6) < 0.02, f"{method.name}: the shares of the layers sum to {wanted:.3f}, not to 0.6.")
        require(
            abs(1 - done.sparsity - 0.6) < TOLERANCE,
            f"{method.name}: {1 - done.sparsity:.3f} of the weights are read on the calibration data, the budget is 0.6.",
        )
    _check_masks(method, model, data)
    _check_stored(method, model, done)
    unmask(model)
    _check_equal(method, model, build(), data, "taking the masks out does not bring the model back", 1e-4)


def _check_whole(method: ActivationMethod, build: Callable[[], nn.Module], data: Sequence[Any]) -> None:
    model = build()
    sparsify_activations(model, method, data, density=1.0)
    exact = 1e-4 if method.transform is not None else 0.0
    _check_equal(method, model, build(), data, "density 1 changes the output", exact)


def _check_equal(
    method: ActivationMethod, model: nn.Module, other: nn.Module, data: Sequence[Any], what: str, tolerance: float
) -> None:
    a, b = _run(model, data[0]), _run(other, data[0])
    apart = float((a - b).abs().max() / b.abs().max())
    require(apart <= tolerance, f"{method.name}: {what} (by {apart:.2g}).")


def _check_masks(method: ActivationMethod, model: nn.Module, data: Sequence[Any]) -> None:
    """A token's mask is the same alone and among others, and the same whatever the weight holds."""
    for name, layer in model.named_modules():
        if not isinstance(layer, MaskedLinear | MaskedOutput):
            continue
        width = layer.in_features if isinstance(layer, MaskedLinear) else 16
        x = torch.randn(6, width, generator=torch.Generator().manual_seed(0))
        together = layer.kept(x)
        alone = torch.cat([layer.kept(row[None]) for row in x])
        require(torch.equal(together, alone), f"{method.name}: the mask of a token at {name} depends on other tokens.")
        kept = together != 0
        require(
            bool((together == torch.where(kept, x, 0.0)).all()), f"{method.name}: {name} changes the inputs it keeps."
        )
        if isinstance(layer, MaskedLinear):
            held = layer.weight.detach().clone()
            with torch.no_grad():
                layer.weight.zero_()
            require(torch.equal(layer.kept(x), together), f"{method.name}: the mask at {name} reads the weights.")
            with torch.no_grad():
                layer.weight.copy_(held)


def _check_stored(method: ActivationMethod, model: nn.Module, done: SparseActivations) -> None:
    """What files keep of a layer, as JSON, gives back its rule and the names and shapes of its constants."""
    masked = [m for m in model.modules() if isinstance(m, MaskedLinear | MaskedOutput)]
    require(
        len(masked) == len(done.rows), f"{method.name}: {len(masked)} layers are masked, {len(done.rows)} are reported."
    )
    for layer, row in zip(masked, done.rows, strict=True):
        data = json.loads(json.dumps(layer.metadata()))
        require(rule_from(data["rule"]) == row.rule, f"{method.name}: the rule of {row.name} does not survive a file.")
        if isinstance(layer, MaskedLinear):
            shapes = {k: v.shape for k, v in MaskedLinear.from_metadata(data).state_dict().items()}
            same = shapes == {k: v.shape for k, v in layer.state_dict().items()}
            require(same, f"{method.name}: the constants of {row.name} do not survive a file.")


def _brisk(method: ActivationMethod) -> ActivationMethod:
    """The method with short searches, and masks for every token."""
    changes: dict[str, Any] = {"cut": replace(method.cut, prompt=0.0)}  # type: ignore[type-var]
    if isinstance(method.allocate, BlockGreedy):
        changes["allocate"] = BlockGreedy(step=0.5, tokens=64)
    if isinstance(method.repair, LowRankPath) and method.repair.generations:
        changes["repair"] = replace(method.repair, levels=4, generations=1, offspring=2, tokens=32, sample=32)
    return method.with_(**changes)


@torch.no_grad()
def _run(model: nn.Module, batch: Any) -> Tensor:
    from sparseworks.stream.outputs import logits_of
    from sparseworks.stream.tree import call

    return logits_of(call(model, batch)).float()


def _batches() -> list[dict[str, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(0, 48, (4, 32), generator=g)} for _ in range(3)]


def _decoder() -> nn.Module:
    """Two blocks in LLaMA's form with norms of unequal scale, in plain torch."""
    from sparseworks.testing.decoder import Decoder

    torch.manual_seed(0)
    return Decoder().eval()
