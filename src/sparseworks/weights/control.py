"""Controls and repairs of a random start: what is left of a support when only its layer densities are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from sparseworks.core.errors import BudgetError, MissingStatError, ShapeError
from sparseworks.core.site import Coupling, Site
from sparseworks.core.support import Support


def shuffled(supports: Mapping[str, Support], seed: int = 0) -> dict[str, Support]:
    """As many kept entries in every site, at random places: the control of every support chosen before training.

    If training comes out the same, only the densities of the layers mattered.

    Source: Frankle et al., 2021, arXiv 2009.08576; Su et al., 2020, arXiv 2009.11094.
    """
    found = {}
    for number, (name, support) in enumerate(sorted(supports.items())):
        generator = torch.Generator().manual_seed(seed * 100_003 + number)
        mask = support.mask()
        found[name] = Support.from_mask(mask.flatten()[torch.randperm(mask.numel(), generator=generator)].view_as(mask))
    return found


def flowing(
    supports: Mapping[str, Support], sites: Sequence[Site], couplings: Sequence[Coupling], seed: int = 0
) -> dict[str, Support]:
    """Supports in which every unit has an input and an output, and every site as many entries as before.

    A unit of a coupling without a kept entry in the rows that make it, or in the columns that read it, gets one at a random
    place; a random entry goes for it that leaves no other row or column of the site empty.

    Source: Gadhikar et al., 2023, arXiv 2210.02412 (flow preservation). Departure: the count of a site stays.

    Args:
        couplings: of the model, see `sparseworks.stream.couplings`; only members of width 1 are looked at.

    Raises:
        MissingStatError: a coupling names a site without a support.
        BudgetError: a site keeps fewer entries than it has units to connect.
    """
    masks = {name: s.mask().clone() for name, s in supports.items()}
    generator = torch.Generator().manual_seed(seed)
    needs = {
        name: (torch.zeros(m.shape[0], dtype=torch.bool), torch.zeros(m.shape[1], dtype=torch.bool))
        for name, m in masks.items()
    }
    known = {s.name for s in sites}
    for coupling in couplings:
        for m in coupling.members:
            if m.site not in masks or m.site not in known:
                raise MissingStatError(f"Coupling {coupling.name!r} names site {m.site!r}, which has no support.")
            if m.width == 1 and m.repeats == 1:
                needs[m.site][0 if m.axis == "rows" else 1][:] = True
    for name, (rows, cols) in needs.items():
        _connect(name, masks[name], rows, cols, generator)
    return {name: Support.from_mask(mask) for name, mask in masks.items()}


def _connect(
    name: str,
    mask: Bool[Tensor, "rows cols"],
    rows: Bool[Tensor, " rows"],
    cols: Bool[Tensor, " cols"],
    generator: torch.Generator,
) -> None:
    """Fill the empty rows and columns that must not be empty, in place; a row and a column may share one entry."""
    added = torch.zeros_like(mask)
    empty_rows = _shuffled((rows & ~mask.any(1)).nonzero().flatten(), generator)
    empty_cols = _shuffled((cols & ~mask.any(0)).nonzero().flatten(), generator)
    for k in range(max(len(empty_rows), len(empty_cols))):
        r = int(empty_rows[k]) if k < len(empty_rows) else _any(mask.shape[0], generator)
        c = int(empty_cols[k]) if k < len(empty_cols) else _any(mask.shape[1], generator)
        added[r, c] = True
    mask |= added
    surplus = max(len(empty_rows), len(empty_cols))
    for flat in _shuffled((mask & ~added).flatten().nonzero().flatten(), generator).tolist():
        if not surplus:
            return
        r, c = divmod(flat, mask.shape[1])
        if (not rows[r] or int(mask[r].sum()) > 1) and (not cols[c] or int(mask[:, c].sum()) > 1):
            mask[r, c] = False
            surplus -= 1
    if surplus:
        raise BudgetError(
            f"Site {name!r} keeps too few entries to give each of its {mask.shape[0]} rows and {mask.shape[1]} columns one."
        )


def _shuffled(index: Tensor, generator: torch.Generator) -> Tensor:
    return index[torch.randperm(len(index), generator=generator)]


def _any(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(below, (1,), generator=generator))


def overlap(a: Mapping[str, Support], b: Mapping[str, Support]) -> float:
    """|A and B| / |A or B| over the entries of all sites (intersection over union), in [0, 1]; 1 for equal supports.

    Raises:
        ShapeError: the supports are of different sites.
    """
    if a.keys() != b.keys():
        raise ShapeError(f"The supports cover different sites: {sorted(a.keys() ^ b.keys())[:3]}.")
    both = sum((a[name] & b[name]).count for name in a)
    either = sum((a[name] | b[name]).count for name in a)
    return both / either if either else 1.0
