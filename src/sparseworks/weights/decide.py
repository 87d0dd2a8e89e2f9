"""What is decided before any weight changes: statistics of the dense model, integer counts per site, global supports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sparseworks.core.allocator import Evidence
from sparseworks.core.budget import Cost, Count
from sparseworks.core.errors import BudgetError, ModelError, PatternError
from sparseworks.core.method import Method
from sparseworks.core.pattern import Pattern, from_groups, to_groups
from sparseworks.core.schedule import Rounds
from sparseworks.core.select import select, select_across
from sparseworks.core.site import Site
from sparseworks.core.solver import Select
from sparseworks.core.stats import InputMoments, Stat, Stats
from sparseworks.stream import Block, InMemory, Residency, block_of, gather, gather_gradients, held
from sparseworks.stream.gradients import SOURCES, Loss
from sparseworks.weights.matrix import Solved, solve_matrix
from sparseworks.weights.trials import Trials

Needs = dict[str, frozenset[type[Stat]]]
FORWARD = ("input", "output")


@dataclass
class Job:
    """What a pruning run is about, fixed from its start.

    Attributes:
        groups: methods and the sites they prune, as the recipe assigns them.
        given: statistics that the caller gathered (of training), site by site.
        folder: where the run is kept.
    """

    model: nn.Module
    groups: Sequence[tuple[Method, list[Site]]]
    blocks: Sequence[Block]
    batches: Sequence[Any]
    loss: Loss | None = None
    cost: Cost | None = None
    given: Mapping[str, Stats] = field(default_factory=dict)
    residency: Residency | None = None
    folder: Path | None = None

    @property
    def sites(self) -> list[Site]:
        """All sites that are pruned, group after group."""
        return [s for _, members in self.groups for s in members]

    @property
    def methods(self) -> dict[str, Method]:
        """Site name -> its method."""
        return {s.name: method for method, members in self.groups for s in members}

    def weight(self, site: Site) -> Float[Tensor, "rows cols"]:
        """The site's weight in float32 (float64 stays), wherever it lies."""
        with self.reading(site) as weight:
            return _widened(weight)

    @contextmanager
    def reading(self, site: Site) -> Iterator[Float[Tensor, "rows cols"]]:
        """The site's weight as it is stored, in memory while the context lasts."""
        index = block_of(site.parameter, self.blocks)
        with held(self.residency or InMemory(self.model), self.blocks[index] if index >= 0 else None):
            yield site.read(self.model)


@dataclass
class Decision:
    """Counts for sites whose budget was shared out, supports for sites that were selected together."""

    counts: dict[str, int] = field(default_factory=dict)
    masks: dict[str, Bool[Tensor, "rows cols"]] = field(default_factory=dict)


def streamed_needs(method: Method) -> frozenset[type[Stat]]:
    """Statistics gathered block by block while pruning, on inputs that come from the pruned blocks before."""
    needs = method.solve.needs if _fixed_support(method) else method.needs
    return frozenset(k for k in needs if k.source in FORWARD)


def evidence_needs(method: Method) -> frozenset[type[Stat]]:
    """Statistics of the dense model: for the allocator, for selection over all sites, and everything fed by gradients."""
    whole = method.score.needs if _whole_model(method) else frozenset()
    errors = frozenset({InputMoments}) if method.allocate.uses_error and not _data_free(method) else frozenset()
    backward = frozenset(k for k in method.needs if k.source not in FORWARD)
    return method.evidence_needs | whole | errors | backward


def gather_evidence(job: Job, needs: Needs) -> dict[str, Stats]:
    """Statistics of the model as it is now, forward and backward, beside what the caller gave."""
    found = {s.name: [*job.given.get(s.name, ())] for s in job.sites}
    for sources, run in ((FORWARD, _forward), (SOURCES, _backward)):
        wanted = {name: frozenset(k for k in kinds if k.source in sources) for name, kinds in needs.items()}
        sites = [s for s in job.sites if wanted.get(s.name)]
        if sites:
            for name, stats in run(job, sites, wanted).items():
                found[name].extend(stats)
    return {name: Stats(stats, site=name) for name, stats in found.items()}


def decide(job: Job, evidence: Mapping[str, Stats], tick: Callable[[], None] = lambda: None) -> Decision:
    """Counts and global supports of every group of sites, integers once and for all."""
    decision = Decision()
    for method, sites in job.groups:
        if isinstance(method.schedule, Rounds) and method.schedule.count > 1:
            decision.masks |= _in_rounds(job, method, sites, tick)
        elif method.pattern.across:
            decision.masks |= across(method.pattern, _scores(job, method, sites, evidence), _total(job, method, sites))
        elif (method.form is not None or method.pattern.fixed_density is None) and not method.budget.needs_scores:
            with _evidence(job, method, sites, evidence) as seen:
                decision.counts |= method.allocate(sites, method.budget, cost=job.cost, evidence=seen)
    return decision


# -- one group of sites -------------------------------------------------------------------------------------------


