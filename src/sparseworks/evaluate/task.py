"""A task measures the quality of a model; tasks are registered, so that one is found by its name on the command line."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from sparseworks.core.errors import CalibrationError, NonFiniteError
from sparseworks.core.registry import Registry

T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """What a task found.

    Attributes:
        metric: name of the figure, e.g. "nDCG@10".
        value: the figure itself.
        details: other figures of the same run (counts, standard error, further metrics), plain data.
        seconds: how long the evaluation took.

    Raises:
        NonFiniteError: the value is NaN or infinite.
    """

    metric: str
    value: float
    details: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise NonFiniteError(
                f"The {self.metric} is {self.value}: the model's outputs hold NaN or infinity, or are so far off that "
                "the figure overflows. Check its weights, or evaluate in float32."
            )


class Task(ABC):
    """A quality measure: `task(model) -> Result`. Data are prepared once, when the task is made.

    Attributes:
        name: the name it is registered under.
        metric: what `Result.value` is called.
        higher_is_better: direction of `Result.value`.
    """

    name: ClassVar[str]
    metric: str
    higher_is_better: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, model: nn.Module, progress: bool = False) -> Result:
        """Measure `model`, which is put into evaluation mode for the time and otherwise left as it is."""

    @classmethod
    @abstractmethod
    def build(
        cls, model: nn.Module, tokenizer: Any = None, data: Path | str | None = None, limit: int | None = None
    ) -> Task:
        """The task for `model` on the data at a path.

        Args:
            model: the dense model; its kind and context length shape the task.
            tokenizer: a `tokenizers.Tokenizer` or a fast Hugging Face tokenizer.
            data: file or folder; default: documentation that every machine holds.
            limit: use only this many items (documents, queries or examples).

        Raises:
            CalibrationError: the data are missing, empty, unreadable or do not fit the model.
        """


TASKS: Registry[type[Task]] = Registry("task")


def task_for(model: nn.Module, tokenizer: Any = None) -> str:
    """The task that suits a kind of model: causal LM -> perplexity, classifier -> classification, text encoder -> retrieval.

    Anything else is compared with its dense twin: similarity.
    """
    architectures = getattr(getattr(model, "config", None), "architectures", None) or [type(model).__name__]
    if any(a.endswith(("ForCausalLM", "LMHeadModel")) for a in architectures):
        return "perplexity"
    if any(a.endswith("ForSequenceClassification") for a in architectures):
        return "classification"
    return "retrieval" if tokenizer is not None and hasattr(model, "get_input_embeddings") else "similarity"


def some(items: Sequence[T], what: str, remedy: str) -> Sequence[T]:
    """`items`, unless there are none.

    Raises:
        CalibrationError: nothing to evaluate.
    """
    if len(items) == 0:
        raise CalibrationError(f"{what} is empty: nothing can be measured. {remedy}")
    return items


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter (or buffer) lives; the CPU for a model with neither."""
    for tensor in model.parameters():
        return tensor.device
    for tensor in model.buffers():
        return tensor.device
    return torch.device("cpu")
