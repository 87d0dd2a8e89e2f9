"""Greedy shares within a block: entries go where the block's output suffers least, step after step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from sparseworks.core.allocator import ALLOCATORS, Allocator, Evidence
from sparseworks.core.budget import even_split
from sparseworks.core.errors import MissingStatError
from sparseworks.core.site import Site


@ALLOCATORS.register("block_greedy")
@dataclass(frozen=True)
class BlockGreedy(Allocator):
    """From all entries, `step` * mean site size at a time leave the site whose loss raises the block's output error least.

    Every block keeps the same share. The sequence passes every higher budget on its way. Where the same density for all sites
    ends with a smaller error, that is what stays. Where weights are pruned, the relative errors of the sites are summed instead.

    Attributes:
        step: entries of one step, over the mean size of the block's sites.
        tokens: calibration tokens on which errors are compared.

    Source: Liu et al., 2024, arXiv 2408.14690 (step 0.05). Departures: there the step is a share of the output projection's
    size, not of the mean, and the result is not compared with equal densities.
    """

    step: float = 0.05
    tokens: int = 2048
    uses_block: ClassVar[bool] = True
    uses_error: ClassVar[bool] = True

    @classmethod
    def example(cls) -> BlockGreedy:
        """Few steps."""
        return cls(step=0.25)

    def shares(self, sites: Sequence[Site], total: int, evidence: Evidence) -> dict[str, int]:
        """Counts block by block.

        Raises:
            MissingStatError: the output error of blocks is not known.
        """
        members: dict[int, list[Site]] = {}
        for s in sites:
            members.setdefault(evidence.block.get(s.name, -1), []).append(s)
        totals = even_split(total, [sum(s.size for s in m) for m in members.values()])
        counts = {}
        for (index, own), kept in zip(members.items(), totals, strict=True):
            even = dict(zip((s.name for s in own), even_split(kept, [s.size for s in own]), strict=True))
            counts |= even if index < 0 or len(own) == 1 else self._descend(own, even, kept, evidence)
        return counts

    def _descend(self, own: Sequence[Site], even: dict[str, int], total: int, evidence: Evidence) -> dict[str, int]:
        error = evidence.block_error or _summed(own, evidence)
        counts = {s.name: s.size for s in own}
        step = max(1, round(self.step * sum(counts.values()) / len(own)))
        best = 0.0
        while (left := sum(counts.values()) - total) > 0:
            tries = [counts | {name: held - min(step, held, left)} for name, held in counts.items() if held]
            errors = [error(t, self.tokens) for t in tries]
            best = min(errors)
            counts = tries[errors.index(best)]
        return even if error(even, self.tokens) < best else counts


def _summed(own: Sequence[Site], evidence: Evidence) -> Callable[[Mapping[str, int], int], float]:
    """Sum of the sites' own relative output errors, each found once."""
    alone = evidence.error
    if alone is None:
        raise MissingStatError(
            "The block_greedy allocator compares outputs, of whole blocks for sparse activations and of sites for weights; "
            "give calibration data."
        )
    sizes, known = {s.name: s.size for s in own}, {}

    def error(counts: Mapping[str, int], tokens: int) -> float:
        for pair in counts.items():
            if pair not in known:
                known[pair] = alone(pair[0], pair[1] / sizes[pair[0]])
        return sum(known[pair] for pair in counts.items())

    return error
