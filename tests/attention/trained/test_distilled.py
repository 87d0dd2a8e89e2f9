"""Gates that are distilled into a finished model: what they let go, and what that costs, against letting go without training."""

from __future__ import annotations

import pytest
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


ASKED = torch.arange(LENGTH) >= LENGTH - 24


def predicted(seed, steps=60):
    """recall-lm, frozen, with a predictor behind its first layer that was trained to keep 22 % of the tokens before the questions."""
    model = sw.load("sparseworks/recall-lm").float().eval().requires_grad_(False)
    torch.manual_seed(seed)
    attached = attach(model, sw.method("dynamic_llava", layer=1, width=32, target=0.22))
    for gate in attached.modules.values():
        gate.protect = ASKED
    optimiser = torch.optim.Adam(attached.parameters(), 1e-3)
    for step in range(steps):
        ids = rows(4, 1000 * seed + step).ids
        attached.set_progress(min(1.0, step / (0.8 * steps)))
        with torch.no_grad():
            teacher = model(ids, use_cache=False).logits[:, ASKED]
        model.train()
        with training(attached):
            student = model(ids, use_cache=False).logits[:, ASKED]
        (distillation(student, teacher) + attached.modules[1].loss).backward()
        torch.nn.utils.clip_grad_norm_(attached.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        model.eval()
    attached.set_progress(1.0)
    return model, attached


@pytest.mark.parametrize("seed", [0, 1])
def test_predicted_tokens_answer_what_random_ones_and_those_attended_to_do_not(seed):
    """Eight pairs, all asked for, are 22 % of the tokens before the questions; so many stay as keys from the second layer on."""
    model, attached = predicted(seed)
    examples = mqar(48, LENGTH, pairs=PAIRS, turns=PAIRS, seed=10**6)
    first, gate = attached.modules[0], attached.modules[1]
    with torch.no_grad(), training(attached):
        model(examples.ids, use_cache=False)
        share = float(gate.decided[:, ~ASKED].mean())
        found = {"predicted": Recall(examples)(model).value}
        seen, draw, attend = {}, torch.Generator().manual_seed(seed), first.forward

        def watched(heads):
            seen["attention"] = heads.scores().softmax(-1)[:, :, ASKED].mean((1, 2))
            seen["random"] = torch.rand(seen["attention"].shape, generator=draw)
            return attend(heads)

        first.forward = watched
        for name in ("random", "attention"):

            def decide(hidden, first=0, name=name):
                score = seen[name].masked_fill(ASKED, -1.0)
                best = score.topk(round(share * int((~ASKED).sum())), -1).indices
                gate.decided = torch.zeros_like(score).scatter(1, best, 1.0).masked_fill(ASKED, 1.0)
                return gate.decided

            gate.decide = decide
            found[name] = Recall(examples)(model).value
    assert share == pytest.approx(0.22, abs=0.02)
    assert found["predicted"] > found["random"] + 0.4, (share, found)
    assert found["predicted"] > found["attention"] + 0.03, (share, found)
