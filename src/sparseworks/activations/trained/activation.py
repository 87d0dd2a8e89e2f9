"""Activation: a function that leaves zeros behind, with a defined backward pass; and the kind of method that trains a model with one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from jaxtyping import Float
from torch import Tensor

from sparseworks.core.config import NOUNS
from sparseworks.core.published import METHODS, Published
from sparseworks.core.registry import Registry
from sparseworks.core.schedule import Schedule

ACTIVATIONS: Registry[type[Activation]] = Registry("activation", "sparseworks.activations")


class Activation:
    """`activation(x) -> x'` with zeros in x', and a gradient that the activation defines; a frozen dataclass.

    Attributes:
        built_with: module or function that a model is built with to use it; "" where `train_sparse` puts it into a given model,
            before linear layers or, with `nonlinear`, in place of its nonlinearities.
        free: it needs no training.
    """

    registered_name: ClassVar[str]
    built_with: ClassVar[str] = ""
    nonlinear: ClassVar[bool] = False
    free: ClassVar[bool] = False

    def __call__(self, x: Float[Tensor, "*lead n"]) -> Float[Tensor, "*lead n"]:
        """x with zeros."""
        raise NotImplementedError

    @classmethod
    def example(cls) -> Self:
        """One that small tensors can take, for tests of whatever is registered."""
        return cls()


NOUNS["activation"] = (Activation, ACTIVATIONS)


@dataclass(frozen=True)
class TrainedMethod(Published):
    """A model is trained with activations that leave zeros.

    Attributes:
        activation: what leaves them, and where.
        schedule: the share of its sparsity that is reached as training goes on; None = all of it from the start.
    """

    family: ClassVar[str] = "activations"
    kind: ClassVar[str] = "trained activations"
    used_by: ClassVar[str] = "sparseworks.activations.trained.train_sparse(model, method)"
    PARTS: ClassVar[Mapping[str, str]] = {"activation": "activation", "schedule": "schedule"}

    activation: Activation
    schedule: Schedule | None = None


def add(method: TrainedMethod) -> TrainedMethod:
    """Register it under its name."""
    METHODS.register(method.name)(method)
    return method
