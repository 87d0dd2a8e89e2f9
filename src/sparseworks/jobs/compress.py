"""The main job: calibrate, prune, repair, recover, plan, and measure quality, size and speed beside the dense model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparseworks.core.errors import CalibrationError
from sparseworks.core.method import Method
from sparseworks.core.recipe import Recipe
from sparseworks.core.support import Support
from sparseworks.evaluate import OutputSimilarity, Task
from sparseworks.exec import plan
from sparseworks.jobs.result import Result, Steps, density_of, figures, twin
from sparseworks.jobs.search import Goal, search
from sparseworks.jobs.timing import rows_of, time_case
from sparseworks.weights import Embedding, Recovery, SquareHead, Term, prune, recover


@dataclass(frozen=True)
class Recover:
    """How to recover after pruning: loss terms, length, learning rate, and data other than the calibration batches."""

    terms: Sequence[Term] = field(default_factory=lambda: (Embedding(1.0), SquareHead(0.5)))
    steps: int | None = 500
    minutes: float | None = None
    lr: float = 2e-4
    data: Iterable[Any] | None = None
    validate: Callable[[nn.Module], float] | None = None
    every: int = 100
    patience: int | None = None
    autocast: torch.dtype | None = None


def compress(
    model: nn.Module,
    method: Method | Recipe,
    *,
    data: Iterable[Any] | None = None,
    evaluate: Task | None = None,
    goal: Goal | None = None,
    examples: Mapping[str, Any] | None = None,
    recovery: Recover | None = None,
    skip: Sequence[str] = (),
    value_dtypes: Sequence[torch.dtype] = (torch.float32,),
    workdir: Path | str | None = None,
    seed: int = 0,
    progress: bool = True,
    say: Callable[[str], None] | None = None,
    name: str | None = None,
    command: str = "",
    assets: Path | None = None,
) -> Result:
    """Prune `model` with `method`, recover, plan, and measure everything in one run. The given model is not changed.

    Args:
        model: any torch module, in evaluation mode or not.
        method: a method (for every site) or a recipe.
        data: calibration batches (dicts of keyword arguments, tuples or tensors); not needed by data-free methods.
        evaluate: the quality task; without one, quality is the mean output similarity to the dense model on `data`.
        goal: search patterns and densities per site for this speed-up and loss, instead of those of `method`.
        examples: case name -> batch to time, the first being the headline; default: the first calibration batch.
        recovery: fine-tune with the support fixed, the dense model as teacher.
        skip: shell-style patterns of site names that stay dense.
        value_dtypes: types in which kept values may be stored; bfloat16 beside float32 allows faster, rounded kernels.
        workdir: folder for intermediate state; the same call after an interruption goes on from there.

    Raises:
        CalibrationError: no batch to time or calibrate with, or a goal together with a recipe.
    """
    batches = list(data) if data is not None else []
    examples = dict(examples) if examples else ({"calibration batch": batches[0]} if batches else {})
    if not examples:
        raise CalibrationError(
            "compress needs `data` or `examples`: without an input nothing can be calibrated or timed."
        )
    work = Path(workdir) if workdir else None
    steps = Steps(say)
    dense, student = twin(model), twin(model)
    task = evaluate or OutputSimilarity(batches or list(examples.values()), dense)
    dense_quality = steps.run("evaluate dense", lambda: task(dense), _shown).value
    recipe, frontier = Recipe.of(method, skip=skip), []
    if goal is not None:
        if isinstance(method, Recipe):
            raise CalibrationError(
                "A goal searches over densities and patterns of one method; give a method, not a recipe."
            )
        looked = lambda: _search(dense, method, goal, batches, task, examples, value_dtypes, skip, seed, work, say)  # noqa: E731
        recipe, frontier = steps.run("search", looked, lambda f: f"{len(f[1])} variants on the frontier")

    pruned = steps.run(
        "prune",
        lambda: prune(
            student, recipe, batches or None, workdir=work / "prune" if work else None, seed=seed, progress=progress
        ),
        lambda p: f"{len(p.supports)} sites, {density_of(p.supports):.1%} of their weights kept",
    )
    one_shot = steps.run("evaluate after pruning", lambda: task(student), _shown).value
    recovered = None
    if recovery is not None:
        recovered = steps.run(
            "recover",
            lambda: _recover(student, dense, recovery, batches, pruned.supports, work, seed, progress),
            _recovered,
        )
    drawn = steps.run(
        "plan",
        lambda: plan(student, pruned.supports, batch=[rows_of(b) for b in examples.values()], dtypes=value_dtypes),
        lambda p: f"{sum(r.kernel != 'dense' for r in p.rows)} of {len(p.rows)} layers run sparse",
    )
    fast = drawn.apply(student)
    quality = steps.run("evaluate planned model", lambda: task(fast), _shown).value
    cases = steps.run(
        "time",
        lambda: [time_case(n, dense, fast, b) for n, b in examples.items()],
        lambda c: f"{c[0]['ratio']:.2f}x on {c[0]['name']}",
    )
    data_out = figures(
        name=name or type(model).__name__,
        command=command or "sparseworks.compress(...)",
        method=method,
        recipe=recipe,
        seed=seed,
        dense=dense,
        fast=fast,
        pruned=pruned,
        plan=drawn,
        task=task,
        qualities=(dense_quality, one_shot if recovered else None, quality),
        cases=cases,
        recovered=recovered,
        frontier=frontier,
        steps=steps,
    )
    return Result(fast, student, pruned.supports, drawn, recipe, data_out, assets)


def _search(
    dense: nn.Module,
    method: Method,
    goal: Goal,
    batches: list[Any],
    task: Task,
    examples: Mapping[str, Any],
    value_dtypes: Sequence[torch.dtype],
    skip: Sequence[str],
    seed: int,
    work: Path | None,
    say: Callable[[str], None] | None,
) -> tuple[Recipe, list[dict[str, Any]]]:
    """The recipe found and the frontier; kept in `work`, since timings differ from run to run and a resumed run must not."""
    kept = work / "search.json" if work else None
    if kept is not None and kept.exists():
        saved = json.loads(kept.read_text(encoding="utf-8"))
        return Recipe.from_yaml(saved["recipe"]), saved["frontier"]
    found = search(
        dense, method, goal, data=batches, evaluate=task, examples=examples, value_dtypes=value_dtypes, skip=skip,
        seed=seed, say=say,
    )  # fmt: skip
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(".partial")
        partial.write_text(json.dumps({"recipe": found.best.recipe.to_yaml(), "frontier": found.frontier}), "utf-8")
        partial.replace(kept)
    return found.best.recipe, found.frontier


def _recover(
    student: nn.Module,
    dense: nn.Module,
    how: Recover,
    batches: list[Any],
    supports: Mapping[str, Support],
    work: Path | None,
    seed: int,
    progress: bool,
) -> Recovery:
    return recover(
        student,
        dense,
        how.data if how.data is not None else batches,
        supports=supports,
        terms=how.terms,
        steps=how.steps,
        minutes=how.minutes,
        lr=how.lr,
        validate=how.validate,
        every=how.every,
        patience=how.patience,
        autocast=how.autocast,
        checkpoint=work / "recover.safetensors" if work else None,
        seed=seed,
        progress=progress,
    )


def _shown(result: Any) -> str:
    return f"{result.metric} {result.value:.4g}"


def _recovered(r: Recovery) -> str:
    return f"{r.steps} steps, loss {r.losses[0]:.4f} -> {r.losses[-1]:.4f}" if r.losses else f"{r.steps} steps"
