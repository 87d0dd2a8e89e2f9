"""Drawing up a plan: race every layer at every number of rows, choose, and put the reasons into words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf

import torch
from torch import nn

from sparseworks.core.support import Support
from sparseworks.exec.ceilings import Ceilings, bound_us, ceilings
from sparseworks.exec.choose import MARGIN, Choice, Form, choose, form_of, wins
from sparseworks.exec.cost import CostModel
from sparseworks.exec.format import FORMATS
from sparseworks.exec.fusion import KERNEL as WHOLE
from sparseworks.exec.fusion import whole_layers
from sparseworks.exec.kernel import KERNELS, Call
from sparseworks.exec.ladder import DENSE, dense_kernel
from sparseworks.exec.layers import Layer, layer_of
from sparseworks.exec.race import Entry, Race, RaceCache, candidates, race, race_key
from sparseworks.exec.row import Row
from sparseworks.exec.units import Seen, Unit
from sparseworks.stream.progress import bar

# How far the kernel of whole layers may lie behind the best kernels: of the time of MiniLM with 65 % of its weights, one call
# per layer saved 28 % at 4096 rows and 40 % at 12.
AROUND = 1.25


@dataclass(frozen=True)
class Drawing:
    """Everything that is the same for all layers of a plan."""

    model: nn.Module
    batches: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    objective: str
    rounds: int
    cache: RaceCache
    measure: bool = True
    seen: Seen = field(default_factory=dict)

    def call(self, layer: Layer, module: str, support: Support, batch: int) -> Call:
        """What the layer is asked to do at a planned number of rows."""
        shapes = self.seen.get(module)
        call = layer.call(support, batch, None if shapes is None else shapes[self.batches.index(batch)])
        assert call is not None  # see `units`
        return call

    @property
    def costs(self) -> CostModel:
        """What is known of times by now: races of this plan count from the next layer on."""
        return CostModel(self.cache.known())

    @property
    def working_set(self) -> int:
        """Bytes of the model's weight matrices; embeddings are looked up, not read through."""
        looked_up = {id(m.weight) for m in self.model.modules() if isinstance(m, nn.Embedding)}
        return sum(
            p.numel() * p.element_size() for p in self.model.parameters() if p.dim() > 1 and id(p) not in looked_up
        )


