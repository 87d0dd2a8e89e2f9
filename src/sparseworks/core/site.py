"""Site: the matrix view of something that can become sparse, a parameter, a slice of one, or one expert of a stack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sparseworks.core.errors import ModelError, ShapeError

Kind = Literal["linear", "conv1d", "conv2d", "hf_conv1d", "embedding", "expert"]


@dataclass(frozen=True)
class Site:
    """A `(rows, cols)` = (outputs, inputs) view of a parameter.

    Attributes:
        name: unique name, by default the parameter's name without `.weight`; slices and experts add `[q]`, `[3]`.
        kind: how the parameter is laid out.
        parameter: dotted name of the parameter in the model.
        shape: `(rows, cols)` of the view. Convolutions are channels-last, (out, kernel positions * in), so that
            consecutive columns are consecutive input channels.
        rows: slice of output rows of the parameter's own view (fused qkv), or None for all.
        expert: index into the leading axis of a 3-D stack, or None.
        kernel: spatial kernel size for convolutions.
        transposed: the parameter is stored (in, out).
        groups: groups of a convolution.
        tied: other parameter names that share the storage.
    """

    name: str
    kind: Kind
    parameter: str
    shape: tuple[int, int]
    rows: tuple[int, int] | None = None
    expert: int | None = None
    kernel: tuple[int, ...] = ()
    transposed: bool = False
    groups: int = 1
    tied: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """Dotted name of the module that owns the parameter."""
        return self.parameter.rpartition(".")[0]

    @property
    def size(self) -> int:
        """Number of entries."""
        return self.shape[0] * self.shape[1]

    def tensor(self, model: nn.Module) -> nn.Parameter:
        """The parameter itself.

        Raises:
            ModelError: the model has no such parameter.
        """
        try:
            return model.get_parameter(self.parameter)
        except AttributeError as error:
            raise ModelError(f"Site {self.name!r}: the model has no parameter {self.parameter!r} ({error}).") from None

    def view(self, tensor: Tensor) -> Float[Tensor, "rows cols"]:
        """The (rows, cols) view of a tensor laid out like the parameter (the weight, its gradient, a mask)."""
        x = tensor if self.expert is None else tensor[self.expert]
        if self.kernel:
            x = x.movedim(1, -1).flatten(1)
        elif self.transposed:
            x = x.transpose(-1, -2)
        return x if self.rows is None else x[self.rows[0] : self.rows[1]]

    def read(self, model: nn.Module) -> Float[Tensor, "rows cols"]:
        """The weight as a detached `(rows, cols)` matrix (a view where the layout allows one)."""
        return self.view(self.tensor(model).detach())

    def write(self, model: nn.Module, value: Float[Tensor, "rows cols"]) -> None:
        """Store `value` into the parameter in place (tied names see it too).

        Raises:
            ShapeError: `value` has another shape.
        """
        self.put(self.tensor(model), value)

    @torch.no_grad()
    def put(self, tensor: Tensor, value: Float[Tensor, "rows cols"]) -> None:
        """Store the `(rows, cols)` matrix into a tensor laid out like the parameter, in place; inverse of `view`.

        Raises:
            ShapeError: `value` has another shape.
        """
        if tuple(value.shape) != self.shape:
            raise ShapeError(f"Site {self.name!r} is {self.shape}, cannot store a {tuple(value.shape)} matrix.")
        part = tensor if self.expert is None else tensor[self.expert]
        if self.kernel:
            lo, hi = self.rows or (0, part.shape[0])
            spatial = value.reshape(hi - lo, *part.shape[2:], part.shape[1]).movedim(-1, 1)
            part[lo:hi].copy_(spatial)
        else:
            view = part.transpose(-1, -2) if self.transposed else part
            (view if self.rows is None else view[self.rows[0] : self.rows[1]]).copy_(value)

    def inputs(self, x: Tensor) -> Float[Tensor, "tokens cols"]:
        """The site's inputs as `(tokens, cols)`: what is multiplied with the view, for statistics.

        `x` is what the owning module received: (..., in) for linear kinds, NC... for convolutions (unfolded by the caller).
        """
        return x.reshape(-1, x.shape[-1])


@dataclass(frozen=True)
class Member:
    """One slice family of a coupled unit: unit i owns indices [i * width, (i + 1) * width) of `axis` of `site`.

    With `repeats` > 1 the axis holds that many runs of units * width, and the unit owns those indices of each: an input
    channel has one column at every kernel position of a convolution. Where other units share the axis (concatenations), the
    first run begins at `start` and runs begin `period` indices apart (0: one after the other).
    """

    site: str
    axis: Literal["rows", "cols"]
    width: int = 1
    repeats: int = 1
    start: int = 0
    period: int = 0

    def owners(self, units: int, length: int) -> Int[Tensor, " length"]:
        """Which unit owns each index of the axis; -1 = none of them.

        Raises:
            ShapeError: the runs do not fit an axis of `length`.
        """
        run = units * self.width
        apart = self.period or run
        ends = self.start + (self.repeats - 1) * apart + run
        if apart < run or ends > length or (not self.start and not self.period and ends != length):
            raise ShapeError(
                f"{self.axis} of {self.site!r} are {length}, not {units} x {self.width}"
                + (f" x {self.repeats}" if self.repeats > 1 else "")
                + (f" from {self.start} on, {apart} apart." if self.start or self.period else ".")
            )
        owners = torch.full((length,), -1)
        for begin in range(self.start, self.start + self.repeats * apart, apart):
            owners[begin : begin + run] = torch.arange(units).repeat_interleave(self.width)
        return owners


@dataclass(frozen=True)
class Coupling:
    """Units that live or die together across several sites: channels, heads, FFN neurons.

    Attributes:
        name: unique name ("layers.0.ffn").
        kind: "neuron", "head" or "channel".
        units: how many units compete.
        members: where each unit's slices lie. Bias vectors follow the rows of their site.
        norms: modules that normalise or scale by channel, whose vectors (weight, bias, running statistics) hold one entry a
            channel; `site` is the name of the module and the axis "rows".
    """

    name: str
    kind: Literal["neuron", "head", "channel"]
    units: int
    members: tuple[Member, ...]
    norms: tuple[Member, ...] = ()

    def pool(self, scores: dict[str, Float[Tensor, "rows cols"]]) -> Float[Tensor, "1 units"]:
        """Unit scores: the sum of the member slices' scores, normalised by the number of entries a unit owns.

        Raises:
            ShapeError: a member's axis is not units * width.
        """
        total, entries = torch.zeros(self.units + 1, dtype=torch.float64), 0
        for m in self.members:
            s = scores[m.site]
            s = s if m.axis == "rows" else s.T
            total.index_add_(0, self._owners(m, s.shape[0]), s.double().sum(dim=1).cpu())
            entries += m.width * m.repeats * s.shape[1]
        return (total[:-1] / max(entries, 1)).unsqueeze(0)

    def spread(self, kept: Tensor, shapes: dict[str, Sequence[int]]) -> dict[str, Tensor]:
        """Boolean masks of every member site for the kept units `(units,)`; what no unit owns is kept."""
        masks: dict[str, Tensor] = {}
        for m in self.members:
            shape = tuple(shapes[m.site])
            along = self.along(m, kept, shape[m.axis == "cols"])
            mask = (along.unsqueeze(1) if m.axis == "rows" else along.unsqueeze(0)).expand(shape)
            masks[m.site] = masks[m.site] & mask if m.site in masks else mask.clone()
        return masks

    def along(self, member: Member, kept: Bool[Tensor, " units"], length: int) -> Bool[Tensor, " length"]:
        """Which indices of a member's axis stay; those that no unit owns do.

        Raises:
            ShapeError: the member's axis does not fit.
        """
        kept = kept.reshape(-1)
        owners = self._owners(member, length).to(kept.device)
        return torch.cat([kept, kept.new_ones(1)])[owners]

    def _owners(self, member: Member, length: int) -> Int[Tensor, " length"]:
        try:
            return member.owners(self.units, length) % (self.units + 1)  # -1 becomes the place after the last unit
        except ShapeError as error:
            raise ShapeError(f"Coupling {self.name!r}: {error}") from None
