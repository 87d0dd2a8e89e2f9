"""Plan: which kernel runs every sparse layer at the caller's numbers of rows, decided by measurement, and why."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from sparseworks.core.errors import CheckpointError, KernelError, UnknownNameError
from sparseworks.core.support import Support
from sparseworks.exec.choose import OBJECTIVES
from sparseworks.exec.draw import Drawing, draw
from sparseworks.exec.fusion import fuse
from sparseworks.exec.ladder import DENSE
from sparseworks.exec.layers import layer_of, why_not
from sparseworks.exec.measure import machine
from sparseworks.exec.race import RaceCache
from sparseworks.exec.row import Row, rows_text
from sparseworks.exec.units import Unit, inputs_of, units
from sparseworks.stream import sites
from sparseworks.stream.memory import tensors_in, tokens_in

SCHEMA = 1
Rungs = tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Plan:
    """A measured decision for every site: a table to print, save and apply.

    Attributes:
        table: one row per site and planned number of rows, sites in the order of the supports.
        batches: planned numbers of rows, the caller's first one first.
        layers: the modules that can run sparse, and the sites in them.
        ladders: module -> `(min_rows, kernel)` in ascending order; modules that stay dense are missing.
        objective: what was minimised.
        machine: facts the figures depend on.
        supports: what was planned for; not part of the JSON form.
        predicted: the times are expectations of the cost model; nothing was timed.
        inputs: sizes of the examples that were planned for, one per planned number of rows ("16x3x224x224").
    """

    table: tuple[Row, ...]
    batches: tuple[int, ...]
    layers: tuple[Unit, ...] = ()
    ladders: Mapping[str, Rungs] = field(default_factory=dict)
    objective: str = "latency"
    machine: Mapping[str, Any] = field(default_factory=dict)
    supports: Mapping[str, Support] = field(default_factory=dict, compare=False, repr=False)
    predicted: bool = False
    inputs: tuple[str, ...] = ()

    @property
    def rows(self) -> list[Row]:
        """One row per site, at the first planned number of rows."""
        return [row for row in self.table if row.batch == self.batches[0]]

    def rungs(self, site: str) -> list[tuple[int, str]]:
        """`(min_rows, kernel)` of the layer that holds `site`; empty where it stays dense.

        Raises:
            UnknownNameError: the plan has no such site.
        """
        if all(row.site != site for row in self.table):
            raise UnknownNameError("site", site, {row.site for row in self.table})
        module = next((unit.module for unit in self.layers if site in unit.sites), "")
        return list(self.ladders.get(module, ()))

    def apply(self, model: nn.Module, supports: Mapping[str, Support] | None = None) -> nn.Module:
        """A copy of `model` with sparse layers where the plan says so; the given model is not touched.

        Layers that can run in one call do so (see `fuse`). The copy computes with the masked weights whichever way a site runs: outside the supports packed layers hold
        nothing, and weights that stay dense are set to zero.

        Args:
            model: the planned model or one of the same structure (its weights may have changed since).
            supports: needed for a plan read from JSON; default: the planned ones.

        Raises:
            KernelError: a module can no longer be replaced (it was tied, hooked or parametrised after planning).
            ShapeError: a weight and its support differ in shape.
            UnknownNameError: a support is missing.
        """
        chosen = [unit for unit in self.layers if unit.module in self.ladders]
        for unit in chosen:
            if (why := why_not(model, unit.module)) is not None:
                raise KernelError(f"The plan replaces {unit.module!r}, but {why}; plan this model anew.")
        known = self.supports if supports is None else supports
        packed = {unit.module: self._pack(model, unit, known) for unit in chosen}
        shared = {id(w): w for unit in chosen if (w := model.get_submodule(unit.module).weight) is not None}
        twin = copy.deepcopy(model, memo=shared)  # weights about to be replaced need no copy
        for name, module in packed.items():
            parent, _, leaf = name.rpartition(".")
            setattr(twin.get_submodule(parent), leaf, module)
        self._mask_dense(model, twin, known)
        return fuse(twin)

    def _mask_dense(self, model: nn.Module, twin: nn.Module, known: Mapping[str, Support]) -> None:
        replaced = {site for unit in self.layers if unit.module in self.ladders for site in unit.sites}
        left = known.keys() - replaced
        for site in sites(model, include=["*"]) if left else ():
            if site.name in left:
                weight = site.read(twin)
                site.write(twin, weight.where(known[site.name].mask().to(weight.device), weight.new_zeros(())))

    def _pack(self, model: nn.Module, unit: Unit, supports: Mapping[str, Support]) -> nn.Module:
        layer = layer_of(model.get_submodule(unit.module))
        return layer.build(unit.support(supports), self.ladders[unit.module])

    # -- as text and as data --------------------------------------------------------------------------------------

    @property
    def summary(self) -> str:
        """One sentence per planned number of rows: how many sites run sparse, their summed time beside dense."""
        return "\n".join(self._summary(batch) for batch in self.batches)

    def _summary(self, batch: int) -> str:
        rows = [row for row in self.table if row.batch == batch]
        sparse = sum(row.kernel != DENSE for row in rows)
        given = dict(zip(self.batches, self.inputs, strict=False))
        at = f"For an input of {given[batch]}" if batch in given else f"At {rows_text(batch)}"
        text = f"{at} {sparse} of {len(rows)} sites run sparse"
        timed = [row for row in rows if row.us is not None and row.dense_us is not None]
        if not timed:
            return f"{text}."
        us, dense = sum(row.us or 0.0 for row in timed), sum(row.dense_us or 0.0 for row in timed)
        return f"{text}: {dense / 1000:.2f} -> {us / 1000:.2f} ms, {dense / us:.2f}x over their dense layers{' (predicted, not measured)' if self.predicted else ''}."

    def __str__(self) -> str:
        head = ("site", "rows", "density", "kernel", "us", "dense us", "x", "bound us", "reason")
        lines = [head, *(row.cells() for row in self.table)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head) - 1)]
        text = "\n".join(
            "  ".join(
                [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=False)), line[-1]]
            )
            for line in lines
        )
        return f"{text}\n{self.summary}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form without the supports; `from_dict` gives an equal plan."""
        return {
            "schema": SCHEMA,
            "objective": self.objective,
            "batches": list(self.batches),
            "machine": dict(self.machine),
            "layers": [asdict(unit) for unit in self.layers],
            "ladders": {name: [list(rung) for rung in rungs] for name, rungs in self.ladders.items()},
            "table": [asdict(row) for row in self.table],
            "predicted": self.predicted,
            "inputs": list(self.inputs),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], supports: Mapping[str, Support] | None = None) -> Plan:
        """The plan that `to_dict` described.

        Raises:
            CheckpointError: a newer schema, or data that are not a plan.
        """
        try:
            schema = int(data["schema"])
            if schema > SCHEMA:
                raise CheckpointError(
                    f"The plan has schema {schema}, this version reads up to {SCHEMA}: update sparseworks."
                )
            return cls(
                table=tuple(Row.from_dict(row) for row in data["table"]),
                batches=tuple(int(b) for b in data["batches"]),
                layers=tuple(_unit(unit) for unit in data["layers"]),
                ladders={k: tuple((int(n), str(name)) for n, name in rungs) for k, rungs in data["ladders"].items()},
                objective=str(data["objective"]),
                machine=dict(data["machine"]),
                supports=dict(supports or {}),
                predicted=bool(data.get("predicted", False)),
                inputs=tuple(str(size) for size in data.get("inputs", ())),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"Not a plan ({error!r}); write it with `Plan.to_json()`.") from None

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_json(cls, text: str | Mapping[str, Any], supports: Mapping[str, Support] | None = None) -> Plan:
        """The plan that `to_json` wrote, from text or from parsed data.

        Raises:
            CheckpointError: damaged text, a newer schema, or data that are not a plan.
        """
        try:
            return cls.from_dict(json.loads(text) if isinstance(text, str) else text, supports)
        except json.JSONDecodeError as error:
            raise CheckpointError(f"The plan is damaged: {error}.") from None


