"""Whether a method can be run in cycles on a model with what is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from sparseworks.core.cycle import Cycle
from sparseworks.core.errors import BudgetError, CalibrationError, ModelError
from sparseworks.core.method import Method
from sparseworks.core.site import Site
from sparseworks.weights.cycles.average import normalises


def checked(
    method: Method,
    model: nn.Module,
    sites: Sequence[Site],
    steps: int | None,
    batches: Sequence[Any],
    evaluate: Any,
) -> Cycle:
    """The method's cycle; what cannot work is refused before anything is trained.

    Raises:
        ModelError: the method has no cycle, or there is nothing to prune.
        BudgetError: the pattern fixes the density or does not suit the cycle, or `steps` is missing.
        CalibrationError: an average needs `batches` (batch normalisation) or `evaluate` (greedy).
    """
    cycle = method.cycle
    if cycle is None:
        raise ModelError(
            f"Method {method.name!r} has no cycle; take one that has ('imp'), or give it one: "
            f"`method.with_(cycle={{'cycle': {{'rewind': 0.0}}}})`."
        )
    if not sites:
        raise ModelError("Nothing to prune: the model has no sites, or `skip` leaves all of them dense.")
    if method.pattern.fixed_density is not None or method.budget.needs_scores:
        raise BudgetError(
            f"Method {method.name!r}: a cycle prunes to one count after another, {method.pattern} cannot."
        )
    if cycle.activate and not (method.pattern.across and method.pattern.unit.sizes((1, 1)) == (1, 1)):
        raise BudgetError(f"Method {method.name!r} activates single weights of the whole model: use pattern 'global'.")
    if cycle.timed and not steps:
        raise BudgetError(f"Method {method.name!r} acts at a share of a training: give `steps`, the length of one.")
    if (cycle.copies > 1 or cycle.tail is not None) and normalises(model) and not batches:
        raise CalibrationError(
            f"Method {method.name!r} averages a model with batch normalisation, whose statistics are then measured anew: "
            "give `data` (a fifth of the training batches is enough)."
        )
    if cycle.greedy and cycle.copies > 1 and evaluate is None:
        raise CalibrationError(f"Method {method.name!r} averages greedily: give `evaluate`, on data held out.")
    for site in sites:
        method.pattern.check(site.shape)
    return cycle
