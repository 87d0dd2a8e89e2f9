"""Which modules of a model a plan may replace: one unit a module, with the sites that lie in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sparseworks.core.errors import ShapeError, UnknownNameError
from sparseworks.core.site import Site
from sparseworks.core.support import Support
from sparseworks.exec.layers import Convolution, layer_of, why_not
from sparseworks.stream import sites
from sparseworks.stream.tree import call, first_tensor

Seen = Mapping[str, Sequence[Sequence[int]]]


@dataclass(frozen=True)
class Unit:
    """A module that can run sparse, with the output rows `[start, end)` that each of its sites covers.

    A fused module (q, k and v in one matrix) is one unit of several sites: it can only be replaced as a whole.

    Attributes:
        module: dotted name.
        shape: `(out, in)` of its weight.
        spans: `(site, start, end)` in order of rows; rows that no site covers are kept whole.
    """

    module: str
    shape: tuple[int, int]
    spans: tuple[tuple[str, int, int], ...]

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites."""
        return tuple(name for name, _, _ in self.spans)

    @property
    def whole(self) -> bool:
        """Whether one site covers every row."""
        return len(self.spans) == 1 and self.spans[0][1:] == (0, self.shape[0])

    def support(self, supports: Mapping[str, Support]) -> Support:
        """The kept entries of the whole weight.

        Raises:
            ShapeError: the support of a site does not fit its rows.
            UnknownNameError: a site has no support.
        """
        for name, start, end in self.spans:
            if name not in supports:
                raise UnknownNameError("support", name, supports)
            if tuple(supports[name].shape) != (end - start, self.shape[1]):
                raise ShapeError(
                    f"Site {name!r} is {(end - start, self.shape[1])}, its support {tuple(supports[name].shape)}."
                )
        if self.whole:
            return supports[self.spans[0][0]]
        mask = torch.ones(self.shape, dtype=torch.bool)
        for name, start, end in self.spans:
            mask[start:end] = supports[name].mask()
        return Support.from_mask(mask)


def units(
    model: nn.Module, supports: Mapping[str, Support], seen: Seen | None = None
) -> tuple[list[Unit], dict[str, str]]:
    """The modules of `model` that can run sparse on `supports`, and site -> reason for every site that cannot.

    Args:
        seen: what every module receives, see `inputs_of`.

    Raises:
        UnknownNameError: a support names no site of the model.
        ShapeError: a support has another shape than its site.
    """
    known = {site.name: site for site in sites(model, include=["*"])} if supports else {}
    for name, support in supports.items():
        if name not in known:
            raise UnknownNameError("site", name, known)
        if tuple(support.shape) != known[name].shape:
            raise ShapeError(f"Site {name!r} is {known[name].shape}, its support {tuple(support.shape)}.")
    chosen = [site for name, site in known.items() if name in supports]
    reasons = {site.name: why for site in chosen if (why := _why_dense(model, site, seen or {})) is not None}
    modules: dict[str, list[Site]] = {}
    for site in chosen:
        if site.name not in reasons:
            modules.setdefault(site.module, []).append(site)
    return [unit_of(model, name, members) for name, members in modules.items()], reasons


def _why_dense(model: nn.Module, site: Site, seen: Seen) -> str | None:
    if site.parameter != (f"{site.module}.weight" if site.module else "weight"):
        return "it is not the weight of a module of its own (an expert, or a matrix that attention reads itself)"
    if not site.module:
        return "it is the model itself, which cannot be replaced inside itself"
    why = why_not(model, site.module)
    maps = why is None and isinstance(layer_of(model.get_submodule(site.module)), Convolution)
    if maps and site.module not in seen:
        return "the size of its maps is not known: plan with `examples`, inputs of the model that reach it"
    return why


def inputs_of(model: nn.Module, examples: Sequence[Any]) -> Seen:
    """Module -> shape of its input for each example, in one forward pass a piece; the largest where it is called repeatedly.

    Modules that some example does not reach are missing.
    """
    passes = [_shapes(model, example) for example in examples]
    reached = set(passes[0]).intersection(*passes) if passes else ()
    return {name: [seen[name] for seen in passes] for name in reached}


def _shapes(model: nn.Module, example: Any) -> dict[str, torch.Size]:
    found: dict[str, torch.Size] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = first_tensor((*args, kwargs))
            if x is not None and x.numel() >= (found[name].numel() if name in found else 1):
                found[name] = x.shape

        return hook

    training = [m for m in model.modules() if m.training]
    hooks = [m.register_forward_pre_hook(watch(name), with_kwargs=True) for name, m in model.named_modules()]
    try:
        with torch.no_grad():
            call(model.eval(), example)
    finally:
        for hook in hooks:
            hook.remove()
        for module in training:
            module.training = True
    return found


def unit_of(model: nn.Module, module: str, members: Sequence[Site]) -> Unit:
    """The unit of one module and the sites in it."""
    total = members[0].tensor(model).numel() // members[0].shape[1]
    spans = sorted((*(site.rows or (0, total)), site.name) for site in members)
    return Unit(module, (total, members[0].shape[1]), tuple((name, start, end) for start, end, name in spans))
