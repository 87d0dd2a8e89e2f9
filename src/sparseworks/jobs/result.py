"""Result: everything a compression run produced, as models and as plain data."""

from __future__ import annotations

import copy
import datetime
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparseworks.core.method import Method
from sparseworks.core.recipe import Recipe
from sparseworks.core.record import Record
from sparseworks.core.support import Support
from sparseworks.exec import measure
from sparseworks.io.save import unique_tensors
from sparseworks.report import Report


@dataclass(frozen=True)
class Step:
    """One thing the run did, for the report."""

    what: str
    seconds: float
    note: str = ""


@dataclass
class Steps:
    """Stopwatch over the steps of a run; also where a caller hears of them."""

    say: Any = None
    done: list[Step] = field(default_factory=list)

    def run(self, what: str, work: Any, note: Any = lambda _: "") -> Any:
        """Run `work()`, time it, and note `note(result)`."""
        if self.say:
            self.say(f"{what} ...")
        started = time.monotonic()
        result = work()
        step = Step(what, time.monotonic() - started, note(result))
        self.done.append(step)
        if self.say:
            self.say(f"{what}: {step.seconds:.1f} s  {step.note}")
        return result


@dataclass
class Result:
    """What `compress` returns.

    Attributes:
        model: the planned model (fast layers swapped in).
        masked: the same weights as dense tensors with exact zeros (for further training or export).
        supports: site name -> kept entries.
        plan: which kernel runs each site, and why.
        recipe: what was asked for.
        data: the figures, as written to `result.json`.
    """

    model: nn.Module
    masked: nn.Module
    supports: Mapping[str, Support]
    plan: Any
    recipe: Recipe
    data: dict[str, Any]
    assets: Path | None = None

    @property
    def report(self) -> Report:
        """The report of this result."""
        return Report(self.data)

    @property
    def record(self) -> Record:
        """What the figure stands on; `sparseworks.evaluate.compare` takes records and refuses unlike ones."""
        return Record.from_dict(self.data["record"])

    def save(self, folder: Path | str, *, layout: str = "bitmask", overwrite: bool = False) -> Path:
        """Write model, supports, plan and recipe to `folder`; `sw.load(folder)` brings them back.

        The size on disk then stands in `data["bytes"]["disk_sparse"]`, beside that of the dense weights in "disk_dense".

        Raises:
            CheckpointError: the folder exists (and `overwrite` is off) or cannot be written.
        """
        from sparseworks.io import save

        model = self.model if layout == "packed" else self.masked
        kept = {k: self.data[k] for k in ("quality", "speed", "bytes", "density", "versions", "machine", "created")}
        saved = save(
            folder,
            model,
            self.supports,
            layout=layout,
            plan=self.plan,
            recipe=self.recipe,
            meta=kept,
            assets=self.assets,
            overwrite=overwrite,
        )
        self.data["bytes"]["disk_sparse"] = sum(f.stat().st_size for f in saved.glob("*.safetensors"))
        return saved

    def __str__(self) -> str:
        q, s, b = self.data["quality"], self.data["speed"], self.data["bytes"]
        return (
            f"{s['ratio']:.2f}x faster ({s['dense_ms']:.2f} -> {s['sparse_ms']:.2f} ms, {s['case']}), "
            f"{q['metric']} {q['dense']:.4g} -> {q['sparse']:.4g}, {b['dense'] / 1e6:.1f} -> {b['sparse'] / 1e6:.1f} MB"
        )


def versions() -> dict[str, str]:
    """Versions that a figure depends on."""
    from sparseworks import __version__

    return {"sparseworks": __version__, "torch": torch.__version__, "python": platform.python_version()}