@dataclass(frozen=True)
class Drawn:
    """The decision for one module."""

    rungs: tuple[tuple[int, str], ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class _Raced:
    """One module after its races."""

    unit: Unit
    support: Support
    calls: Mapping[int, Call]
    races: Mapping[int, Race]
    refusals: Mapping[int, Mapping[str, str]]
    choice: Choice
    whole: frozenset[int] = frozenset()  # numbers of rows at which the layer around it runs in one call

    @property
    def first(self) -> Call:
        return next(iter(self.calls.values()))

    @property
    def dense_bytes(self) -> int:
        return self.support.size * self.first.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the layer as chosen."""
        forms = {form_of(name) for _, name in self.choice.rungs}
        return sum(form_bytes(self.support, form) for form in forms) or self.dense_bytes


def form_bytes(support: Support, form: Form) -> int:
    """Bytes of one packed form of `support`."""
    name, dtype = form
    return FORMATS.get(name).nbytes(support, getattr(torch, dtype.removeprefix("torch.")))


def draw(
    drawing: Drawing, units: Sequence[Unit], supports: Mapping[str, Support], *, progress: bool = False
) -> dict[str, Drawn]:
    """Module -> decision. Ceilings are those of the model as planned: a smaller model may be read faster."""
    size = drawing.working_set
    raced = [_race(drawing, unit, unit.support(supports), size) for unit in bar(units, "plan", progress)]
    raced = _in_one_call(drawing, raced)
    planned = max(1, size + sum(r.nbytes - r.dense_bytes for r in raced))
    limits = _limits(raced, planned, drawing.cache.on_disk) if drawing.measure else None
    costs = drawing.costs
    return {
        r.unit.module: Drawn(r.choice.rungs, tuple(_rows(r, drawing.batches, supports, limits, costs))) for r in raced
    }


def _limits(raced: Sequence[_Raced], working_set: int, cache: bool) -> Ceilings | None:
    """Those of the device and type of the first layer."""
    if not raced:
        return None
    first = raced[0].first
    return ceilings(working_set=working_set, cache=cache, device=first.device, dtype=first.dtype)


def _race(drawing: Drawing, unit: Unit, support: Support, size: int) -> _Raced:
    layer = layer_of(drawing.model.get_submodule(unit.module))
    calls = {batch: drawing.call(layer, unit.module, support, batch) for batch in drawing.batches}
    by_call: dict[Call, tuple[Race, dict[str, str]]] = {}
    for call in calls.values():
        if call not in by_call:
            by_call[call] = _raced(drawing, layer, support, call, size)
    races = {batch: by_call[call][0] for batch, call in calls.items()}
    refusals = {batch: by_call[call][1] for batch, call in calls.items()}
    return _Raced(unit, support, calls, races, refusals, _choose(drawing, support, calls, races))


def _raced(drawing: Drawing, layer: Layer, support: Support, call: Call, size: int) -> tuple[Race, dict[str, str]]:
    """The race at one number of rows, and kernel -> sentence for those that did not run."""
    kernels, refused = candidates(support, call, (*drawing.dtypes, call.dtype))
    if not drawing.measure:
        race = _predicted(drawing.costs, kernels, call)
        return race, refused | {k: "its time is known only by measuring" for k in kernels if k not in race.entries}
    race = _cached(drawing, layer, support, kernels, call, size)
    return race, refused | _spared(drawing.costs, race, [k for k in kernels if k not in race.entries], call)


def _choose(drawing: Drawing, support: Support, calls: Mapping[int, Call], races: Mapping[int, Race]) -> Choice:
    dtype = next(iter(calls.values())).dtype
    return choose(
        races,
        size=lambda form: form_bytes(support, form) / max(support.size * dtype.itemsize, 1),
        rows={batch: call.rows for batch, call in calls.items()},
        dense=dense_kernel(dtype),
        objective=drawing.objective,
    )


def _in_one_call(drawing: Drawing, raced: Sequence[_Raced]) -> list[_Raced]:
    """The same, with the kernel of whole layers in all six matrices of a layer where that pays (see `_together`)."""
    found = {r.unit.module: r for r in raced}
    for layer, matrices in whole_layers(drawing.model).items():
        names = [f"{layer}.{m}" if layer else m for m in matrices]
        if all(name in found for name in names):
            found.update(zip(names, _together(drawing, [found[name] for name in names]), strict=True))
    return list(found.values())


def _together(drawing: Drawing, group: Sequence[_Raced]) -> Sequence[_Raced]:
    """The matrices of one layer with the kernel that lets it run in one call, at every number of rows where it beats dense in
    each of them and is not far behind the best kernels; as they were where that changes what runs at other numbers of rows."""
    already = frozenset(b for b in drawing.batches if all(r.choice.kernels[b] == WHOLE for r in group))
    group = [replace(r, whole=already) for r in group]
    if drawing.objective != "latency":
        return group
    rows = frozenset(b for b in drawing.batches if _pays([r.races[b] for r in group]))
    while rows:
        chosen = [_choose(drawing, r.support, r.calls, _only_whole(r.races, rows)) for r in group]
        kept = frozenset(b for b in rows if all(c.kernels[b] == WHOLE for c in chosen))
        if kept == rows:
            others = [b for b in drawing.batches if b not in rows]
            same = all(c.kernels[b] == r.choice.kernels[b] for c, r in zip(chosen, group, strict=True) for b in others)
            return [replace(r, choice=c, whole=rows) for c, r in zip(chosen, group, strict=True)] if same else group
        rows = kept
    return group


def _pays(races: Sequence[Race]) -> bool:
    if not all(_wins(race, WHOLE) for race in races):
        return False
    best = sum(min([race.dense_us, *(e.us for e in race.entries.values() if wins(e))]) for race in races)
    return sum(race.entries[WHOLE].us for race in races) <= AROUND * best


def _only_whole(races: Mapping[int, Race], rows: frozenset[int]) -> dict[int, Race]:
    return {b: Race(r.dense_us, {WHOLE: r.entries[WHOLE]}) if b in rows else r for b, r in races.items()}


def _wins(race: Race, kernel: str) -> bool:
    return kernel in race.entries and wins(race.entries[kernel])


def _cached(drawing: Drawing, layer: Layer, support: Support, kernels: Sequence[str], call: Call, size: int) -> Race:
    """Kernels that are not worth timing are part of the key: what is worth it changes with what is known."""
    options = {"working_set": size, "rounds": drawing.rounds}
    key = race_key(layer, support, kernels, call, **options)

    def run() -> Race:
        return race(layer, support, drawing.costs.promising(kernels, call, [WHOLE]), call, **options)

    return drawing.cache.get(key, run, call)


def _predicted(costs: CostModel, kernels: Sequence[str], call: Call) -> Race:
    """A race that was not run."""
    dense = costs.us(DENSE, call) or inf
    expected = {name: us for name in kernels if (us := costs.us(name, call)) is not None}
    return Race(dense, {name: Entry(us, dense / us, dense / us, dense / us, True) for name, us in expected.items()})


def _spared(costs: CostModel, race: Race, kernels: Sequence[str], call: Call) -> dict[str, str]:
    best = min([race.dense_us, *(e.us for e in race.entries.values())])
    times = {name: us / best for name in kernels if (us := costs.us(name, call)) is not None}
    return {
        name: f"not timed: expected to take {t:.2g} times as long as the best at {call}" for name, t in times.items()
    }


def _rows(
    r: _Raced, batches: Sequence[int], supports: Mapping[str, Support], limits: Ceilings | None, costs: CostModel
):
    for name, start, end in r.unit.spans:
        own = supports[name]
        for batch in batches:
            yield _row(r, batch, name, own, (end - start) / r.unit.shape[0], limits, costs)


def _row(
    r: _Raced, batch: int, site: str, own: Support, share: float, limits: Ceilings | None, costs: CostModel
) -> Row:
    race, kernel = r.races[batch], r.choice.kernels[batch]
    dense = kernel == DENSE
    kept = share if dense or not r.support.count else own.count / r.support.count
    nbytes = r.dense_bytes if dense else form_bytes(r.support, form_of(kernel))
    nnz = r.support.size if dense else r.support.count
    call = r.calls[batch]
    bound = limits and kept * bound_us(call, nbytes, nnz, limits, rate=1.0 if dense else KERNELS.get(kernel).rate)
    reason = _reason(race, kernel, batch, r) + (_crossover(costs, race, call) if dense else "")
    others = sorted((e.us, name) for name, e in race.entries.items() if name != kernel)
    return Row(
        site=site,
        batch=batch,
        rows=call.rows,
        min_rows=max((least for least, _ in r.choice.rungs if least <= call.rows), default=0),
        density=own.density,
        format="dense" if dense else form_of(kernel)[0],
        kernel=kernel,
        us=kept * (race.dense_us if dense else race.entries[kernel].us),
        dense_us=share * race.dense_us,
        ceiling_us=bound,
        reason=("" if limits else "predicted: ") + reason + _fused(r.unit) + _whole(r, batch),
        alternatives=tuple((name, kept * us) for us, name in others),
        refusals=tuple(r.refusals[batch].items()),
    )


def _reason(race: Race, kernel: str, batch: int, r: _Raced) -> str:
    if kernel != DENSE:
        beaten = "" if batch in r.whole else _beaten(race, kernel)
        return f"{kernel} is {_times(race, kernel):.2f}x faster than dense at {r.calls[batch]}{beaten}"
    if not race.entries:
        said = "; ".join(f"{name}: {why}" for name, why in list(r.refusals[batch].items())[:3])
        return f"dense stays: no kernel takes it ({said or 'none stores the allowed value types'})"
    best = min(race.entries, key=lambda k: race.entries[k].us)
    entry, times = race.entries[best], _times(race, best)
    if wins(entry):
        return f"dense stays: {best} is {times:.2f}x faster at {r.calls[batch]}, but a layer holds at most two forms"
    if times > 1:
        return (
            f"dense stays: the best sparse kernel ({best}) reaches {times:.2f}x at {r.calls[batch]}, within noise "
            f"(it must be {MARGIN - 1:.0%} ahead in three of four rounds)"
        )
    return (
        f"dense stays: the best sparse kernel ({best}) reaches {times:.2f}x at {r.calls[batch]} "
        f"and density {r.support.density:.0%}"
    )


def _crossover(costs: CostModel, race: Race, call: Call) -> str:
    """Where it would be worth it, if that is sparser than this."""
    least = costs.crossover(list(race.entries), call)
    return f"; sparse is expected to win from about {least:.0%} zeros" if least and least > 1 - call.density else ""


def _beaten(race: Race, kernel: str) -> str:
    faster = [k for k, e in race.entries.items() if wins(e) and e.us < race.entries[kernel].us / MARGIN]
    if not faster:
        return ""
    best = min(faster, key=lambda k: race.entries[k].us)
    return f"; {best} would reach {_times(race, best):.2f}x but needs one more form in memory"


def _times(race: Race, kernel: str) -> float:
    """Dense time over the kernel's, from the heat in which the kernel was timed."""
    entry = race.entries[kernel]
    return race.dense_us / entry.us if entry.final else entry.ratio


def _fused(unit: Unit) -> str:
    return "" if unit.whole else f" (share of the fused matrix {unit.module})"


def _whole(r: _Raced, batch: int) -> str:
    return "; the whole layer runs in one call" if batch in r.whole else ""
