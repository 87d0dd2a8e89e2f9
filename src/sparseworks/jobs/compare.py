"""Comparison: several methods at several densities on one model, each in a job of its own; resumable, in parallel processes."""

from __future__ import annotations

import copy
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import import_module
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import torch

from sparseworks.core.errors import BudgetError, CheckpointError, RecipeError, SparseworksError
from sparseworks.core.method import Method
from sparseworks.core.pattern import Pattern
from sparseworks.core.recipe import Recipe
from sparseworks.jobs.journal import read_json, write_json
from sparseworks.jobs.record import Seen, record_of
from sparseworks.jobs.setting import Setting, Wish, setting_for
from sparseworks.stream import peak_bytes, sites
from sparseworks.stream.memory import reset_peak
from sparseworks.weights import prune

SCHEMA = 1


@dataclass(frozen=True)
class Case:
    """One method at one density.

    Attributes:
        method: its name.
        density: share of the weights to keep; what the pattern fixes, where it does.
        pattern: in place of the method's own, or "".
    """

    method: str
    density: float
    pattern: str = ""

    @property
    def chosen(self) -> Method:
        """The method as it will run."""
        method = Method.of(self.method)
        if self.pattern:
            method = method.with_(pattern=self.pattern)
        return method if method.pattern.fixed_density is not None else method.with_(density=self.density)

    @property
    def file(self) -> str:
        """Where its record is kept."""
        pattern = f"@{self.pattern.replace(':', '-').replace('/', '-')}" if self.pattern else ""
        return f"{self.method}{pattern}@{self.density:g}.json"


@dataclass(frozen=True)
class Row:
    """What one case gave, beside the dense model's `dense`.

    Attributes:
        quality: the figure of the task, `metric`.
        kept: share of all entries of the sites that is kept.
        seconds: of pruning.
        peak_bytes: resident memory at its highest while pruning, over what the dense model and its copy take; None where the
            system does not tell.
        note: why there is no figure, or nothing.
        record: what the figure stands on, see `sparseworks.evaluate.Record`.
    """

    method: str
    density: float
    pattern: str
    metric: str = ""
    quality: float | None = None
    dense: float | None = None
    kept: float | None = None
    seconds: float | None = None
    peak_bytes: int | None = None
    note: str = ""
    record: dict[str, Any] | None = None


def cases(methods: Sequence[str], densities: Sequence[float], pattern: str = "") -> list[Case]:
    """Every method at every density; a pattern that fixes the density gives one case a method.

    Raises:
        UnknownNameError, RecipeError, BudgetError, PatternError: a case that cannot work, before any work is done.
    """
    found: dict[tuple[str, float], Case] = {}
    for name in methods:
        method = Method.of(name)
        if method.train is not None or method.cycle is not None:
            raise RecipeError(f"Method {name!r} acts while a model trains; `compare` prunes finished models.")
        if method.form is not None:
            raise RecipeError(f"Method {name!r} writes weights as factors: use `factorise`; `compare` prunes.")
        own = Pattern.parse(pattern) if pattern else method.pattern
        for density in [own.fixed_density] if own.fixed_density is not None else densities:
            case = Case(name, float(density), pattern)
            assert case.chosen
            found[(name, case.density)] = case
    if not found:
        raise BudgetError("There is nothing to compare: name at least one method and one density.")
    return list(found.values())


def span(text: str, steps: int = 5) -> list[float]:
    """Densities of a text: "0.5", "0.3,0.5", or "0.3:0.7" (five, evenly spaced), "0.3:0.7:9" (nine).

    Raises:
        BudgetError: not of this form, or outside (0, 1].
    """
    try:
        if ":" in text:
            low, high, *count = text.split(":")
            n = int(count[0]) if count else steps
            values = [round(float(low) + (float(high) - float(low)) * i / max(n - 1, 1), 6) for i in range(n)]
        else:
            values = [float(part) for part in text.split(",")]
    except (ValueError, IndexError):
        raise BudgetError(f"Cannot read densities {text!r}; write 0.5, 0.3,0.5 or 0.3:0.7 or 0.3:0.7:9.") from None
    if not values or not all(0.0 < v <= 1.0 for v in values):
        raise BudgetError(f"Densities lie in (0, 1], got {text!r}.")
    return values


