"""Groups: all coupled units of a model as one numbered list, with sums over what makes each of them, and factors on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil, gcd

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sparseworks.core.errors import ModelError
from sparseworks.core.site import Coupling, Site
from sparseworks.stream.sites import bias_name
from sparseworks.stream.slicing import member_sites


@dataclass(frozen=True)
class Part:
    """A parameter, or a part of one, whose entries along its first axis belong to groups.

    Attributes:
        take: gives the part of a tensor laid out like the parameter, a view with the groups' axis first.
        owners: number of the group of every index, or the number of groups where no group owns it.
        scale: the factor of a module that normalises by channel (gamma).
    """

    parameter: nn.Parameter
    take: Callable[[Tensor], Tensor]
    owners: Int[Tensor, " length"]
    scale: bool = False


class Groups:
    """What makes each unit of `couplings`: rows of layers with their biases, and entries of norms. Groups share no entry.

    A group at zero passes zeros on (through activations with f(0) = 0), so the columns that read it play no part here.

    Attributes:
        couplings: their units, one after the other, are the groups.
        total: how many groups there are.
    """

    def __init__(self, model: nn.Module, couplings: Sequence[Coupling]):
        """Find the parameters.

        Raises:
            ModelError: there are no couplings, or parameters are sharded.
        """
        if not couplings:
            raise ModelError(
                "There are no coupled units: give `couplings`, for networks of convolutions those of "
                "`sparseworks.stream.dependency_groups(model, example)`."
            )
        self.couplings = tuple(couplings)
        starts = [0]
        for c in self.couplings:
            starts.append(starts[-1] + c.units)
        self.total = starts[-1]
        self._starts = starts
        find = member_sites(model)
        self.parts = [
            part
            for c, start in zip(self.couplings, starts, strict=False)
            for part in _parts(model, c, find, start, self.total)
        ]
        if any(isinstance(p.parameter, DTensor) for p in self.parts):
            raise ModelError(
                "Parameters are sharded: groups of whole units need them whole; train data-parallel (DDP)."
            )

    def slices(self) -> Iterator[tuple[Coupling, slice]]:
        """Every coupling and where its units lie among the groups."""
        for c, start in zip(self.couplings, self._starts, strict=False):
            yield c, slice(start, start + c.units)

    def by_coupling(self, values: Tensor) -> dict[str, Tensor]:
        """Values of groups -> name of the coupling -> values of its units; what `slice_units` takes."""
        return {c.name: values[at].cpu() for c, at in self.slices()}

    @torch.no_grad()
    def sum(self, of: Callable[[nn.Parameter], Tensor], *, scales: bool = False) -> Float[Tensor, " groups"]:
        """Sum over the entries of every group of a tensor laid out like the parameter; `scales`: over gammas alone."""
        total = torch.zeros(self.total + 1, dtype=torch.float64, device=self.device)
        for p in self.parts:
            if p.scale or not scales:
                entries = p.take(of(p.parameter)).flatten(1).double().sum(dim=1)
                total.index_add_(0, p.owners.to(total.device), entries.to(total.device))
        return total[:-1]

    @torch.no_grad()
    def scale(self, factors: Float[Tensor, " groups"]) -> None:
        """Multiply every group by its factor, in place."""
        padded = torch.cat([factors, factors.new_ones(1)])
        for p in self.parts:
            view = p.take(p.parameter.data)
            view.mul_(padded[p.owners.to(padded.device)].to(view).reshape(-1, *[1] * (view.dim() - 1)))

    def spread(self, values: Float[Tensor, " groups"], part: Part) -> Float[Tensor, " length"]:
        """The value of the owner of every index of a part; 0 where there is none."""
        return torch.cat([values, values.new_zeros(1)])[part.owners.to(values.device)]

    def weakest(
        self,
        scores: Float[Tensor, " groups"],
        count: int,
        *,
        multiple: int = 1,
        floor: float = 0.0,
        gone: Bool[Tensor, " groups"] | None = None,
    ) -> Bool[Tensor, " groups"]:
        """The `count` groups of the lowest scores over all couplings, among them all that are `gone` already.

        Couplings keep multiples of `multiple` (or of its greatest common divisor with their units), at least one such and at
        least the share `floor` of their units. Where multiples differ, `count` may be met from below. Ties go to the earlier
        group.
        """
        scores = scores.double().cpu().clone()
        if gone is not None:
            scores[gone.cpu()] = -torch.inf
        packs = []
        for c, at in self.slices():
            step = gcd(multiple, c.units)
            order = scores[at].argsort(stable=True)
            for i in range(0, c.units - _least(c.units, step, floor), step):
                pack = order[i : i + step] + at.start
                packs.append((float(scores[pack].mean()), pack))
        chosen, left = torch.zeros(self.total, dtype=torch.bool), count
        for _, pack in sorted(packs, key=lambda p: p[0]):
            if len(pack) <= left:
                chosen[pack] = True
                left -= len(pack)
        return chosen.to(self.device)

    def removable(self, floor: float = 0.0, *, multiple: int = 1) -> int:
        """How many groups can go at most when every coupling keeps what `weakest` lets it keep."""
        return sum(c.units - _least(c.units, gcd(multiple, c.units), floor) for c in self.couplings)

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return self.parts[0].parameter.device


def _least(units: int, step: int, floor: float) -> int:
    """Units that a coupling keeps: the share `floor` of them rounded up to steps, at least one step."""
    return max(1, ceil(floor * units / step - 1e-9)) * step


def _parts(model: nn.Module, coupling: Coupling, find: Callable[[str], Site], start: int, total: int) -> Iterator[Part]:
    for m in coupling.members:
        if m.axis == "cols":
            continue
        site = find(m.site)
        parameter = site.tensor(model)
        owners = _numbered(m.owners(coupling.units, site.shape[0]), start, total)
        yield Part(parameter, _rows_of(site), owners)
        name = bias_name(model, site)
        if name is not None:
            yield Part(model.get_parameter(name), _bias_of(site), owners)
    for m in coupling.norms:
        for name, parameter in model.get_submodule(m.site).named_parameters(recurse=False):
            owners = _numbered(m.owners(coupling.units, len(parameter)), start, total)
            yield Part(parameter, lambda t: t.unsqueeze(1), owners, scale=name == "weight")


def _rows_of(site: Site) -> Callable[[Tensor], Tensor]:
    def take(tensor: Tensor) -> Tensor:
        x = tensor if site.expert is None else tensor[site.expert]
        x = x.transpose(-1, -2) if site.transposed else x
        return x if site.rows is None else x[site.rows[0] : site.rows[1]]

    return take


def _bias_of(site: Site) -> Callable[[Tensor], Tensor]:
    take = _rows_of(replace(site, transposed=False))
    return lambda t: take(t).unsqueeze(-1)


def _numbered(owners: Int[Tensor, " length"], start: int, total: int) -> Int[Tensor, " length"]:
    return torch.where(owners < 0, total, owners + start)
