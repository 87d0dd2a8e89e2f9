"""Accuracy of a classifier over labelled batches."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from sparseworks.core.errors import CalibrationError, NonFiniteError, ShapeError
from sparseworks.evaluate.task import TASKS, Result, Task, some
from sparseworks.stream.modes import evaluating
from sparseworks.stream.outputs import logits_of
from sparseworks.stream.progress import bar
from sparseworks.stream.tree import call


@TASKS.register("classification")
class Classification(Task):
    """Share of examples whose largest logit is the label's (top-1 accuracy, 0 to 1).

    Args:
        batches: pairs (inputs, labels): inputs as the model is called (dict, tuple or tensor), labels integers (batch,).

    Raises:
        CalibrationError: no batches, or a batch that is not such a pair.
    """

    name = "classification"
    metric = "accuracy"
    higher_is_better = True

    def __init__(self, batches: Iterable[tuple[Any, Int[Tensor, "batch"]]]):
        self.batches = list(some(list(batches), "The list of batches", "Give at least one pair (inputs, labels)."))
        for number, pair in enumerate(self.batches):
            if not (isinstance(pair, tuple | list) and len(pair) == 2 and _is_labels(pair[1])):
                raise CalibrationError(f"Batch {number} is not a pair (inputs, labels) with a vector of whole labels.")

    def __call__(self, model: nn.Module, progress: bool = False) -> Result:
        """Accuracy; `details` holds its standard error sqrt(a (1 - a) / n) and the counts.

        Raises:
            ShapeError: the logits are not batch x classes.
            NonFiniteError: NaN among the logits.
        """
        started = time.perf_counter()
        correct = examples = 0
        with evaluating(model):
            for inputs, labels in bar(self.batches, "classify", progress):
                correct += int((predicted(model, inputs, len(labels)) == labels).sum())
                examples += len(labels)
        value = correct / examples
        error = math.sqrt(value * (1 - value) / examples)
        details = {"standard error": error, "correct": correct, "examples": examples}
        return Result(self.metric, value, details, time.perf_counter() - started)

    @classmethod
    def build(
        cls, model: nn.Module, tokenizer: Any = None, data: Path | str | None = None, limit: int | None = None
    ) -> Classification:
        """From a `.jsonl` file of records with `text` and `label` (a class number, or a name the model's config knows)."""
        from sparseworks.evaluate.text import token_batches
        from sparseworks.io.lines import records

        if data is None or tokenizer is None:
            raise CalibrationError(
                "Classification needs labelled data (.jsonl with `text` and `label`) and a tokenizer."
            )
        names = getattr(getattr(model, "config", None), "label2id", None) or {}
        rows = some([r for _, r in islice(records(data), limit)], str(data), "Give at least one record.")
        labels = [_label(r, names, f"{data}, record {i}") for i, r in enumerate(rows, start=1)]
        batches = token_batches([str(r.get("text", "")) for r in rows], tokenizer, length=256)
        sizes = [len(b["input_ids"]) for b in batches]
        return cls(list(zip(batches, torch.tensor(labels).split(sizes), strict=True)))


def predicted(model: nn.Module, inputs: Any, examples: int) -> Int[Tensor, "examples"]:
    """Class with the largest logit of each example, on the CPU."""
    logits = logits_of(call(model, inputs))
    if logits.dim() != 2 or len(logits) != examples:
        raise ShapeError(f"A classifier gives logits of {examples} examples x classes, got {tuple(logits.shape)}.")
    if bool(logits.isnan().any()):
        raise NonFiniteError("The logits hold NaN, so no class is the largest; check the model's weights.")
    return logits.argmax(dim=-1).cpu()


def _is_labels(labels: Any) -> bool:
    return isinstance(labels, Tensor) and labels.dim() == 1 and len(labels) > 0 and not labels.is_floating_point()


def _label(record: dict[str, Any], names: dict[str, int], where: str) -> int:
    label = record.get("label")
    if isinstance(label, int) and not isinstance(label, bool):
        return label
    if label in names:
        return names[label]
    raise CalibrationError(
        f"{where}: label {label!r} is neither a class number nor one of {', '.join(names) or 'no names'}."
    )
