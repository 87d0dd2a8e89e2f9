"""Make the activations of a finished model sparse: targets, calibration, shares, rules, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from sparseworks.activations.calibrate import stream
from sparseworks.activations.method import ActivationMethod
from sparseworks.activations.variants import BlockError, Run, Target, Variants
from sparseworks.core.allocator import Evidence
from sparseworks.core.budget import Count, Threshold
from sparseworks.core.errors import BudgetError, CalibrationError, ModelError
from sparseworks.core.site import Site
from sparseworks.core.stats import Stats
from sparseworks.core.support import Support
from sparseworks.exec.masked import InputRule, MaskedLinear, MaskedOutput
from sparseworks.stream import block_of, blocks
from sparseworks.stream.modes import evaluating
from sparseworks.stream.tree import call


@dataclass(frozen=True)
class ActivationRow:
    """One masked vector.

    Attributes:
        size: weights that a token without a mask reads for it.
        density: share of them in the budget.
        read: share of them that tokens of the calibration data read, the path of dropped inputs included; None without data.
        rank: of that path.
        executed: microseconds of the skipping kernel over those of the dense layer (below 1 is faster), or None where it
            was not measured; where it is not below 1 the layer is dense again.
    """

    name: str
    size: int
    density: float
    rule: InputRule
    read: float | None = None
    rank: int = 0
    executed: float | None = None


@dataclass(frozen=True)
class SparseActivations:
    """What `sparsify_activations` did to a model.

    Attributes:
        rows: one for each masked vector, in order of registration.
    """

    rows: tuple[ActivationRow, ...]
    method: ActivationMethod = field(repr=False)

    @property
    def sparsity(self) -> float:
        """1 - weights read / weights, over all rows on the calibration data (the budget where there were none)."""
        read = sum(r.size * (r.density if r.read is None else r.read) for r in self.rows)
        return 1.0 - read / max(sum(r.size for r in self.rows), 1)


def sparsify_activations(
    model: nn.Module,
    method: ActivationMethod | str,
    data: Iterable[Any] | None = None,
    *,
    density: float | None = None,
    sites: Sequence[Site] | None = None,
    skip: Sequence[str] = (),
    execute: bool = False,
    supports: Mapping[str, Support] | None = None,
    memory_limit: int | None = None,
) -> SparseActivations:
    """Mask what layers of `model` see, in place: layers become `MaskedLinear`, which `save` and `load` know.

    One pass over the data, block by block, gathers histograms of the scores; shares of the budget become thresholds or counts.
    Weights may be sparse already, and stay as they are.

    Args:
        model: any torch module with linear layers; masks that are there are replaced.
        method: a method or its name.
        data: calibration batches, a few thousand tokens; not needed for counts of equal size.
        density: share of the weights that a token reads, instead of the method's.
        sites: what may be masked; default: all that `sparseworks.sites(model)` lists.
        skip: shell-style patterns of names that stay dense.
        execute: put kernels that skip weights in the place of layers where they are measured to be faster than dense for one
            token; the others become dense again.
        supports: kept weights of sites, for kernels that skip both.
        memory_limit: bytes of hidden states in main memory; the rest lies in memory-mapped files.

    Raises:
        ModelError: nothing can be masked.
        CalibrationError: data are needed and missing, or a score never exceeds zero.
        BudgetError: a budget out of range.
    """
    chosen = ActivationMethod.of(method)
    chosen = chosen if density is None else chosen.with_(density=density)
    batches = list(data) if data is not None else []
    unmask(model)
    with evaluating(model):
        run = _Run(model, chosen, batches, sites, skip, memory_limit)
        rows = run.go()
    done = SparseActivations(tuple(rows), chosen)
    if execute:
        from sparseworks.activations.execute import executed

        done = executed(model, done, supports or {})
    return done


def unmask(model: nn.Module) -> None:
    """Take masks out of the model in place: linear layers see all of their inputs again."""
    for path, module in list(model.named_modules()):
        if isinstance(module, MaskedLinear):
            model.set_submodule(path, module.dense())
        elif isinstance(module, MaskedOutput):
            model.set_submodule(path, module.function)


@torch.no_grad()
def read_shares(model: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
    """Share of non-zero entries that each masked layer lets pass, over the tokens to which its rule applies.

    Raises:
        CalibrationError: no tokens.
    """
    held: dict[str, list[int]] = {}

    def count(name: str, kept: Tensor, whole: int) -> None:
        kept = kept[..., whole:, :] if whole else kept
        own = held.setdefault(name, [0, 0])
        own[0], own[1] = own[0] + int(kept.count_nonzero()), own[1] + kept.numel()

    def hook(name: str) -> Any:
        def take(module: nn.Module, args: tuple, output: Tensor) -> None:
            assert isinstance(module, MaskedLinear | MaskedOutput)
            kept = module.kept(args[0]) if isinstance(module, MaskedLinear) else output
            count(name, kept, module.rule.whole_tokens(kept))

        return take

    masked = [(n, m) for n, m in model.named_modules() if isinstance(m, MaskedLinear | MaskedOutput)]
    handles = [m.register_forward_hook(hook(n)) for n, m in masked]
    try:
        with evaluating(model):
            for batch in batches:
                call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    if masked and not held:
        raise CalibrationError("No token reached a masked layer, so what they read cannot be counted.")
    return {name: kept / max(total, 1) for name, (kept, total) in held.items()}


class _Run:
    """One call: everything it holds fixed, and the steps."""

    def __init__(
        self,
        model: nn.Module,
        method: ActivationMethod,
        batches: list[Any],
        sites: Sequence[Site] | None,
        skip: Sequence[str],
        memory_limit: int | None,
    ):
        self.model, self.method, self.batches, self.memory_limit = model, method, batches, memory_limit
        orthogonal = method.transform(model) if method.transform is not None else ()
        listed = method.place.targets(model, sites)
        self.sites = [s for s in listed if not any(fnmatchcase(s.name, p) for p in skip)]
        if not self.sites:
            raise ModelError("Nothing is left to be masked: `skip` leaves out every layer.")
        self.variants = Variants(
            model, [self._target(s, s.name in orthogonal) for s in self.sites], method.cut, batches
        )
        self.counts: dict[str, int] = {}
        self._streamed = self._given = 0

    def _target(self, site: Site, orthogonal: bool) -> Target:
        score = self.method.score
        if self.method.transform is not None:
            score = self.method.transform.score(score, orthogonal)
        linear = self.model.get_submodule(site.module)
        factor = score.factor(linear.weight) if isinstance(linear, nn.Linear) else None
        return Target.of(site, self.method.place, factor)

    def go(self) -> list[ActivationRow]:
        """Shares, rules, rows."""
        budget, names = self.method.budget, [s.name for s in self.sites]
        if isinstance(budget, Threshold):
            self.variants.install(names)
            for name in names:
                self.variants.layer(name).rule = InputRule(threshold=budget.value, prompt=self.method.cut.prompt)
            return self._rows(dict.fromkeys(names, 1.0))
        densities = self._densities()
        self.variants.install(names)
        if self.method.repair is not None:
            self.method.repair(self.variants, self.sites, densities)
        else:
            self.variants.set(densities)
        return self._rows(densities)

    def _densities(self) -> dict[str, float]:
        method, allocate = self.method, self.method.allocate
        if method.budget.needs_scores:
            raise BudgetError(f"Method {method.name!r}: {method.budget} is not a budget of activations.")
        fixed = isinstance(method.budget, Count)
        wants = self._calibrated or (not fixed and (allocate.uses_block or allocate.uses_trials or allocate.needs))
        if wants and not self.batches:
            raise CalibrationError(f"Method {method.name!r} is calibrated: give `data`, a few thousand tokens.")
        sizes = {s.name: s.size for s in self.sites}
        self.total = 0 if fixed else method.budget.total(sizes)
        self.stats: dict[str, Stats] = {}
        if wants:
            self.kinds = {n: self.method.place.histogram.of(t.factor) for n, t in self.variants.targets.items()}
            needs = {n: frozenset({k}) | allocate.needs for n, k in self.kinds.items()}
            stream(self.model, self.sites, needs, self.batches, self._visit, memory_limit=self.memory_limit)
        if isinstance(method.budget, Count):
            inputs = {n: t.inputs for n, t in self.variants.targets.items()}
            return {n: min(1.0, method.budget.value / i) for n, i in inputs.items()}
        if not self.counts:
            self.counts = self._allocate_all()
        return {n: self.counts[n] / size if size else 1.0 for n, size in sizes.items()}

    @property
    def _calibrated(self) -> bool:
        return self.method.cut.calibrated or self.method.repair is not None

    def _visit(self, sites: Sequence[Site], stats: Mapping[str, Stats], run: Run | None) -> None:
        """Histograms of a block, and its counts where the allocator looks at blocks."""
        self.stats |= stats
        for s in sites:
            self.variants.histograms[s.name] = stats[s.name][self.kinds[s.name]]
        if not self.method.allocate.uses_block or isinstance(self.method.budget, Count):
            return
        self._streamed += sum(s.size for s in sites)
        own = round(self.total * self._streamed / sum(s.size for s in self.sites)) - self._given
        self._given += own
        names = [s.name for s in sites]
        self.variants.install(names)
        error = BlockError(self.variants, sites, run, len(self.batches)) if run else None
        evidence = self._evidence(block=dict.fromkeys(names, 0 if run else -1), block_error=error)
        self.counts |= self.method.allocate(sites, Count(own), evidence=evidence)
        self.variants.set(dict.fromkeys(names, 1.0))

    def _allocate_all(self) -> dict[str, int]:
        allocate = self.method.allocate
        listed = blocks(self.model, self.sites)
        block = {s.name: block_of(s.parameter, listed) for s in self.sites}
        if not allocate.uses_trials:
            return allocate(self.sites, Count(self.total), evidence=self._evidence(block=block))
        sizes = {s.name: s.size for s in self.sites}
        self.variants.learn()
        self.variants.install(list(sizes))

        def trial(counts: Mapping[str, int], tokens: int, draw: int) -> float:
            self.variants.set({n: c / sizes[n] for n, c in counts.items()})
            return self.variants.trial(tokens, draw)

        return allocate(self.sites, Count(self.total), evidence=self._evidence(block=block, trial=trial))

    def _evidence(self, **known: Any) -> Evidence:
        by_name = {s.name: s for s in self.sites}
        return Evidence(weight=lambda n: by_name[n].read(self.model), stats=self.stats, **known)

    def _rows(self, densities: Mapping[str, float]) -> list[ActivationRow]:
        seen = read_shares(self.model, self.batches) if self.batches else {}
        rows = []
        for s in self.sites:
            layer = self.variants.layer(s.name)
            right = layer.right if isinstance(layer, MaskedLinear) else None
            rank = 0 if right is None else right.shape[0]
            kept = seen.get(s.module)
            read = None if kept is None else kept + rank * sum(s.shape) / s.size
            rows.append(ActivationRow(s.name, s.size, densities[s.name], layer.rule, read, rank))
        return rows