def model_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers, shared storage counted once."""
    seen: dict[int, int] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = max(seen.get(storage.data_ptr(), 0), tensor.numel() * tensor.element_size())
    return sum(seen.values())


def site_rows(pruned_rows: Sequence[Any], plan: Any) -> list[dict[str, Any]]:
    """Per site: what was kept and how it runs, one flat record each."""
    planned = {row.site: row for row in plan.rows}
    records = []
    for row in pruned_rows:
        p = planned.get(row.name)
        records.append(
            {
                "name": row.name,
                "shape": list(row.shape),
                "pattern": row.pattern,
                "count": row.count,
                "density": row.density,
                "error": row.relative_error,
                "kernel": p.kernel if p else "dense",
                "us": p.us if p else None,
                "dense_us": p.dense_us if p else None,
                "ceiling_us": p.ceiling_us if p else None,
                "reason": p.reason if p else "not planned: stays dense with zeros",
            }
        )
    return records


def twin(model: nn.Module) -> nn.Module:
    """An independent copy of a model, in evaluation mode."""
    return copy.deepcopy(model).eval()


def drop(dense: float, sparse: float, higher_is_better: bool) -> float:
    """Relative loss of quality, positive when the sparse model is worse."""
    return (dense - sparse) / abs(dense) if higher_is_better else (sparse - dense) / abs(dense)


def density_of(supports: Mapping[str, Support]) -> float:
    """Share of all entries of these sites that is kept."""
    size = sum(s.size for s in supports.values())
    return sum(s.count for s in supports.values()) / size if size else 1.0


def figures(
    *,
    name: str,
    command: str,
    method: Method | Recipe,
    recipe: Recipe,
    seed: int,
    dense: nn.Module,
    fast: nn.Module,
    pruned: Any,
    plan: Any,
    task: Any,
    qualities: tuple[float, float | None, float],
    cases: Sequence[Mapping[str, Any]],
    recovered: Any,
    frontier: Sequence[Mapping[str, Any]],
    steps: Steps,
    record: Record,
) -> dict[str, Any]:
    """Everything a run measured, as plain data: the content of `result.json`.

    Args:
        qualities: of the dense model, after pruning (None without recovery), and of the planned model.
        cases: timed cases, the headline first.
    """
    whole, one_shot, sparse = qualities
    head = cases[0]
    points = [{"label": "dense", "speed": 1.0, "quality": whole}, *frontier]
    return {
        "schema": 1,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "versions": versions(),
        "machine": measure.machine(),
        "model": {"name": name, "parameters": sum(p.numel() for p in dense.parameters())},
        "method": _method_facts(method),
        "recipe": recipe.to_yaml(),
        "seed": seed,
        "record": record.to_dict(),
        "density": density_of(pruned.supports),
        "quality": {
            "metric": task.metric,
            "dense": whole,
            "one_shot": one_shot,
            "sparse": sparse,
            "higher_is_better": task.higher_is_better,
            "drop": drop(whole, sparse, task.higher_is_better),
        },
        "speed": {
            **{k: head[k] for k in ("dense_ms", "sparse_ms", "ratio", "spread", "rows")},
            "case": head["name"],
            "threads": torch.get_num_threads(),
            "cases": list(cases),
        },
        "bytes": {
            "dense": model_bytes(dense),
            "sparse": model_bytes(fast),
            "disk_dense": sum(t.numel() * t.element_size() for t in unique_tensors(dense)[0].values()),
            "disk_sparse": None,  # known once it is saved
        },
        "sites": site_rows(pruned.rows, plan),
        "recovery": None if recovered is None else vars(recovered) | {"losses": list(recovered.losses)},
        "frontier": [*points, {"label": "this model", "speed": head["ratio"], "quality": sparse, "chosen": True}],
        "steps": [vars(s) for s in steps.done],
    }


def _method_facts(method: Method | Recipe) -> dict[str, str]:
    if isinstance(method, Recipe):
        return {"name": "recipe", "composition": f"{len(method.rules)} rules", "source": ""}
    return {"name": method.name, "composition": method.composition, "source": str(method.source)}
