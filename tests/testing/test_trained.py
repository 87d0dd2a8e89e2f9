"""The suite of trained forms catches what it is for: one broken form each, and the sentence it is told."""

from __future__ import annotations

import pytest
import torch

import sparseworks as sw
from sparseworks import testing
from sparseworks.attention.trained.arm import ARMModel
from sparseworks.attention.trained.dms import DMSGate
from sparseworks.attention.trained.mosa import MoSAttention
from sparseworks.attention.trained.nsa import NSAttention


def small(name):
    method = sw.method(name)
    return method.with_(trainable=type(method.trainable).example())


def test_the_method_is_taken_as_it_is():
    testing.check_trained_attention("dms", tokens=64)


def of_all(self, heads):
    """What the last token says of all."""
    return self.logits(self.read(heads))[:, :, -1:].expand(-1, -1, heads.keys)


def of_the_batch(self, heads):
    """What the sequences of the batch say together."""
    return self.logits(self.read(heads)).mean(0, keepdim=True).expand(heads.batch, -1, -1)


def test_gates_that_learn_one_thing_and_do_another(monkeypatch):
    def bias(self, heads):
        at = torch.arange(heads.keys)
        goes = self.logits(self.read(heads)) > 1.0
        stays = torch.zeros(goes.shape).masked_fill(goes, -torch.inf)
        return heads.shared(stays.unsqueeze(2)).masked_fill(at[:, None] - at <= self.spec.window, 0.0)

    monkeypatch.setattr(DMSGate, "bias", bias)
    with pytest.raises(AssertionError, match=r"dms: layer \d attends otherwise at inference than in training"):
        testing.check_trained_attention(small("dms"))


@pytest.mark.parametrize(
    ("decisions", "sentence"), [(of_all, "the future is heard"), (of_the_batch, "a sequence alone differs")]
)
def test_choices_that_break_a_rule_in_training_and_at_inference_alike(monkeypatch, decisions, sentence):
    def kept(self, heads):
        at = torch.arange(heads.keys)
        return (decisions(self, heads) <= 0).unsqueeze(2) | (at[:, None] - at <= self.spec.window)

    def bias(self, heads):
        return heads.shared(torch.where(self.kept(heads), 0.0, -torch.inf))

    monkeypatch.setattr(DMSGate, "kept", kept)
    monkeypatch.setattr(DMSGate, "bias", bias)
    with pytest.raises(AssertionError, match=sentence):
        testing.check_trained_attention(small("dms"))


def test_weights_that_are_not_saved(monkeypatch):
    init = DMSGate.__init__

    def with_more(self, spec, sizes):
        init(self, spec, sizes)
        self.more = torch.rand(1)

    logits = DMSGate.logits
    monkeypatch.setattr(DMSGate, "__init__", with_more)
    monkeypatch.setattr(DMSGate, "logits", lambda self, hidden: logits(self, hidden) + 100 * self.more)
    with pytest.raises(AssertionError, match="dms: its weights do not bring it back"):
        testing.check_trained_attention(small("dms"))


def test_modules_that_break_a_rule(monkeypatch):
    dense = NSAttention.dense
    monkeypatch.setattr(NSAttention, "dense", lambda self, x: dense(self, x) * 1.01)
    with pytest.raises(AssertionError, match="nsa: with a full budget it differs from dense attention"):
        testing.check_trained_attention(small("nsa"))
    monkeypatch.setattr(MoSAttention, "fit_thresholds", lambda self, x: None)
    with pytest.raises(AssertionError, match="mosa: the future is heard"):
        testing.check_trained_attention(small("mosa"))


def test_a_model_whose_sparse_form_differs(monkeypatch):
    forward = ARMModel.forward
    monkeypatch.setattr(ARMModel, "forward", lambda self, x: forward(self, x) + 0.01)
    with pytest.raises(AssertionError, match="arm_net: with a full budget the sparse form differs"):
        testing.check_trained_attention(small("arm_net"))