def run_cases(
    name: str,
    wanted: Sequence[Case],
    wish: Wish,
    folder: Path | str,
    *,
    jobs: int = 1,
    ray: bool = False,
    tick: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Prune a copy of the model by every case and measure the task; a finished case is read back from `folder`.

    Args:
        name: of the model, see `sparseworks.load`.
        wish: calibration data, task and seed.
        folder: one JSON file a case, written when it is done; other runs' files are refused.
        jobs: processes.
        ray: run the cases as tasks of Ray (`pip install ray`), on the cluster it is connected to.
        tick: called with every row as it comes.

    Raises:
        CheckpointError: `folder` holds records of another model or other settings, or cannot be written.
        ModelError, CalibrationError: the model or its data cannot be used.
    """
    folder, run = Path(folder), _about(name, wish)
    known = read_json(folder / "comparison.json")
    if known is not None and known != run and any(folder.glob("*@*.json")):  # a run that never got so far holds nothing
        raise CheckpointError(
            f"{folder} holds a comparison of {known.get('model')} with other settings; choose another."
        )
    write_json(folder / "comparison.json", run)
    rows = {case: _stored(folder, case) for case in wanted}
    left = [case for case in wanted if rows[case] is None]
    for row in rows.values():
        if row is not None:
            tick(row)
    for case, row in _run(partial(_one, name, wish, folder), left, jobs, ray):
        rows[case] = row
        tick(row)
    return [row for row in rows.values() if row is not None]


def _about(name: str, wish: Wish) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "model": name,
        **{k: str(v) if isinstance(v, Path) else v for k, v in asdict(wish).items()},
    }


def _stored(folder: Path, case: Case) -> Row | None:
    data = read_json(folder / case.file)
    try:
        return None if data is None else Row(**data)
    except TypeError:
        return None


def _run(work: Callable[[Case], Row], left: Sequence[Case], jobs: int, ray: bool) -> Iterable[tuple[Case, Row]]:
    if ray:
        yield from _on_ray(work, left)
    elif jobs <= 1 or len(left) <= 1:
        for case in left:
            yield case, work(case)
    else:
        with ProcessPoolExecutor(
            min(jobs, len(left)), get_context("spawn"), _calm, (max(torch.get_num_threads() // jobs, 1),)
        ) as pool:
            futures = {pool.submit(work, case): case for case in left}
            for future in as_completed(futures):
                yield futures[future], future.result()


def _calm(threads: int) -> None:
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker waits for cases for ever, also after its parent was killed; rows are written whole, so it may stop anywhere."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _on_ray(work: Callable[[Case], Row], left: Sequence[Case]) -> Iterable[tuple[Case, Row]]:
    try:
        ray: Any = import_module("ray")
    except ImportError:
        raise RecipeError("Running on Ray needs the package: pip install 'sparseworks[ray]'.") from None
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False)
    try:
        task = ray.remote(lambda case: work(case))  # Ray takes functions, and `work` is a partial one
        waiting = {task.remote(case): case for case in left}
        while waiting:
            done, _ = ray.wait(list(waiting))
            for future in done:
                yield waiting.pop(future), ray.get(future)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None  # what the case said, without the other process's way to it
    finally:
        if started:
            ray.shutdown()


_loaded: dict[str, tuple[Setting, float]] = {}
"""The setting of this process, made once; cases prune copies of its model."""


def _one(name: str, wish: Wish, folder: Path, case: Case) -> Row:
    key = repr(_about(name, wish))
    if key not in _loaded:
        setting = setting_for(name, wish)
        _loaded.clear()
        _loaded[key] = (setting, setting.task(setting.model).value)
    setting, dense = _loaded[key]
    row = Row(case.method, case.density, case.pattern, setting.task.metric, dense=dense)
    model = copy.deepcopy(setting.model)
    before, started = peak_bytes() if reset_peak() else None, time.monotonic()
    try:
        found = prune(model, case.chosen, setting.batches, sites=sites(model), seed=wish.seed, progress=False)
        row = replace(row, seconds=time.monotonic() - started, kept=_kept(found.supports.values()))
        row = replace(row, peak_bytes=None if before is None else max(peak_bytes() - before, 0))
        row = replace(row, quality=setting.task(model).value)
        record = record_of(
            case.method, Recipe.of(case.chosen), sites(setting.model), found.supports,
            parent=sum(p.numel() for p in model.parameters()), task=setting.task, value=row.quality or 0.0,
            seen=Seen.of(setting.batches), seed=wish.seed,
        )  # fmt: skip
        row = replace(row, record=record.to_dict())
    except SparseworksError as error:  # one case that cannot work does not end the others
        row = replace(row, note=str(error))
    write_json(folder / case.file, asdict(row))
    return row


def _kept(supports: Iterable[Any]) -> float:
    listed = list(supports)
    return sum(s.count for s in listed) / max(sum(s.size for s in listed), 1)
