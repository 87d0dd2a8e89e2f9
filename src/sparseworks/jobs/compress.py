"""The main job: calibrate, prune, repair, recover, plan, and measure quality, size and speed beside the dense model."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparseworks.core.errors import CalibrationError
from sparseworks.core.method import Method
from sparseworks.core.recipe import Recipe
from sparseworks.evaluate import Task
from sparseworks.exec import measure, plan
from sparseworks.jobs.result import Result, Steps, model_bytes, site_rows, twin, versions
from sparseworks.weights.distill import Embedding, SquareHead, Term, call
from sparseworks.weights.prune import prune
from sparseworks.weights.recover import Recovery, recover


@dataclass(frozen=True)
class Recover:
    """How to recover after pruning: loss terms, length, learning rate, and data other than the calibration batches."""

    terms: Sequence[Term] = field(default_factory=lambda: (Embedding(1.0), SquareHead(0.5)))
    steps: int = 500
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
        examples: case name -> batch to time, the first being the headline; default: the first calibration batch.
        recovery: fine-tune with the support fixed, the dense model as teacher.
        skip: shell-style patterns of site names that stay dense.
        value_dtypes: types in which kept values may be stored; bfloat16 beside float32 allows faster, rounded kernels.
        workdir: folder for intermediate state; the same call after an interruption goes on from there.

    Raises:
        CalibrationError: no batch to time or calibrate with.
    """
    batches = list(data) if data is not None else []
    examples = dict(examples) if examples else ({"calibration batch": batches[0]} if batches else {})
    if not examples:
        raise CalibrationError(
            "compress needs `data` or `examples`: without an input nothing can be calibrated or timed."
        )
    work = Path(workdir) if workdir else None
    recipe = Recipe.of(method, skip=skip)
    steps = Steps(say)
    dense, student = twin(model), twin(model)
    task = evaluate or OutputSimilarity(batches or list(examples.values()), dense)

    pruned = steps.run(
        "prune",
        lambda: prune(
            student, recipe, batches or None, workdir=work / "prune" if work else None, seed=seed, progress=progress
        ),
        lambda p: f"{len(p.supports)} sites, {_density(p.supports):.1%} of their weights kept",
    )
    dense_quality = steps.run("evaluate dense", lambda: task(dense), _shown).value
    one_shot = steps.run("evaluate after pruning", lambda: task(student), _shown).value
    recovered = None
    if recovery is not None:
        recovered = steps.run(
            "recover", lambda: _recover(student, dense, recovery, batches, pruned, work, seed, progress), _recovered
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
        lambda: [_time(n, dense, fast, b) for n, b in examples.items()],
        lambda c: f"{c[0]['ratio']:.2f}x on {c[0]['name']}",
    )

    figures = {
        "schema": 1,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command or "sparseworks.compress(...)",
        "versions": versions(),
        "machine": measure.machine(),
        "model": {"name": name or type(model).__name__, "parameters": sum(p.numel() for p in model.parameters())},
        "method": _method_facts(method),
        "recipe": recipe.to_yaml(),
        "seed": seed,
        "density": _density(pruned.supports),
        "quality": {
            "metric": task.metric,
            "dense": dense_quality,
            "one_shot": one_shot if recovered else None,
            "sparse": quality,
            "higher_is_better": task.higher_is_better,
            "drop": drop(dense_quality, quality, task.higher_is_better),
        },
        "speed": {
            **{k: cases[0][k] for k in ("dense_ms", "sparse_ms", "ratio", "spread")},
            "case": cases[0]["name"],
            "threads": torch.get_num_threads(),
            "rows": rows_of(next(iter(examples.values()))),
            "cases": cases,
        },
        "bytes": {"dense": model_bytes(dense), "sparse": model_bytes(fast)},
        "sites": site_rows(pruned.rows, drawn),
        "recovery": None if recovered is None else vars(recovered) | {"losses": list(recovered.losses)},
        "frontier": [],
        "steps": [vars(s) for s in steps.done],
    }
    figures["frontier"] = [
        {"label": "dense", "speed": 1.0, "quality": dense_quality},
        {"label": "this model", "speed": cases[0]["ratio"], "quality": quality, "chosen": True},
    ]
    return Result(fast, student, pruned.supports, drawn, recipe, figures, assets)


class OutputSimilarity:
    """Mean cosine between the outputs of a model and of the dense model on the same batches: quality when there is no task."""

    metric = "output similarity"
    higher_is_better = True
    name = "similarity"

    def __init__(self, batches: Sequence[Any], dense: nn.Module):
        self.batches = list(batches)[:16]
        self.reference = [self._output(dense, b) for b in self.batches]

    @staticmethod
    def _output(model: nn.Module, batch: Any) -> Tensor:
        from sparseworks.weights.distill import Outputs, pooled, token_mask

        with torch.inference_mode():
            output = call(model, batch)
            if hasattr(output, "last_hidden_state"):
                return pooled(Outputs(output, mask=token_mask(batch)))
            out = Outputs(output).logits
            return out.reshape(-1, out.shape[-1]).float()

    def __call__(self, model: nn.Module, **_: Any) -> Any:
        """Mean cosine over rows."""
        from sparseworks.evaluate import Result as Score

        pairs = zip((self._output(model, b) for b in self.batches), self.reference, strict=True)
        value = torch.cat([torch.cosine_similarity(a, b, dim=-1) for a, b in pairs]).mean().item()
        return Score(self.metric, value, {}, 0.0)


def drop(dense: float, sparse: float, higher_is_better: bool) -> float:
    """Relative loss of quality, positive when the sparse model is worse."""
    return (dense - sparse) / abs(dense) if higher_is_better else (sparse - dense) / abs(dense)


def rows_of(batch: Any) -> int:
    """Tokens (rows of the matrix products) in a batch: all but the last axis of a float tensor, every id of an id tensor."""
    first = (
        next(iter(batch.values()))
        if hasattr(batch, "values")
        else batch[0]
        if isinstance(batch, tuple | list)
        else batch
    )
    return max(1, first.numel() if not first.is_floating_point() else first.numel() // first.shape[-1])


def _recover(
    student: nn.Module,
    dense: nn.Module,
    how: Recover,
    batches: list[Any],
    pruned: Any,
    work: Path | None,
    seed: int,
    progress: bool,
) -> Recovery:
    return recover(
        student,
        dense,
        how.data if how.data is not None else batches,
        supports=pruned.supports,
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


def _time(name: str, dense: nn.Module, fast: nn.Module, batch: Any) -> dict[str, Any]:
    with torch.inference_mode():
        timing = measure.compare({"dense": lambda: call(dense, batch), "sparse": lambda: call(fast, batch)})
    return {
        "name": name,
        "dense_ms": timing["dense"].ms,
        "sparse_ms": timing["sparse"].ms,
        "ratio": timing["dense"].ms / timing["sparse"].ms,
        "spread": timing["sparse"].spread,
    }


def _method_facts(method: Method | Recipe) -> dict[str, str]:
    if isinstance(method, Recipe):
        return {"name": "recipe", "composition": f"{len(method.rules)} rules", "source": ""}
    return {"name": method.name, "composition": method.composition, "source": str(method.source)}


def _density(supports: Mapping[str, Any]) -> float:
    size = sum(s.size for s in supports.values())
    return sum(s.count for s in supports.values()) / size if size else 1.0


def _shown(result: Any) -> str:
    return f"{result.metric} {result.value:.4g}"


def _recovered(r: Recovery) -> str:
    return f"{r.steps} steps, loss {r.losses[0]:.4f} -> {r.losses[-1]:.4f}" if r.losses else f"{r.steps} steps"
