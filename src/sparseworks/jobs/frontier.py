"""Methods of attention and of the cache on tasks whose answer is known: by density, by turn, the worst task beside the mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from sparseworks.attention.hf import attention
from sparseworks.attention.methods.frontier import SIX, at_density
from sparseworks.core.published import Published
from sparseworks.evaluate.sequences import Examples, turn_by_turn, worst


@dataclass(frozen=True)
class Measured:
    """One method on one task.

    Attributes:
        method, task: names.
        density: what was asked for; 1 for the dense model.
        turns: exact match of every question, in the order in which they were asked.
        nbytes: held by the cache after the last turn; 0 where a method does not ask for a cache of its own.
        read: share of the pairs that calls attended to, prefill and decoding.
    """

    method: str
    task: str
    density: float
    turns: tuple[float, ...]
    nbytes: int
    read: tuple[float, float]

    @property
    def value(self) -> float:
        """Mean over turns."""
        return sum(self.turns) / len(self.turns)


def ask(
    model: nn.Module, method: Published | None, examples: Examples, *, task: str = "", density: float = 1.0,
    question_in_prompt: bool = True, batch: int = 16,
) -> Measured:  # fmt: skip
    """Prefill the context, then ask every question on the cache that is left; the cache is kept between turns.

    The protocol of SCBench (Li et al. 2024, arXiv 2412.10319) in small: with the first question in the prompt a method that compresses
    by the last queries knows what will be asked first, and nothing of later turns.

    Args:
        method: None for the dense model.
        batch: rows at a time; bytes are those of the last batch.
    """
    options = {"question_in_prompt": question_in_prompt, "batch": batch}
    if method is None:
        found = turn_by_turn(model, examples, **options)
        return Measured("dense", task, 1.0, tuple(found.details["turns"]), 0, (1.0, 1.0))
    with attention(model, method) as run:
        cache = run.cache if run.caches else None
        found = turn_by_turn(model, examples, cache, **options)
        held = run.held.nbytes if run.held is not None else 0
        read = (run.density("prefill"), run.density("decode"))
    return Measured(method.name, task, density, tuple(found.details["turns"]), held, read)


def frontier(
    model: nn.Module, tasks: Mapping[str, Examples], densities: Iterable[float], methods: Sequence[str] = SIX, *, batch: int = 16
) -> list[Measured]:  # fmt: skip
    """The dense model and every method at every density on every task (The Sparse Frontier: Nawrot et al. 2025, arXiv 2504.17768)."""
    rows = [ask(model, None, examples, task=task, batch=batch) for task, examples in tasks.items()]
    for density in densities:
        for name in methods:
            for task, examples in tasks.items():
                method = at_density(name, density, examples.ids.shape[1])
                rows.append(ask(model, method, examples, task=task, density=density, batch=batch))
    return rows


def loss_by_task(rows: Sequence[Measured], method: str, density: float) -> dict[str, float]:
    """Exact match of the dense model minus that of the method, by task."""
    dense = {r.task: r.value for r in rows if r.method == "dense"}
    return {r.task: dense[r.task] - r.value for r in rows if r.method == method and r.density == density}


def tolerated(rows: Sequence[Measured], method: str, task: str, loss: float = 0.05) -> float:
    """The smallest density at which a method loses at most `loss` on a task, all larger ones being as good; 1 if none."""
    dense = next(r.value for r in rows if r.method == "dense" and r.task == task)
    best = 1.0
    mine = (r for r in rows if r.method == method and r.task == task)
    for row in sorted(mine, key=lambda r: -r.density):
        if dense - row.value > loss:
            break
        best = row.density
    return best


def worst_loss(rows: Sequence[Measured], method: str, density: float) -> tuple[str, float]:
    """The task that a method at a density loses most on, and how much: what the mean over tasks hides."""
    task, value = worst({t: -v for t, v in loss_by_task(rows, method, density).items()})
    return task, -value
