"""The suite of encoder slots passes what is registered (see test_conformance) and catches what is broken."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from sparseworks.retrieval.encoders.heads import Mlm, Mlp, TermHead
from sparseworks.retrieval.encoders.slots import (
    L2Norm,
    LiteralResidual,
    MaxPooling,
    Saturation,
    SumPooling,
    TermImportance,
    TermNorm,
    TermPooling,
)
from sparseworks.testing import check_term_slot


class Unmasked(SumPooling):
    def __call__(self, scores, mask, activate):
        return activate(scores).sum(1)


@dataclass(frozen=True)
class Mean(TermPooling):
    """Zero by zero for a text without tokens."""

    def __call__(self, scores, mask, activate):
        return (activate(scores) * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True)


class Least(MaxPooling):
    def __call__(self, scores, mask, activate):
        return super().__call__(-scores, mask, activate)


class OfTheBatch(MaxPooling):
    def __call__(self, scores, mask, activate):
        w = super().__call__(scores, mask, activate)
        return w / w.max()


class Never(MaxPooling):
    copies = 0


@dataclass(frozen=True)
class Offset(Saturation):
    def __call__(self, h):
        return h.relu() + 1


@dataclass(frozen=True)
class Bump(Saturation):
    def __call__(self, h):
        return h.relu() * (h < 3)


@dataclass(frozen=True)
class Detached(Saturation):
    def __call__(self, h):
        return h.relu() * h.relu().detach()


@dataclass(frozen=True)
class ByTheBatch(TermNorm):
    def __call__(self, w):
        return w / w.max()


@dataclass(frozen=True)
class Empty(TermNorm):
    def __call__(self, w):
        return w / w.norm(dim=1, keepdim=True)


@dataclass(frozen=True)
class Inverse(TermNorm):
    def __call__(self, w):
        return torch.where(w != 0, 1 / w, w)


@dataclass(frozen=True)
class Careless(TermImportance):
    needs_idf = True

    def build(self, width, hidden, idf):
        return nn.Identity()


class Padded(LiteralResidual):
    def build(self, width, hidden, idf):
        class Own(nn.Module):
            def forward(self, w, ids, mask, hidden):
                return w + hidden.sum((1, 2))[:, None].abs()

        return Own()


@dataclass(frozen=True)
class Everything(TermHead):
    reads = False

    def __call__(self, read, pooling, activate, own):
        return torch.ones(len(read.ids), read.width)


class Negative(Mlp):
    def __call__(self, read, pooling, activate, own):
        return -super().__call__(read, pooling, activate, own)


@pytest.mark.parametrize(
    ("slot", "why"),
    [
        (Unmasked, "text without tokens"), (Mean, "NaN"), (Least, "falls"), (OfTheBatch, "other texts"), (Never, "0 times"),
        (Offset, "not 0 at 0"), (Bump, "does not rise"), (Detached, "gradient"), (ByTheBatch, "other texts"),
        (Empty, "which terms"), (Inverse, "order of terms"), (Careless, "built without"), (Padded, "text without tokens|padding"),
        (Everything, "text without tokens"), (Negative, "negative"), (3, "none of the slots"),
    ],
)  # fmt: skip
def test_a_broken_slot_is_told(slot, why):
    with pytest.raises(AssertionError, match=why):
        check_term_slot(slot)


def test_instances_pass_as_classes_do():
    for slot in (Mlm(), SumPooling, L2Norm(), LiteralResidual()):
        check_term_slot(slot)
