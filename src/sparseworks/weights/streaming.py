"""The streaming loop: gather a block's statistics on current hidden states, solve its sites, pass on its pruned outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from sparseworks.core.errors import (
    BudgetError,
    CalibrationError,
    MissingStatError,
    ModelError,
    NonFiniteError,
    PatternError,
    ShapeError,
)
from sparseworks.core.site import Site
from sparseworks.core.stats import Stats
from sparseworks.core.support import Support
from sparseworks.stream import Block, InMemory, Memory, block_of, capture, chains, gather, held, predict, replay
from sparseworks.stream.activations import Activations
from sparseworks.stream.gather import Gatherer, Unshared
from sparseworks.stream.replay import Capture
from sparseworks.stream.sites import bias_of
from sparseworks.weights.checkpoint import Workdir
from sparseworks.weights.decide import FORWARD, Decision, Job, decide, evidence_needs, gather_evidence, streamed_needs
from sparseworks.weights.matrix import solve_matrix, stripe
from sparseworks.weights.show import Shown

_ABOUT_A_SITE = (ShapeError, NonFiniteError, PatternError, BudgetError, MissingStatError, CalibrationError)


@dataclass(frozen=True)
class SiteRow:
    """What became of one site.

    Attributes:
        pattern: text of the pattern.
        count: kept entries.
        relative_error: see `sparseworks.weights.matrix.relative_error`.
    """

    name: str
    shape: tuple[int, int]
    pattern: str
    count: int
    density: float
    relative_error: float


@dataclass(frozen=True)
class Pruned:
    """Outcome of `prune`: supports and rows by site, in order of pruning, and what memory was predicted."""

    supports: dict[str, Support]
    rows: list[SiteRow]
    memory: Memory


@dataclass(frozen=True)
class Unit:
    """Sites whose statistics are gathered together: one block, or all sites outside blocks on one side of them."""

    index: int
    name: str
    sites: list[Site]
    block: Block | None = None


@dataclass
class Run:
    """One pruning run and what it has done so far."""

    job: Job
    work: Workdir | None
    device: torch.device | None
    memory_limit: int | None
    shown: Shown
    supports: dict[str, Support] = field(default_factory=dict)
    rows: list[SiteRow] = field(default_factory=list)
    doing: ClassVar[str] = "prune"

    def go(self) -> Pruned:
        """Decide, then unit after unit."""
        job = self.job
        self.methods, self.residency = job.methods, job.residency or InMemory(job.model)
        self.needs = {s.name: streamed_needs(self.methods[s.name]) for s in job.sites}
        before = {s.name: evidence_needs(self.methods[s.name]) for s in job.sites}
        memory = predict(
            job.model, job.sites, self.needs, job.blocks, job.batches, evidence=before,
            resident=self.residency.resident_bytes, together=_together(job),
        )  # fmt: skip
        self.order = list(in_order(job))
        self._announce(memory)
        with self.shown.bar(self.doing, len(job.sites)) as self.tick:
            self.decision, self.evidence = self._decide(before)
            for chain in self._chains():
                self._chain(chain, memory)
        order = {site.name: i for i, site in enumerate(self.order)}
        self.rows.sort(key=lambda row: order[row.name])
        return Pruned({name: self.supports[name] for name in order if name in self.supports}, self.rows, memory)

    def _announce(self, memory: Memory) -> None:
        self.shown.say(f"{self.doing.removesuffix('e')}ing {len(self.job.sites)} sites: {memory}")
        fixed = memory.total - memory.activations
        if self.memory_limit is not None and fixed > self.memory_limit:
            self.shown.say(f"weights and statistics alone need {fixed:,} bytes, above the limit; trying all the same")

    def _decide(self, needs: Mapping[str, Any]) -> tuple[Decision, dict[str, Stats]]:
        """Counts, global supports, and the statistics from backward passes that scores will ask for."""
        decision = self.work.load_decision() if self.work else None
        if decision is not None:  # scores still need what only the dense model tells
            needs = {name: frozenset(k for k in kinds if k.source not in FORWARD) for name, kinds in needs.items()}
        evidence = gather_evidence(self.job, dict(needs))
        if decision is None:
            decision = decide(self.job, evidence)
            if self.work:
                self.work.save_decision(decision)
        kept = {n: Stats([s for s in stats if s.source not in FORWARD], site=n) for n, stats in evidence.items()}
        return decision, kept

    def _chains(self) -> list[list[Unit]]:
        """Sites outside blocks that come first, chains of blocks, sites outside blocks that come after."""
        job = self.job
        streamed = any(self.needs.values()) and bool(job.blocks[0].name)
        linked = chains(job.model, job.blocks, job.batches[0]) if streamed else [[b] for b in job.blocks if b.name]
        chained = {b.name for chain in linked for b in chain}
        inside = {b.index: [] for b in job.blocks if b.name in chained}
        outside: list[list[Site]] = [[], []]
        for site in self.order:
            index = block_of(site.parameter, job.blocks)
            if index in inside:
                inside[index].append(site)
            else:
                outside[any(inside.values())].append(site)
        found: list[list[Unit]] = [[Unit(0, "first layers", outside[0])]]
        for chain in linked:
            found.append([Unit(1 + b.index, b.name, inside[b.index], b) for b in chain])
        return [*found, [Unit(1 + len(job.blocks), "last layers", outside[1])]]

    def _chain(self, chain: list[Unit], memory: Memory) -> None:
        done = [u for u in chain if self._restore(u, put=False)]
        hungry = [u for u in chain if any(self.needs[s.name] for s in u.sites) and u not in done]
        taken = None
        if hungry and hungry[-1].block is not None:
            # Arguments are recorded while the chain is still dense, also on a resumed run: both must see the same.
            upto = [u.block for u in chain[: chain.index(hungry[-1]) + 1] if u.block]
            taken = capture(self.job.model, upto, self.job.batches, self._store(memory))
        for unit in chain:
            with held(self.residency, unit.block, changed=bool(unit.sites)):
                if unit not in done or not self._restore(unit):
                    self._solve(unit, taken)
                if taken is not None and unit.block in taken.chain[:-1]:
                    self._move(unit.block, taken, advance=True)

    def _store(self, memory: Memory) -> Activations:
        limit = self.memory_limit
        if limit is not None:
            limit = max(limit - (memory.total - memory.activations), 0)
        return Activations(limit=limit, folder=self.work.folder / "hidden" if self.work else None)

    def _restore(self, unit: Unit, *, put: bool = True) -> bool:
        """Whether the unit was finished by an earlier run; with `put` its weights go into the model."""
        if not put or self.work is None:
            return self.work is not None and self.work.has_unit(unit.index)
        found = self.work.load_unit(unit.index, self.job.model, unit.sites)
        if found is None:
            return False
        supports, rows = found
        self.supports |= self.residency.keep(unit.name.replace(" ", "-"), supports)
        self.rows += [SiteRow(**{**r, "shape": tuple(r["shape"])}) for r in rows]
        self.tick(len(unit.sites), unit.name)
        return True

    def _solve(self, unit: Unit, taken: Capture | None) -> None:
        if not unit.sites:
            return
        stats, rows = self._gather(unit, taken), []
        with placed(unit.block.module(self.job.model) if unit.block else None, self.device):
            for site in unit.sites:
                rows.append(self._solve_site(site, stats.pop(site.name, Stats(site=site.name))))  # and let go of them
                self.tick(1, site.name)
        if self.work:
            self.work.save_unit(unit.index, self.job.model, unit.sites, self.supports, [asdict(r) for r in rows])
        found = {s.name: self.supports[s.name] for s in unit.sites if s.name in self.supports}
        self.supports |= self.residency.keep(unit.name.replace(" ", "-"), found)
        self.rows += rows

    def _solve_site(self, site: Site, streamed: Stats) -> SiteRow:
        method, weight = self.methods[site.name], site.read(self.job.model)
        stats = Stats([*streamed, *self.evidence[site.name]], site=site.name)
        mask, count = self.decision.masks.get(site.name), self.decision.counts.get(site.name)
        with about(site):
            solved = solve_matrix(weight, stats, method, count=count, mask=mask, in_place=True)
        site.write(self.job.model, solved.weight)
        if solved.bias is not None:
            bias = bias_of(self.job.model, site)
            if bias is None:
                raise ModelError(
                    f"Site {site.name!r} has no bias for the repair to correct; choose another, or skip it."
                )
            bias += solved.bias.to(bias)
        self.supports[site.name] = solved.support
        kept = solved.support
        return SiteRow(site.name, site.shape, str(method.pattern), kept.count, kept.density, solved.error)

    def _gather(self, unit: Unit, taken: Capture | None) -> dict[str, Stats]:
        fed = [s for s in unit.sites if self.needs[s.name]]
        if not fed:
            return {}
        if unit.block is None:
            return gather(self.job.model, fed, self.needs, self.job.batches)
        assert taken is not None
        for share in (True, False):
            gatherer = Gatherer(self.job.model, fed, self.needs, share=share)
            try:
                with gatherer:
                    self._move(unit.block, taken, advance=False, gatherer=gatherer)
                return gatherer.result()
            except Unshared:
                continue
        raise AssertionError("unreachable: without sharing nothing can be unshared")

    def _move(self, block: Block, taken: Capture, *, advance: bool, gatherer: Gatherer | None = None) -> None:
        begin = (lambda i, piece: gatherer.begin(self.job.batches[i], piece)) if gatherer else None
        with placed(block.module(self.job.model), self.device):
            replay(
                self.job.model, block, taken, advance=advance, before=begin, again=gatherer.reset if gatherer else None
            )


# -- pieces ---------------------------------------------------------------------------------------------------------


def in_order(job: Job) -> Iterator[Site]:
    """Sites in order of registration in the model."""
    place = {name: i for i, (name, _) in enumerate(job.model.named_parameters())}
    return iter(sorted(job.sites, key=lambda s: place.get(s.parameter, len(place))))


def _together(job: Job) -> dict[str, int]:
    """Entries that are solved together of sites that are solved some rows at a time."""
    found = {s.name: (stripe(s.shape, method), s.shape[1]) for method, members in job.groups for s in members}
    return {name: rows * cols for name, (rows, cols) in found.items() if rows}


@contextmanager
def about(site: Site) -> Iterator[None]:
    """Errors inside name the site."""
    try:
        yield
    except _ABOUT_A_SITE as error:
        named = str(error) if site.name in str(error) else f"Site {site.name!r}: {error}"
        raise type(error)(named) from error


@contextmanager
def placed(module: nn.Module | None, device: torch.device | None) -> Iterator[None]:
    """The module on `device` inside, and back where it was afterwards."""
    home = next((p.device for p in module.parameters()), device) if module is not None else device
    if module is None or device is None or home == device:
        yield
        return
    module.to(device)
    try:
        yield
    finally:
        module.to(home)
