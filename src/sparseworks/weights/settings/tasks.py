"""Task-incremental learning: one set of weights, a support for every task, and nothing that a task relies on ever moves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparseworks.core.errors import CheckpointError, ModelError
from sparseworks.core.regime import REGIMES, Training
from sparseworks.core.score import Score
from sparseworks.core.stats import Stat, WeightGradient
from sparseworks.core.support import Support
from sparseworks.scores import Random
from sparseworks.weights.train.dropgrow import DropGrow
from sparseworks.weights.train.sparsifier import Sparsifier


@REGIMES.register("task_drop_grow")
@dataclass(frozen=True)
class TaskDropGrow(DropGrow):
    """Drop-and-grow within every stage, from a support of the stage's own, which `first` draws over all entries.

    Entries that no earlier stage has frozen begin it with the values that the model began with (in the authors' code with zeros,
    from which a layer behind a rectifier does not leave).

    Source: Yildirim, Gok Yildirim, Sokar, Mocanu and Vanschoren, 2023, arXiv 2308.14831.

    Attributes:
        average: gradients are averaged over steps as Adam averages them, for growth by `Momentum`; at frozen entries they are 0.
    """

    grow: Score = field(default_factory=Random)
    stop: float = 1.0
    average: bool = False

    def begin(self, run: Training) -> None:
        """Remember the first values, then a sparse start."""
        for s in run.sites:
            s.state["start"] = s.weight().clone()
        super().begin(run)

    def enter(self, run: Training) -> None:
        """Another sparse start; what was tried before and averages of gradients are those of another task."""
        for s in run.sites:
            s.put(s.state["start"])
            for name in ("visits", "supports", "mean", "square"):
                s.state.pop(name, None)
        super().begin(run)

    def before(self, run: Training) -> None:
        """Average the gradients."""
        for s in run.sites if self.average else ():
            gradient = s.gradient()
            for name, value, rate in (("mean", gradient, 0.1), ("square", gradient.square(), 0.001)):
                s.state[name] = s.state.get(name, torch.zeros_like(value)).lerp(value, rate)

    def _known(self, run: Training) -> Mapping[str, Sequence[Stat]]:
        known = {name: [*stats] for name, stats in super()._known(run).items()}
        for s in run.sites if self.average else ():
            seen = WeightGradient(*s.shape)
            seen.sum, seen.square, seen.count = s.state["mean"].double().cpu(), s.state["square"].double().cpu(), 1
            known.setdefault(s.name, []).append(seen)
        return known


@dataclass(frozen=True)
class Task:
    """What a finished task needs: its supports, and every parameter and buffer that is no site."""

    supports: dict[str, Support]
    rest: dict[str, Tensor]


class Tasks:
    """The tasks that a model has learned one after another under one `Sparsifier`, each to be had again bit for bit.

    run = sw.Sparsifier(model, "cl_dst", optimizer, steps=200, skip=("heads.*",))
    tasks = Tasks(run)
    for task in stream:
        train(model, optimizer, run, task)      # run.step() after every optimizer.step()
        tasks.close()                           # its weights are frozen; later tasks may use but not move them
        if another: run.next_stage()
    with tasks.at(0): ...                       # the model as it was when task 0 was closed

    Weights are shared, biases, norms and heads are few and kept per task.

    Source: isolation by masks as in Mallya and Lazebnik, 2018, arXiv 1711.05769 (PackNet).
    """

    def __init__(self, run: Sparsifier, state: Sequence[Mapping[str, Any]] | None = None):
        """Take hold of a run whose regime keeps dropped entries at zero; `state` as `state_dict` gave it.

        Raises:
            ModelError: the run trains dense weights.
            CheckpointError: `state` is of a model with other sites.
        """
        if run.regime.dense:
            raise ModelError(f"Method {run.method.name!r} trains dense weights, of which no task owns a part.")
        self.run, self.closed = run, [_loaded(entry, run) for entry in state or []]
        held = {place.site.parameter for place in run.sites}
        self._rest = [n for n in run.model.state_dict() if n not in held]

    def close(self) -> int:
        """The current task is learned: its weights are frozen. Returns its number."""
        self.run.freeze({place.name: place.mask for place in self.run.sites})
        now = self.run.model.state_dict()
        self.closed.append(Task(self.run.supports, {n: now[n].detach().clone() for n in self._rest}))
        return len(self.closed) - 1

    @contextmanager
    def at(self, task: int) -> Iterator[None]:
        """The model as it was when the task was closed; afterwards it is as before.

        Raises:
            ModelError: no such task is closed.
        """
        if not 0 <= task < len(self.closed):
            raise ModelError(f"Task {task} is not closed; {len(self.closed)} are.")
        model = self.run.model
        before = {n: t.detach().clone() for n, t in model.state_dict().items()}
        model.load_state_dict(before | self.closed[task].rest | self._weights(task))
        try:
            yield
        finally:
            model.load_state_dict(before)

    def state_dict(self) -> list[dict[str, Any]]:
        """Supports and rest of every closed task; the weights are in the run's own state."""
        return [{"supports": {n: s.bits() for n, s in t.supports.items()}, "rest": dict(t.rest)} for t in self.closed]

    @property
    def density(self) -> float:
        """Share of all entries that some closed task keeps."""
        used = {p.name: torch.zeros(p.shape, dtype=torch.bool) for p in self.run.sites}
        for task in self.closed:
            used = {name: mark | task.supports[name].mask() for name, mark in used.items()}
        return sum(int(m.sum()) for m in used.values()) / sum(m.numel() for m in used.values())

    def _weights(self, task: int) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for place in self.run.sites:
            name = place.site.parameter
            mask = self.closed[task].supports[place.name].mask().to(place.mask.device)
            values = self.run.frozen.values[name]
            tensor = found.setdefault(name, values.clone())
            place.site.put(tensor, torch.where(mask, place.site.view(values), 0.0))
        return found


def _loaded(entry: Mapping[str, Any], run: Sparsifier) -> Task:
    shapes = {place.name: place.shape for place in run.sites}
    if set(entry["supports"]) != set(shapes):
        raise CheckpointError("The tasks are those of a model with other sites; build it with the same arguments.")
    return Task({n: Support.from_bits(b, shapes[n]) for n, b in entry["supports"].items()}, dict(entry["rest"]))
