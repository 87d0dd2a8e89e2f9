"""ContextualMethod: heads and neurons chosen for each sample by a predictor that learned from the dense model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from sparseworks.activations.labels import ImportanceLabel, PlainAct, Structures, collect
from sparseworks.activations.predict import Contextual, Predictor, recall, spearman
from sparseworks.allocate.scored import Global
from sparseworks.core.allocator import Allocator, Uniform
from sparseworks.core.budget import Budget, Density
from sparseworks.core.errors import BudgetError, RecipeError
from sparseworks.core.pages import particulars
from sparseworks.core.published import METHODS, Published, Source
from sparseworks.stream.gradients import Loss


@dataclass(frozen=True)
class ContextualMethod(Published):
    """Labels x budget x allocation: which importance is learned, and whether units compete in their layer or over all of them.

    Attributes:
        allocate: Uniform (each layer keeps the same share) or Global (units of a kind compete over all layers).
    """

    family: ClassVar[str] = "activations"
    kind: ClassVar[str] = "contextual"
    used_by: ClassVar[str] = "sparseworks.activations.predict_structures(model, method, data)"
    PARTS: ClassVar[Mapping[str, str]] = {"label": "importance_label", "budget": "budget", "allocate": "allocate"}

    name: str
    label: ImportanceLabel = field(default_factory=PlainAct)
    budget: Budget = field(default_factory=lambda: Density(0.5))
    allocate: Allocator = field(default_factory=Global)

    def __post_init__(self):
        if not isinstance(self.allocate, Uniform | Global):
            raise RecipeError(f"Method {self.name!r} shares by uniform or global, not by {self.allocate}.")
        if not isinstance(self.budget, Density):
            raise BudgetError(f"Method {self.name!r} keeps a density of heads and neurons, not {self.budget}.")


@dataclass(frozen=True)
class PredictedStructures:
    """A model that leaves out heads and neurons sample by sample.

    Attributes:
        contextual: the hooks; `contextual.remove()` takes them away.
        predictor: importances from early states; None for a static average.
        spearman, recall: of the predictor against the labels, on samples it did not learn from, by coupling.
    """

    contextual: Contextual
    predictor: Predictor | None
    spearman: dict[str, float]
    recall: dict[str, float]


def predict_structures(
    model: nn.Module,
    method: ContextualMethod | str,
    data: Sequence[Any],
    *,
    density: float | None = None,
    kinds: Sequence[str] = ("head", "neuron"),
    static: bool = False,
    hidden: int = 2048,
    epochs: int = 100,
    lr: float = 1e-3,
    loss: Loss | None = None,
    at: float = 1.0,
    held_out: float = 0.2,
    seed: int = 0,
) -> PredictedStructures:
    """Learn which heads and neurons samples need, and hook the model so that it leaves the others out; the first block stays dense.

    Args:
        data: batches whose rows are samples.
        kinds: "head", "neuron" or both.
        static: the mean importance instead of a prediction: the baseline that does not look at the sample.
        loss: `loss(model, batch)` for labels with gradients.
        at: which token's early state is read, as a share of the sequence.
        held_out: share of the samples that rank correlation and recall are measured on.

    Raises:
        ModelError: no heads or neurons after the first block.
        CalibrationError: no data or no loss.
    """
    chosen = ContextualMethod.of(method)
    chosen = chosen if density is None else chosen.with_(density=density)
    structures = Structures.of(model, kinds)
    seen = collect(model, structures, list(data), chosen.label, loss=loss, at=at)
    cut = max(1, round((1 - held_out) * len(seen.early)))
    train = type(seen)(seen.early[:cut], seen.importance[:cut])
    test = type(seen)(seen.early[cut:], seen.importance[cut:]) if cut < len(seen.early) else train
    mean = train.importance.mean(dim=0)
    if static:
        predictor, importance = None, lambda early: mean.to(early.device).expand(len(early), -1)
    else:
        torch.manual_seed(seed)
        predictor = Predictor(seen.early.shape[1], seen.importance.shape[1], hidden)
        predictor.fit(train, structures.sizes, epochs=epochs, lr=lr, seed=seed)
        importance = lambda early: predictor.to(early.device)(early.float())  # noqa: E731
    assert isinstance(chosen.budget, Density)
    share = chosen.budget.value
    with torch.no_grad():
        predicted = importance(test.early).split(structures.sizes, dim=1)
    pairs = {
        c.name: (p, t)
        for c, p, t in zip(structures.units, predicted, test.importance.split(structures.sizes, 1), strict=True)
    }
    contextual = Contextual(model, structures, importance, share, isinstance(chosen.allocate, Global), at)
    return PredictedStructures(
        contextual,
        predictor,
        {name: spearman(p, t) for name, (p, t) in pairs.items()},
        {name: recall(p, t, max(1, round(share * p.shape[1]))) for name, (p, t) in pairs.items()},
    )


METHODS.register("shadowllm")(
    ContextualMethod(
        "shadowllm",
        source=Source("Akhauri, AbouElhamayed, Dotzel, Zhang, Rush, Huda and Abdelfattah", 2024, "2406.16635", "ShadowLLM: Predictor-based Contextual Sparsity for Large Language Models"),
        claims="One small network predicts from an early hidden state which heads and neurons the whole model needs for a prompt.",
        catalog=(94,),
        when="Prompts differ in what they need, and a model with ReLU leaves most neurons idle for each of them.",
        when_not="All inputs use the same heads and neurons: then the static average does as well, and pruning makes the model smaller for good.",
    )
)  # fmt: skip


@particulars.register
def _contextual(method: ContextualMethod) -> dict[str, Any]:
    return {
        "needs": [
            "No training of the model; a predictor of two layers is trained on labels of the dense model.",
            "Data and a loss: batches for backward passes."
            if method.label.uses_gradient
            else "Calibration data: batches of inputs, no labels.",
            "A density: the share of heads and neurons that stay for each sample.",
        ],
        "call": f'sparseworks.activations.predict_structures(model, "{method.name}", data, density=0.5)',
    }
