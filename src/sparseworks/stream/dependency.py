"""Dependency groups: which channels of which layers live or die together, from one run through a traced graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from torch import fx, nn

from sparseworks.core.errors import ModelError
from sparseworks.core.site import Coupling, Member
from sparseworks.stream.labels import Labels, Union, Use
from sparseworks.stream.modes import evaluating
from sparseworks.stream.tracing import Tracer
from sparseworks.stream.walk import Walk


def dependency_groups(model: nn.Module, example: Any, *, whole: Sequence[str] = ()) -> list[Coupling]:
    """Channels and neurons of `model` that can be removed, each with all that goes with it, in the order of computation.

    Follows convolutions, linear layers (also on flattened maps), normalisation by channel, activations, pooling, sums,
    products (squeeze and excitation), concatenations and halves of `chunk`. A unit of a grouped convolution is a whole group,
    of a depthwise one a channel. What reaches the output of the model stays. Nothing is changed; `slice_units` cuts.

    Args:
        example: one batch: a tensor, or a tuple of positional arguments.
        whole: shell-style patterns of module names that are not looked into; all their inputs and outputs stay.

    Raises:
        ModelError: an operation that cannot be traced or followed; the message names the module it lies in.
    """
    args = example if isinstance(example, tuple) else (example,)
    with evaluating(model):
        walk = Walk(fx.GraphModule(model, Tracer(whole).trace(model)), whole)
        walk.run(*args)
    return _couplings(model, walk.labels, walk.uses)


def _couplings(model: nn.Module, labels: Union, uses: Sequence[Use]) -> list[Coupling]:
    """Labels that are used by the same layers along the same axes are units of one coupling."""
    fixed = {labels.root(label) for label in labels.fixed}
    roots = [labels.roots(use.labels) for use in uses]
    where: dict[int, list[int]] = {}
    for number, found in enumerate(roots):
        for root in dict.fromkeys(found):
            if root not in fixed:
                where.setdefault(root, []).append(number)
    together: dict[tuple[int, ...], list[int]] = {}
    for root, numbers in where.items():
        together.setdefault(tuple(numbers), []).append(root)
    listed: list[Coupling] = []
    for numbers, units in together.items():
        place = {root: i for i, root in enumerate(units)}
        made = sorted(numbers, key=lambda i: ("rows", "norm", "cols").index(uses[i].axis))
        members, norms = [], []
        for i in made:
            found = np.array([place.get(root, -1) for root in roots[i]])
            for member in _members(uses[i], found, len(units)):
                (norms if uses[i].axis == "norm" else members).append(member)
        first = uses[made[0]].module
        neuron = isinstance(model.get_submodule(first), nn.Linear)
        name = f"{first}.{'neurons' if neuron else 'channels'}"
        name += (
            f"[{sum(c.name.partition('[')[0] == name for c in listed)}]" if any(c.name == name for c in listed) else ""
        )
        listed.append(Coupling(name, "neuron" if neuron else "channel", len(units), tuple(members), tuple(norms)))
    return listed


def _members(use: Use, owners: Labels, units: int) -> list[Member]:
    """One member for every run of the units along the axis.

    Raises:
        ModelError: the units come in another order.
    """
    length, members, i = len(owners), [], 0
    axis: Literal["rows", "cols"] = "cols" if use.axis == "cols" else "rows"
    while i < length:
        if owners[i] < 0:
            i += 1
            continue
        width = 1
        while i + width < length and owners[i + width] == owners[i]:
            width += 1
        run = np.repeat(np.arange(units), width)
        if not np.array_equal(owners[i : i + len(run)], run):
            raise ModelError(
                f"Module {use.module!r} takes channels in another order than the one in which they are made."
            )
        whole = len(run) == length
        members.append(Member(use.module, axis, width, use.repeats, i, 0 if whole else length))
        i += len(run)
    return members
