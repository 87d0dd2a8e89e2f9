"""Group sparsity with four-bit groups: prune runs of 16 inputs, round what is left with training in the loop, tune the scales."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparseworks.core.errors import CalibrationError, ModelError
from sparseworks.core.support import Support
from sparseworks.exec.format import FORMATS, Packed
from sparseworks.exec.int4 import GROUP, MOST, UINT4, to_int4
from sparseworks.stream import Block, blocks
from sparseworks.stream import sites as find_sites
from sparseworks.stream.tree import call, first_tensor
from sparseworks.weights.distill import Logits, Term
from sparseworks.weights.recover import recover


class RoundedGroups(nn.Module):
    """w -> scale (clamp(round(w / scale + zero), 0, most) - round(zero)) on kept groups of 16 inputs, 0 elsewhere.

    Rounding passes gradients on as it is (straight-through), so weights, scales and zero points can be trained. With
    `freeze` the integers stay, and scale and zero point alone decide.

    Args:
        weight: out x in.
        mask: kept entries, whole groups of 16 inputs.
        most: largest code; 15 for four bits, 3 for two.
    """

    code: Tensor
    kept: Tensor

    def __init__(self, weight: Float[Tensor, "out in"], mask: Bool[Tensor, "out in"], most: int = MOST):
        super().__init__()
        self.most, self.frozen = most, False
        self.register_buffer("kept", mask.reshape(mask.shape[0], -1, GROUP).any(dim=2))
        _, scale, zero = to_int4(weight.reshape(mask.shape[0], -1, GROUP)[self.kept], most)
        self.scale, self.zero = nn.Parameter(scale.float().clamp(min=1e-8)), nn.Parameter(zero.float())

    def forward(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """The rounded weight."""
        groups = weight.reshape(weight.shape[0], -1, GROUP)
        scale, zero = self.scale[:, None], self.zero[:, None]
        code = self.code if self.frozen else self._codes(groups[self.kept], scale, zero)
        values = scale * (code - (zero if self.frozen else _straight(zero)))
        out = torch.zeros_like(groups)
        out[self.kept] = values.to(out)
        return out.reshape(weight.shape)

    def _codes(self, kept: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        return _straight((kept / scale).add(_straight(zero)).clamp(0, self.most))

    @torch.no_grad()
    def freeze(self, weight: Float[Tensor, "out in"]) -> None:
        """Keep the integers that `weight` has now; zero points become real numbers that may be trained on."""
        groups = weight.reshape(weight.shape[0], -1, GROUP)
        self.zero.copy_(self.zero.round().clamp(0, self.most))
        self.register_buffer("code", self._codes(groups[self.kept], self.scale[:, None], self.zero[:, None]))
        self.frozen = True

    def packed(self, shape: tuple[int, int]) -> Packed:
        """The frozen integers in the `groups4` format; scales are stored in float16, zero points as whole numbers."""
        zero = self.zero.detach().round().clamp(0, self.most)
        return FORMATS.get("groups4").of_groups(self.kept, self.code.to(torch.uint8), self.scale.detach(), zero, shape)  # type: ignore[attr-defined]


def quantise_groups(
    model: nn.Module,
    supports: Mapping[str, Support],
    data: Iterable[Any],
    *,
    steps: int = 100,
    lr: float = 1e-4,
    tune_steps: int = 0,
    tune_lr: float = 1e-4,
    terms: Sequence[Term] = (Logits(),),
    most: int = MOST,
    seed: int = 0,
) -> dict[str, Packed]:
    """Round the kept groups of a pruned model to four bits, in place; what each site becomes in the `groups4` format.

    Stage 1: block after block, weights, scales and zero points are trained so that the rounded block gives what the given
    block gives, on inputs that come from the rounded blocks before it. Stage 2: integers stay, scales (and biases of
    nothing) are tuned end to end for `tune_steps` towards the given model.

    Source: Zeng et al., 2024, arXiv 2412.17560. Departures: targets are those of the model as it is given: give the dense
    weights and the supports of a pruned copy, so that stage 1 makes good what pruning costs as well; zero points are not
    tuned in stage 2, so that they stay whole numbers of four bits.

    Args:
        model: the dense model.
        supports: site -> support of whole groups of 16 inputs, e.g. from `prune` with "gqsa" on a copy.
        data: calibration batches.
        steps, lr: optimiser steps of every block in stage 1; Adam.
        most: largest code.

    Raises:
        ModelError: a site is not a whole linear layer in a repeated block, or its support is not made of whole groups.
        CalibrationError: no data.
    """
    batches = list(data)
    if not batches:
        raise CalibrationError("Rounding is trained on calibration data, and there are no batches.")
    modules = _layers(model, supports)
    teacher = copy.deepcopy(model)
    rounders = {n: RoundedGroups(m.weight.detach(), supports[n].mask(), most) for n, m in modules.items()}
    for block in blocks(model):
        inside = [n for n in modules if block.holds(n)]
        if inside:
            _round(model, teacher, block, batches, {n: (modules[n], rounders[n]) for n in inside}, steps, lr, seed)
    if tune_steps:
        _tune(model, teacher, batches, rounders, terms, tune_steps, tune_lr, seed)
    return {name: _settle(module, rounders[name]) for name, module in modules.items()}


def _layers(model: nn.Module, supports: Mapping[str, Support]) -> dict[str, nn.Linear]:
    """Site -> layer; errors as in `quantise_groups`."""
    named, repeated = {s.name: s for s in find_sites(model, include=["*"])}, blocks(model)
    layers: dict[str, nn.Linear] = {}
    for name, support in supports.items():
        layer = model.get_submodule(named[name].module) if name in named else None
        if not isinstance(layer, nn.Linear) or named[name].rows is not None:
            raise ModelError(f"Site {name!r} is not a whole linear layer, whose groups could be rounded.")
        if reason := FORMATS.get("groups4").refuses(support, UINT4):
            raise ModelError(f"Site {name!r} cannot be rounded by groups: {reason}.")
        if not any(b.holds(name) for b in repeated):
            raise ModelError(
                f"Site {name!r} lies outside the repeated blocks, whose outputs the rounding is trained on."
            )
        layers[name] = layer
    return layers


def _round(
    model: nn.Module, teacher: nn.Module, block: Block, batches: Sequence[Any],
    inside: Mapping[str, tuple[nn.Linear, RoundedGroups]], steps: int, lr: float, seed: int,
) -> None:  # fmt: skip
    """Stage 1 for one block, on what reaches it through the rounded blocks before it; then its integers stay."""
    targets = [t for _, _, t in _calls(teacher, block.module(teacher), batches)]
    entered = [(args, kwargs) for args, kwargs, _ in _calls(model, block.module(model), batches)]
    # The parameters themselves: from here on `layer.weight` is what they are rounded to.
    weights = [layer.get_parameter("weight") for layer, _ in inside.values()]
    rounders = [rounder for _, rounder in inside.values()]
    for layer, rounder in inside.values():
        parametrize.register_parametrization(layer, "weight", rounder)
    _train(block.module(model), entered, targets, weights, rounders, steps, lr, seed)
    for weight, rounder in zip(weights, rounders, strict=True):
        rounder.freeze(weight)


@torch.no_grad()
def _settle(layer: nn.Linear, rounder: RoundedGroups) -> Packed:
    """What the layer is packed as, and its weight exactly that."""
    packed = rounder.packed((layer.out_features, layer.in_features))
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    layer.weight.copy_(packed.unpack()[0])
    return packed


def _straight(x: Tensor) -> Tensor:
    return x + (x.round() - x).detach()


@torch.no_grad()
def _calls(model: nn.Module, block: nn.Module, batches: Sequence[Any]) -> list[tuple[tuple, dict, Tensor]]:
    """Arguments and hidden output of the block for every batch."""
    found: list[tuple[tuple, dict, Tensor]] = []

    def take(_module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        hidden = first_tensor(output)
        assert hidden is not None
        found.append((args, kwargs, hidden))

    handle = block.register_forward_hook(take, with_kwargs=True)
    try:
        for batch in batches:
            call(model, batch)
    finally:
        handle.remove()
    return found


def _train(
    block: nn.Module, entered: Sequence[tuple[tuple, dict]], targets: Sequence[Tensor], weights: Sequence[nn.Parameter],
    rounders: Sequence[RoundedGroups], steps: int, lr: float, seed: int,
) -> None:  # fmt: skip
    """Adam on the block's mean squared error relative to its targets; scales and zero points move with their own size."""
    with _only(block, [*weights, *(p for r in rounders for p in r.parameters())]):
        size = float(torch.stack([w.detach().abs().mean() for w in weights]).mean())
        optimizer = torch.optim.Adam(
            [
                {"params": weights, "lr": lr},
                {"params": [r.scale for r in rounders], "lr": lr * 0.1},
                {"params": [r.zero for r in rounders], "lr": lr / max(size, 1e-8)},
            ]
        )
        g = torch.Generator().manual_seed(seed)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, max(steps, 1))
        for _ in range(steps):
            i = int(torch.randint(len(targets), (1,), generator=g))
            with torch.enable_grad():
                args, kwargs = entered[i]
                found = first_tensor(block(*args, **kwargs))
                assert found is not None
                loss = (found - targets[i]).square().mean() / targets[i].square().mean()
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
            schedule.step()


def _tune(
    model: nn.Module, teacher: nn.Module, batches: Sequence[Any], rounders: Mapping[str, RoundedGroups],
    terms: Sequence[Term], steps: int, lr: float, seed: int,
) -> None:  # fmt: skip
    """Only the scales, towards the teacher."""
    with _only(model, [r.scale for r in rounders.values()]):
        recover(model, teacher, batches, supports={}, terms=terms, steps=steps, lr=lr, seed=seed, progress=False)


@contextmanager
def _only(module: nn.Module, trained: Iterable[nn.Parameter]) -> Iterator[None]:
    """Inside, only `trained` take gradients."""
    chosen, before = {id(p) for p in trained}, {p: p.requires_grad for p in module.parameters()}
    for p in before:
        p.requires_grad_(id(p) in chosen)
    try:
        yield
    finally:
        for p, needed in before.items():
            p.requires_grad_(needed)
            p.grad = None
