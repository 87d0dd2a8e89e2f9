"""The main job: calibrate, prune, repair, recover, plan, and measure quality, size and speed beside the dense model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from sparseworks.core.errors import CalibrationError
from sparseworks.core.method import Method
from sparseworks.core.recipe import Recipe
from sparseworks.core.support import Support
from sparseworks.evaluate import OutputSimilarity, Task
from sparseworks.exec import plan
from sparseworks.jobs.goal import Goal
from sparseworks.jobs.record import Seen, record_of
from sparseworks.jobs.result import Result, Steps, density_of, figures, twin
from sparseworks.jobs.search import search
from sparseworks.jobs.timing import time_case
from sparseworks.stream import sites
from sparseworks.weights import Embedding, Recovery, SquareHead, Term, prune, recover

_REFINE = 20  # a variant of a search is refined for this fraction of the recovery


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
        data: calibration batches (dicts of keyword arguments, tuples or tensors), or texts for a model that `sparseworks.load`
            found together with a tokenizer; not needed by data-free methods.
        evaluate: the quality task; without one, quality is the mean output similarity to the dense model on `data`.
        goal: search patterns and densities per site for this speed-up and loss, instead of those of `method`.
        examples: case name -> batch to time, the first being the headline; default: the first calibration batch.
        recovery: fine-tune with the support fixed, the dense model as teacher.
        skip: shell-style patterns of site names that stay dense.
        value_dtypes: types in which kept values may be stored; bfloat16 and int16 beside float32 allow faster, rounded kernels.
        workdir: folder for intermediate state; the same call after an interruption goes on from there.

    Raises:
        CalibrationError: no batch to time or calibrate with, or a goal together with a recipe.
        ModelError: texts for a model without a tokenizer.
    """
    batches = _batches(model, data)
    examples = dict(examples) if examples else ({"calibration batch": batches[0]} if batches else {})
    if not examples:
        raise CalibrationError(
            "compress needs `data` or `examples`: without an input nothing can be calibrated or timed."
        )
    work = Path(workdir) if workdir else None
    steps = Steps(say)
    dense, student = twin(model), twin(model)
    task = evaluate or OutputSimilarity(batches or list(examples.values()), dense)
    dense_quality = steps.run("evaluate dense", lambda: task(dense, progress), _shown).value
    recipe, frontier = Recipe.of(method, skip=skip), []
    if goal is not None and isinstance(method, Recipe):
        raise CalibrationError(
            "A goal searches over densities and patterns of one method; give a method, not a recipe."
        )
    if goal is not None:
        found = steps.run(
            "search",
            lambda: search(
                dense, cast(Method, method), goal, data=batches, evaluate=task, examples=examples, value_dtypes=value_dtypes,
                skip=skip, refine=_refiner(dense, recovery, batches, seed), seed=seed, workdir=work, say=say,
            ),
            lambda f: f"{len(f.frontier)} variants on the frontier, chosen {f.best.label}",
        )  # fmt: skip
        recipe, frontier = found.best.recipe, found.frontier

    pruned = steps.run(
        "prune",
        lambda: prune(
            student, recipe, batches or None, workdir=work / "prune" if work else None, seed=seed, progress=progress
        ),
        lambda p: f"{len(p.supports)} sites, {density_of(p.supports):.1%} of their weights kept",
    )
    one_shot = steps.run("evaluate after pruning", lambda: task(student, progress), _shown).value
    recovered = None
    if recovery is not None:
        recovered = steps.run(
            "recover",
            lambda: _recover(student, dense, recovery, batches, pruned.supports, work, seed, progress),
            _recovered,
        )
    drawn = steps.run(
        "plan",
        lambda: plan(student, pruned.supports, examples=[*examples.values()], dtypes=value_dtypes),
        lambda p: f"{sum(r.kernel != 'dense' for r in p.rows)} of {len(p.rows)} layers run sparse",
    )
    fast = drawn.apply(student)
    quality = steps.run("evaluate planned model", lambda: task(fast, progress), _shown).value
    cases = steps.run(
        "time",
        lambda: [time_case(n, dense, fast, b) for n, b in examples.items()],
        lambda c: f"{c[0]['ratio']:.2f}x on {c[0]['name']}",
    )
    seen = Seen.of(batches, recovery.data if recovery else None, recovered.steps if recovered else 0)
    record = record_of(
        method.name if isinstance(method, Method) else "recipe", recipe, sites(dense), pruned.supports,
        parent=sum(p.numel() for p in dense.parameters()), task=task, value=quality, seen=seen, seed=seed,
    )  # fmt: skip
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
        record=record,
    )
    return Result(fast, student, pruned.supports, drawn, recipe, data_out, assets)


def _batches(model: nn.Module, data: Iterable[Any] | None) -> list[Any]:
    """The calibration data as a list; texts become batches of tokens."""
    batches = list(data) if data is not None else []
    if not any(isinstance(item, str) for item in batches):
        return batches
    from sparseworks.jobs.setting import batches_of  # which itself needs `Recover`

    return batches_of(model, batches)


def _refiner(
    dense: nn.Module, how: Recover | None, batches: list[Any], seed: int
) -> Callable[[nn.Module, Mapping[str, Any]], None] | None:
    """A twentieth of the recovery for every variant of a search, so that its quality tells what recovery can mend."""
    if how is None:
        return None
    short = replace(
        how,
        steps=how.steps and max(1, how.steps // _REFINE),
        minutes=how.minutes and how.minutes / _REFINE,
        validate=None,
    )

    def refine(student: nn.Module, supports: Mapping[str, Support]) -> None:
        _recover(student, dense, short, batches, supports, None, seed, False)

    return refine


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
    """A short run has one loss to show."""
    ends = [f"{loss:.4f}" for loss in (*r.losses[:1], *r.losses[1:][-1:])]
    return f"{r.steps} steps" + (f", loss {' -> '.join(ends)}" if ends else "")
