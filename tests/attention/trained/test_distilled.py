"""Gates that are distilled into a finished model: what they let go, and what that costs, against letting go without training."""

from __future__ import annotations

import pytest
import torch

import sparseworks as sw
from sparseworks.attention.trained import attach, distillation, training
from sparseworks.evaluate.sequences import Recall, mqar, turn_by_turn

LENGTH, PAIRS = 96, 8


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
        ids = rows(4, step).ids
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
