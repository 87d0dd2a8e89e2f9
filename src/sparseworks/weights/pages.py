"""What the pages of methods of weights and channels say beside what all pages say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import torch

from sparseworks.core.method import Method, brief
from sparseworks.core.pages import formula, nouns, particulars
from sparseworks.core.pattern import ELEMENT, WHOLE, Pattern
from sparseworks.core.select import select
from sparseworks.exec import FORMATS
from sparseworks.stream.gradients import SOURCES
from sparseworks.weights.channels import ChannelMethod

_TRIAL = (64, 128)  # a matrix that every pattern of the library divides


# -- methods of weights -------------------------------------------------------------------------------------------


@particulars.register
def _weights(method: Method) -> dict[str, Any]:
    parts = []
    for field in fields(method):
        value = getattr(method, field.name)
        if isinstance(value, Pattern):
            parts.append({"part": field.name, "name": str(value), "text": _pattern(value)})
        elif field.name != "budget":
            found = nouns(field.name, value)
            parts += [{"part": where, "name": brief(noun), "text": formula(type(noun))} for where, noun in found]
    return {"parts": parts, "needs": list(_needs(method)), "call": _call(method)}


def _pattern(pattern: Pattern) -> str:
    unit = "Single entries" if pattern.unit == ELEMENT else f"Tiles of {pattern.unit} entries"
    if pattern.across:
        where = "all sites of the model"
    elif pattern.group == WHOLE:
        where = "the matrix"
    elif pattern.group.cols is None and pattern.group.rows == 1:
        where = "their row"
    else:
        where = f"groups of {pattern.group}"
    kept = {
        None: "the budget says how many stay",
        "equal": "every group keeps equally many",
        "live": "every group keeps equally many or nothing",
    }
    stay = kept.get(pattern.quota, f"{pattern.quota} of each group stay")  # type: ignore[arg-type]
    return f"{unit} compete within {where}; {stay}." + (f" Then: {_pattern(pattern.inner)}" if pattern.inner else "")


def _needs(method: Method) -> Iterator[str]:
    if method.form is not None:
        yield "A factorisation: layers are replaced by products of smaller or sparse ones."
    elif method.cycle is not None:
        yield "Training: rounds of training and pruning in turn."
    elif method.train is not None:
        yield "Training: it acts after every step of the optimiser."
    else:
        yield "No training: it prunes the model as it is, or chooses the support that training then holds."
    sources = {k.source for k in method.needs | method.evidence_needs}
    grown = {k.source for k in getattr(method.train, "needs", ())} - {"support"}
    if sources & {"gradient", "hessian_gradient"}:
        yield "Data and a loss: batches for backward passes."
    if sources & {"input", "output", "layer"}:
        yield "Calibration data: batches of inputs, no labels."
    if "training" in sources:
        yield "Statistics of a training run (`track_movement`)."
    if "synaptic_flow" in sources:
        yield "One batch, of which only the shape counts."
    if not sources:
        yield "No data of its own." if not (method.train or method.cycle) else "No data but those it trains on."
    if "gradient" in grown:
        yield "Gradients at every entry, kept or not, at each change of the support."
    fixed = method.pattern.fixed_density
    if method.train is not None and method.train.emergent:
        yield "No budget: the density comes out of training."
    else:
        yield (
            f"Density {fixed:g}, which the pattern fixes."
            if fixed is not None
            else "A budget: any density, or a count, bytes, FLOPs."
        )
    if method.form is not None:
        return
    yield f"Packed forms that hold what it keeps: {', '.join(_forms(method))}. `sparseworks plan` measures which is fastest, if any beats dense."


def _forms(method: Method) -> list[str]:
    """Formats other than the dense one that take a support of the method's pattern."""
    pattern = method.pattern
    density = 0.25 if pattern.fixed_density is None else pattern.fixed_density
    scores = torch.rand(_TRIAL, generator=torch.Generator().manual_seed(0))
    support = select(scores, pattern, pattern.counts(_TRIAL, density))
    known = ((name, form) for name, form in FORMATS.items() if name != "dense")
    return [name for name, form in known if any(form.refuses(support, d) is None for d in form.dtypes)]


def _call(method: Method) -> str:
    emergent = method.train is not None and method.train.emergent
    ask = (
        f'sw.method("{method.name}")'
        if method.pattern.fixed_density is not None or emergent
        else f'sw.method("{method.name}", density=0.3)'
    )
    data = {k.source for k in method.needs | method.evidence_needs} & {*SOURCES, "input", "output", "layer"}
    if method.form is not None:
        return f"sw.factorise(model, {ask}{', data' if data else ''})"
    if method.cycle is not None:
        return f"sw.cycles(model, {ask}, train, steps=steps)"
    if method.train is not None:
        return f"sparsifier = sw.Sparsifier(model, {ask}, optimizer, steps=steps)   # and sparsifier.step() after optimizer.step()"
    stats = ", stats=stats" if any(k.source == "training" for k in method.needs) else ""
    return f"sw.prune(model, {ask}{', data' if data else ''}{stats})"


# -- methods of channels ------------------------------------------------------------------------------------------


@particulars.register
def _channels(method: ChannelMethod) -> dict[str, Any]:
    parts = [
        {"part": part, "name": noun.__name__, "text": formula(noun)}
        for part, noun in (("score", method.score), ("allocate", method.shares))
    ]
    needs = [
        "No training: it prunes the model as it is.",
        "Calibration data: batches of inputs, no labels.",
        "A density of channels; what is left are smaller dense layers, which need no sparse kernel.",
    ]
    return {
        "parts": parts,
        "needs": needs,
        "call": f'sparseworks.weights.prune_channels(model, "{method.name}", data, density=0.5)',
    }
