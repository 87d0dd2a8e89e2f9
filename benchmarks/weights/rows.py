"""The one form of results here: a row a figure, with all that `Record` asks for; kept row by row, so that a run that was cut off goes on."""

from __future__ import annotations

import copy
import dataclasses
import gc
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from common import RESULTS, Line, facts, ran_on, show, table
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import CheckpointError
from sparseworks.core.method import Method
from sparseworks.evaluate import Record, compare, describe
from sparseworks.exec import measure
from sparseworks.jobs.journal import Journal
from sparseworks.stream.memory import trim_heap
from sparseworks.weights.settings import TrainingFlops

SCHEMA = 1
FOLDER = RESULTS / "weights"
JOURNALS = Path("out") / "benchmarks"


TIMES = {"action": "store_true", "help": "only take the times, on a quiet machine; the run that stores reads them back"}
"""Of a script with times: its argument `times`."""


def journals(path: Path | None) -> Path:
    """The folder of the journals of a run that stores at `path`: parts that run side by side, each with a path of its own, do not share one."""
    return JOURNALS if path is None or path.parent == Path() else path.with_suffix("")


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        label: what the table calls the method; its registered name is the record's.
        density: that was asked for, 1 = dense; the record says what was kept. Where it follows from training, its mean over the seeds.
        seconds: of making it, all training and pruning included.
        peak_bytes: resident memory at its highest over that at the start; None where the system does not tell.
    """

    label: str
    density: float
    record: Record
    seconds: float | None = None
    peak_bytes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain and flat."""
        record = self.record.to_dict()
        record["densities"] = {name: round(d, 6) for name, d in record["densities"].items()}
        own = {"label": self.label, "density": self.density, "seconds": self.seconds, "peak_bytes": self.peak_bytes}
        return own | record

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Row:
        """Inverse of `to_dict`.

        Raises:
            BudgetError: fields that no row has, or that are missing.
        """
        own = {f.name for f in dataclasses.fields(cls)} - {"record"}
        record = Record.from_dict({k: v for k, v in data.items() if k not in own})
        return cls(record=record, **{k: v for k, v in data.items() if k in own})


def record_of(
    method: Method | None, supports: Mapping[str, sw.Support], model: nn.Module, *, fresh: bool = False, **measured: Any
) -> Record:
    """The record of a model with these supports; None = dense; `fresh`: chosen on untrained weights and held.

    Args:
        measured: task, metric, value, epochs, examples, seed, data ...
    """
    listed = sw.sites(model)
    if method is None:
        size, whole = sum(s.size for s in listed), all(not s.kernel for s in listed)
        own: dict[str, Any] = {
            "method": "dense", "start": "dense", "dynamic": False, "when": "never", "structure": "dense", "kept": size,
            "densities": {s.name: 1.0 for s in listed}, "inference_flops": 2.0 * size if whole else None,
        }  # fmt: skip
    else:
        own = describe(method, supports, listed, fresh=fresh)
    return Record(**{**own, "parent": sum(p.numel() for p in model.parameters()), "hardware": hardware(), **measured})


@torch.no_grad()
def forward_flops(model: nn.Module, x: Any) -> float:
    """Multiplications and additions of one pass of a dense model; dense training takes three times as many."""
    counted = copy.deepcopy(model).train()  # norms of the model itself are not to see this
    flops = TrainingFlops(counted)
    counted(x)
    flops.close()
    return flops.total


def hardware() -> str:
    """Where this runs, in a line."""
    machine = measure.machine()
    if ran_on[-1].startswith("cuda"):
        return str(machine["gpu"])
    return f"{machine['cpu']}, {machine['isa']}, {machine['threads']} of {machine['cores']} threads"


class Rows:
    """The rows of one benchmark, in a journal until they are stored.

    Args:
        name: of the benchmark.
        setting: all that the figures depend on; a journal with another setting is refused.
        quick: keep no journal.
    """

    def __init__(self, name: str, setting: Mapping[str, Any], *, quick: bool = False, folder: Path = JOURNALS):
        self.name, self.setting, self.rows, self.lines = name, dict(setting), list[Row](), list[Line]()
        run = json.dumps(self.setting, sort_keys=True, default=str)
        self.journal = Journal(None if quick else folder / f"{name}.json", run)

    def add(self, key: str, make: Callable[[], Row | Iterable[Row]]) -> list[Row]:
        """The rows that `make` gives, timed where they are not; read back if an earlier run made them."""
        back = lambda data: [Row.from_dict(d) for d in data]  # noqa: E731
        found = self.journal.keep(key, lambda: _timed(make), lambda rows: [r.to_dict() for r in rows], back)
        self.rows += found
        for row in found:
            r = row.record
            print(
                f"{row.label:<28} {1 - row.density:6.1%}  seed {r.seed}  {r.value:.4g}  {row.seconds:.1f} s", flush=True
            )
        return found

    def time(self, case: str, make: Callable[[], Line]) -> None:
        """A comparison of times, kept as rows are: it wants a quiet machine, they do not."""
        kept = self.journal.keep(f"time of {case}", make, dataclasses.asdict, lambda data: Line(**data))
        self.lines.append(kept)

    def show(self) -> None:
        """Print method x sparsity of every task and metric, mean and deviation, and times."""
        for group in groups(self.rows):
            head, body = layout(group)
            table(f"{group[0].record.task}: {group[0].record.metric}", head, body)
        if self.lines:
            show(self.lines, f"times, {measure.machine()['threads']} threads")

    def store(self, path: Path | None, **more: Any) -> Path | None:
        """Write the rows and forget the journal; a bare name goes to benchmarks/results/weights. Without `path` nothing happens.

        Args:
            more: further entries of the head; the leaderboard shows `tables`, title -> lines as mappings.
        """
        if path is None:
            return None
        target = (path if path.parent != Path() else FOLDER / path).with_suffix(".json")
        head = {"benchmark": self.name, "schema": SCHEMA, **facts(), "setting": self.setting, **more}
        if self.lines:
            head["lines"] = [dataclasses.asdict(entry) for entry in self.lines]
        lines = ",\n".join(f"  {json.dumps(row.to_dict(), default=str)}" for row in self.rows)
        text = f'{json.dumps(head, indent=1, default=str)[:-2]},\n "rows": [\n{lines}\n ]\n}}\n'
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        if self.journal.path:
            self.journal.path.unlink(missing_ok=True)
        print(f"\nwritten to {target}")
        return target


