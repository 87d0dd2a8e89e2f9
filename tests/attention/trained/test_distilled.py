"""Gates that are distilled into a finished model: what they let go, and what that costs, against letting go without training."""

from __future__ import annotations

import torch

import sparseworks as sw
from sparseworks.attention.masks import Sink, Window
from sparseworks.attention.trained import attach, distillation, training
from sparseworks.core.pattern import ELEMENT, ROW, Pattern
from sparseworks.evaluate.sequences import Recall, mqar

LENGTH, PAIRS = 96, 8
ELEMENTS = Pattern(ELEMENT, ROW)


def rows(n, seed):
    return mqar(n, LENGTH, pairs=PAIRS, turns=8, seed=seed)


EXAMPLES = mqar(48, LENGTH, pairs=PAIRS, turns=4, seed=10**6)


def distilled(method, steps, rate, protect=None):
    """recall-lm, frozen, with gates that were trained to leave its logits as they are."""
    model = sw.load("sparseworks/recall-lm").float().eval().requires_grad_(False)
    torch.manual_seed(0)
    attached = attach(model, method)
    for gate in attached.modules.values():
        gate.protect = protect
    optimiser = torch.optim.Adam(attached.parameters(), rate)
    for step in range(steps):
        ids = rows(3, step).ids
        attached.set_progress(min(1.0, step / (0.8 * steps)))
        with torch.no_grad():
            teacher = model(ids, use_cache=False).logits
        model.train()
        with training(attached):
            loss = distillation(model(ids, use_cache=False).logits, teacher) + attached.loss()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        model.eval()
    attached.set_progress(1.0)
    return model, attached


def accuracy(model, attached):
    with training(attached):
        return Recall(EXAMPLES)(model).value


def test_pruned_context_answers_what_a_window_of_that_size_does_not():
    method = sw.method("context_pruning", width=16, bias=3.0, weight=0.3)
    model, attached = distilled(method, 30, 3e-3)
    pruned = accuracy(model, attached)
    density = attached.density
    width = round(LENGTH * (1 - (1 - density) ** 0.5)) + 1  # a window that keeps as many pairs or more
    with sw.attention(model, sw.method("sink_window", always=Sink(1) | Window(width), pattern=ELEMENTS)) as run:
        near = Recall(EXAMPLES)(model).value
    assert density < 0.65 and run.density() >= density - 0.02
    assert pruned > near + 0.3, (pruned, near)