@contextmanager
def _evidence(job: Job, method: Method, sites: Sequence[Site], stats: Mapping[str, Stats]) -> Iterator[Evidence]:
    by_name = {s.name: s for s in sites}

    def solved(name: str, weight: Tensor, count: int) -> Solved:
        return solve_matrix(_widened(weight), stats[name], method, count=count)

    evidence = Evidence(
        weight=lambda name: job.weight(by_name[name]),
        stats={s.name: stats[s.name] for s in sites},
        score=method.score,
        block={s.name: block_of(s.parameter, job.blocks) for s in sites},
        error=lambda n, d: solved(n, job.weight(by_name[n]), round(d * by_name[n].size)).error,
    )
    if not method.allocate.uses_trials:
        yield evidence
        return
    if not isinstance(job.residency or InMemory(job.model), InMemory):
        raise ModelError(f"Method {method.name!r} tries variants of the whole model, which must be loaded into memory.")
    folder = job.folder / "levels" if job.folder else None
    with Trials(job.model, sites, lambda n, w, count: solved(n, w, count).weight, job.batches, folder) as trials:
        yield replace(evidence, trial=trials)


def _scores(job: Job, method: Method, sites: Sequence[Site], stats: Mapping[str, Stats]) -> dict[str, Tensor]:
    return {s.name: method.score(job.weight(s), stats.get(s.name, Stats(site=s.name))) for s in sites}


def _total(job: Job, method: Method, sites: Sequence[Site]) -> int:
    if method.budget.needs_scores:
        raise BudgetError(f"Method {method.name!r}: {method.budget} counts within groups, not over a whole model.")
    return method.budget.total({s.name: s.size for s in sites}, job.cost)


def across(pattern: Pattern, scores: Mapping[str, Tensor], total: int) -> dict[str, Bool[Tensor, "rows cols"]]:
    """Units of all sites compete with one another; a unit's score is the sum over its entries."""
    sizes = {pattern.unit.sizes(s.shape) for s in scores.values()}
    if len(sizes) > 1:
        raise PatternError(
            f"Pattern {pattern} has units of {len(sizes)} sizes on these sites; only equal units can compete globally. "
            f"Use a recipe with one rule per shape."
        )
    rows, cols = sizes.pop()
    units = {name: to_groups(s, pattern.unit).sum(dim=-1) for name, s in scores.items()}
    kept = select_across(list(units.values()), round(total / (rows * cols)))
    return {
        name: from_groups(k.unsqueeze(-1).expand(*k.shape, rows * cols), pattern.unit, scores[name].shape)
        for name, k in zip(units, kept, strict=True)
    }


def _in_rounds(
    job: Job, method: Method, sites: Sequence[Site], tick: Callable[[], None]
) -> dict[str, Bool[Tensor, "rows cols"]]:
    """Prune a little, measure the scores of the pruned model anew, prune more; weights are put back at the end."""
    assert isinstance(method.schedule, Rounds)
    size, total = sum(s.size for s in sites), _total(job, method, sites)
    originals = {s.name: s.read(job.model).clone() for s in sites}
    masks = {s.name: torch.ones(s.shape, dtype=torch.bool, device=originals[s.name].device) for s in sites}
    for left in method.schedule.shares(total / size):
        masks = shrunk(job, method, sites, masks, max(total, round(left * size)))
        for s in sites:
            s.write(job.model, torch.where(masks[s.name], originals[s.name], 0.0))
        tick()
    for s in sites:
        s.write(job.model, originals[s.name])
    return masks


def shrunk(
    job: Job, method: Method, sites: Sequence[Site], masks: Mapping[str, Tensor], total: int
) -> dict[str, Bool[Tensor, "rows cols"]]:
    """The best `total` entries among those of `masks`, by scores of the model as it is now."""
    stats = gather_evidence(job, {s.name: method.score.needs for s in sites})
    scores = _scores(job, method, sites, stats)
    return _round(method, sites, {n: score.masked_fill(~masks[n], -torch.inf) for n, score in scores.items()}, total)


def _round(
    method: Method, sites: Sequence[Site], scores: Mapping[str, Tensor], total: int
) -> dict[str, Bool[Tensor, "rows cols"]]:
    if method.pattern.across:
        return across(method.pattern, scores, total)
    evidence = Evidence(weight=lambda name: scores[name])
    counts = method.allocate(sites, Count(total), evidence=evidence)
    return {
        s.name: select(scores[s.name], method.pattern, method.pattern.counts(s.shape, counts[s.name]))
        .mask()
        .to(scores[s.name].device)
        for s in sites
    }


def _whole_model(method: Method) -> bool:
    return method.pattern.across and not isinstance(method.schedule, Rounds)


def _fixed_support(method: Method) -> bool:
    """Whether the support is chosen before streaming and the solver only fixes values."""
    chosen = method.pattern.across or isinstance(method.schedule, Rounds)
    return chosen and isinstance(method.solve, Select)


def _data_free(method: Method) -> bool:
    return not (method.needs | method.allocate.needs)


def _forward(job: Job, sites: Sequence[Site], wanted: Needs) -> dict[str, Stats]:
    return gather(job.model, sites, wanted, job.batches)


def _backward(job: Job, sites: Sequence[Site], wanted: Needs) -> dict[str, Stats]:
    return gather_gradients(job.model, sites, wanted, job.batches, job.loss)


def _widened(w: Tensor) -> Tensor:
    return w.clone() if w.dtype == torch.float64 else w.float().clone() if w.dtype == torch.float32 else w.float()
