"""ActivationMethod: a published method of making activations sparse, as a frozen bundle of nouns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from sparseworks.activations.cut import CalibratedThreshold, InputCut
from sparseworks.activations.place import ActivationPlace, LinearInputs
from sparseworks.activations.score import ActivationScore, InputMagnitude
from sparseworks.activations.transform import ActivationRepair, ModelTransform
from sparseworks.core.allocator import Allocator, Uniform
from sparseworks.core.budget import Budget, Density
from sparseworks.core.published import METHODS as METHODS
from sparseworks.core.published import Published
from sparseworks.core.published import Source as Source


@dataclass(frozen=True)
class ActivationMethod(Published):
    """score x cut x budget x allocation x place (x transform, repair), and its provenance.

    Attributes:
        budget: a Density is the share of all weights that a token reads, a Count the inputs that every token keeps in every layer,
            a Threshold what a score must exceed.
        transform: an equivalent model in which masks cost less, made beforehand; None = the model as it is.
        repair: what becomes of dropped inputs; None = they are zero.
    """

    family: ClassVar[str] = "activations"
    kind: ClassVar[str] = "activations"
    used_by: ClassVar[str] = "sw.sparsify_activations(model, method, data)"
    PARTS: ClassVar[Mapping[str, str]] = {
        "score": "activation_score",
        "cut": "input_cut",
        "budget": "budget",
        "allocate": "allocate",
        "place": "activation_place",
        "transform": "model_transform",
        "repair": "activation_repair",
    }

    name: str
    score: ActivationScore = field(default_factory=InputMagnitude)
    cut: InputCut = field(default_factory=CalibratedThreshold)
    budget: Budget = field(default_factory=lambda: Density(0.5))
    allocate: Allocator = field(default_factory=Uniform)
    place: ActivationPlace = field(default_factory=LinearInputs)
    transform: ModelTransform | None = None
    repair: ActivationRepair | None = None
