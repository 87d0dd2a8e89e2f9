"""What the pages of methods of activations say beside what all pages say."""

from __future__ import annotations

from typing import Any

from sparseworks.activations.method import ActivationMethod
from sparseworks.core.budget import Threshold
from sparseworks.core.pages import particulars


@particulars.register
def _activations(method: ActivationMethod) -> dict[str, Any]:
    uses = method.allocate
    fed = method.cut.calibrated or method.repair is not None or uses.uses_block or uses.uses_trials or bool(uses.needs)
    fed = fed and not isinstance(method.budget, Threshold)
    needs = [
        "No training: it masks the model as it is, whose weights may be sparse already.",
        "Calibration data: a few thousand tokens, no labels." if fed else "No data of its own.",
        "A density: the share of weights that a token reads."
        if not isinstance(method.budget, Threshold)
        else "No budget: the density comes of itself.",
        "Few tokens at a time: kernels skip weights for up to eight.",
    ]
    ask = (
        f'"{method.name}"'
        + (", data" if fed else "")
        + ("" if isinstance(method.budget, Threshold) else ", density=0.6")
    )
    return {"needs": needs, "call": f"sw.sparsify_activations(model, {ask})"}