def _size(example: Any) -> str:
    """Of the tensor that `tokens_in` counts."""
    return "x".join(map(str, next(iter(tensors_in(example)), torch.empty(())).shape))


def _unit(data: Mapping[str, Any]) -> Unit:
    rows, cols = data["shape"]
    return Unit(
        str(data["module"]), (int(rows), int(cols)), tuple((str(n), int(a), int(b)) for n, a, b in data["spans"])
    )


def plan(
    model: nn.Module,
    supports: Mapping[str, Support],
    *,
    batch: int | Sequence[int] | None = None,
    examples: Sequence[Any] | None = None,
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    objective: str = "latency",
    cache: bool = True,
    progress: bool = False,
    rounds: int = 11,
    measure: bool = True,
) -> Plan:
    """Time every layer that carries a support, dense and with each kernel that takes it, and keep the fastest per batch.

    Dense is always a candidate: a kernel is chosen at a number of rows only if it was faster than the dense layer there by
    more than 3 % in at least three of four rounds (interleaved; see `race`). Between planned numbers of rows the ladder
    changes at their geometric mean, so plan for the numbers that will occur. Layers of one shape, density and packed size
    (each within 4 %) share a measurement; measurements are kept in the user's cache folder. A layer holds at most two packed
    forms, since each is a copy of the weight in memory. The model is not changed; `Plan.apply` makes the fast one.

    Kernels that the cost model expects to take 2.5 times as long as the best, and longer than dense, are not timed.

    Tied, hooked and parametrised modules, experts and attention that reads its weight itself stay dense, and the reason is
    in the row. A fused module is planned as one matrix; slices of it without a support are kept whole.

    Convolutions larger than 1x1 need `examples`, since their time depends on the size of the maps. What they must beat is the
    faster of both memory formats of torch's convolution.

    Args:
        model: any module.
        supports: site name (see `sparseworks.sites`) -> kept entries.
        batch: rows of the matrix products, that is tokens (default 1); several for a ladder. The first is the one `Plan.rows` shows.
        examples: inputs of the model instead (each a tensor, a tuple of arguments or a dict of them): every layer is timed for
            what it receives in one forward pass of each. `batch` of the rows is then their number of tokens or positions.
        dtypes: types in which kept values may be stored; the weight's own type, which rounds nothing, is always allowed.
        objective: "latency" or "bytes" (the smallest forms that still beat dense).
        cache: read and write measurements on disk.
        progress: show a progress bar.
        rounds: rounds of the final heat.
        measure: False: nothing is timed, times are those that the cost model expects (see `exec.cost`), and the plan says so.

    Raises:
        UnknownNameError: a support names no site, or an unknown objective.
        ShapeError: a support has another shape than its site.
        KernelError: no number of rows, one below 1, or examples beside them.
    """
    if examples is not None:
        if batch is not None:
            raise KernelError("Plan for numbers of rows or for examples, not both.")
        sized: dict[int, Any] = {}
        for example in examples:
            known = sized.setdefault(max(1, tokens_in(example)), example)
            if _size(known) != _size(example):
                raise KernelError(
                    f"Examples {_size(known)} and {_size(example)} have as many rows, by which plans are kept apart; plan for one of them."
                )
        batch, examples = [*sized], [*sized.values()]
    asked = 1 if batch is None else batch
    batches = tuple(dict.fromkeys([asked] if isinstance(asked, int) else [int(b) for b in asked]))
    if not batches or min(batches) < 1:
        raise KernelError(f"Plan for at least one number of rows, each at least 1; got {list(batches)}.")
    if objective not in OBJECTIVES:
        raise UnknownNameError("objective", objective, OBJECTIVES)
    seen = inputs_of(model, examples or ())
    layers, reasons = units(model, supports, seen)
    drawing = Drawing(model, batches, tuple(dtypes), objective, rounds, RaceCache(on_disk=cache), measure, seen)
    drawn = draw(drawing, layers, supports, progress=progress)
    rows = [row for unit in layers for row in drawn[unit.module].rows]
    rows += [Row.dense(name, b, supports[name].density, why) for name, why in reasons.items() for b in batches]
    order = {name: i for i, name in enumerate(supports)}
    return Plan(
        table=tuple(sorted(rows, key=lambda row: order[row.site])),
        batches=batches,
        layers=tuple(layers),
        ladders={name: d.rungs for name, d in drawn.items() if d.rungs},
        objective=objective,
        machine=machine(),
        supports=dict(supports),
        predicted=not measure,
        inputs=tuple(_size(example) for example in examples or ()),
    )