def read(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """A stored benchmark: its head and its rows.

    Raises:
        CheckpointError: another schema, or not such a file.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        rows = data.pop("rows")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} holds no rows of a benchmark: {error}.") from error
    if data.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{path} has schema {data.get('schema')!r}, this reads {SCHEMA}; run the benchmark again."
        )
    return data, [Row.from_dict(row) for row in rows]


# -- tables -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """Mean and sample deviation over seeds."""

    mean: float
    spread: float
    seeds: int

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Cell:
        """Of rows that differ in their seed."""
        values = [r.record.value for r in rows]
        return cls(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values))

    def __str__(self) -> str:
        if not math.isfinite(self.mean):
            return "diverged"
        digits = max(0, 3 - math.floor(math.log10(abs(self.mean)))) if self.mean else 2
        return f"{self.mean:.{digits}f} ± {self.spread:.{digits}f}" if self.seeds > 1 else f"{self.mean:.{digits}f}"


def groups(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows that may stand in one table: those of one task, metric and dense parent.

    Raises:
        ModelError: they are unlike all the same, in what a table does not show: one was trained and another only pruned, and
            it is not said what each saw.
    """
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault((row.record.task, row.record.metric, row.record.parent), []).append(row)
    for group in found.values():
        compare([row.record for row in group], allow=("density", "structure", "epochs", "examples"))
    return list(found.values())


def by_cell(group: Sequence[Row]) -> dict[str, dict[float, list[Row]]]:
    """Label -> density -> the rows of its seeds, the sparsest last."""
    found: dict[str, dict[float, list[Row]]] = {}
    for row in sorted(group, key=lambda r: -r.density):
        found.setdefault(row.label, {}).setdefault(row.density, []).append(row)
    order = list(dict.fromkeys(row.label for row in group))
    return {label: found[label] for label in order}


def layout(group: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and body of a table: a line a method, a column a sparsity."""
    cells = by_cell(group)
    densities = sorted({row.density for row in group}, reverse=True)
    head = ["method", *("dense" if d == 1 else f"{100 * (1 - d):.3g} %" for d in densities)]
    body = [[label, *(str(Cell.of(own[d])) if d in own else "" for d in densities)] for label, own in cells.items()]
    others = beside(group)
    return [*head, *others], [[*line, *(f.get(line[0], "") for f in others.values())] for line in body]


def beside(group: Sequence[Row]) -> dict[str, dict[str, str]]:
    """Figure -> label -> its mean over seeds, one density after the other, the densest first: FLOPs of training, and numbers in `more`.

    FLOPs are over those of the first dense line where they are known.
    """
    dense = [r for r in group if r.record.method == "dense"]
    whole = [r.record.training_flops for r in dense if r.label == dense[0].label and r.record.training_flops]
    unit = statistics.mean(whole) if whole else 1.0
    figures: dict[str, Callable[[Record], float | None]] = {
        "training, x dense" if whole else "training FLOPs": lambda r: r.training_flops and r.training_flops / unit
    }
    for key in dict.fromkeys(k for row in group for k, v in row.record.more.items() if isinstance(v, int | float)):
        figures[key.replace("_", " ")] = lambda r, k=key: r.more.get(k)
    found: dict[str, dict[str, str]] = {}
    for name, figure in figures.items():
        for label, own in by_cell(group).items():
            values = [[v for row in rows if (v := figure(row.record)) is not None] for rows in own.values()]
            shown = [_short(statistics.mean(v)) if v else "" for v in values]
            if any(shown):
                found.setdefault(name, {})[label] = shown[0] if len(set(shown)) == 1 else " / ".join(shown)
    return found


def _short(value: float) -> str:
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.3g}"


# -- time and memory ----------------------------------------------------------------------------------------------


def _timed(make: Callable[[], Row | Iterable[Row]]) -> list[Row]:
    start, began = reset_peak(), time.perf_counter()
    made = make()
    rows = [made] if isinstance(made, Row) else list(made)
    seconds = time.perf_counter() - began
    peak = None if start is None else max(resident("VmHWM") - start, 0)
    return [
        dataclasses.replace(
            r,
            seconds=seconds if r.seconds is None else r.seconds,
            peak_bytes=peak if r.peak_bytes is None else r.peak_bytes,
        )
        for r in rows
    ]


def reset_peak() -> int | None:
    """Begin a new peak of resident memory, and give what is resident now; None where that cannot be asked for."""
    gc.collect()  # what others left lying about must not go away in between
    trim_heap()  # nor be taken instead of new memory, where the process keeps what it freed
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        return resident("VmRSS")
    except (OSError, LookupError):
        return None


def resident(name: str) -> int:
    """A line of the process's status in bytes: VmRSS now, VmHWM at most."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)
