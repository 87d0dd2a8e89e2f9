"""Token tasks: layouts, evidence, and that the answer follows from the context and from it alone."""

from __future__ import annotations

import pytest
import torch

from sparseworks.core.errors import BudgetError
from sparseworks.evaluate.sequences import distract, majority, mqar, passkey
from sparseworks.evaluate.sequences import tokens as t

MAKERS = {
    "passkey": lambda seed: passkey(8, 128, decoys=3, seed=seed),
    "mqar": lambda seed: mqar(8, 128, pairs=12, turns=4, seed=seed),
    "majority": lambda seed: majority(8, 128, marks=40, seed=seed),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_rows_share_one_layout_and_the_seed_tells_all(make):
    x = make(0)
    assert x.ids.shape == (8, 128) and (x.ids[:, 0] == t.BOS).all() and int(x.ids.max()) < t.VOCABULARY
    assert torch.equal(x.ids, make(0).ids) and not torch.equal(x.ids, make(1).ids)
    assert x.questions[-1].stop == 128 and int(x.evidence.max()) < x.context
    labels = x.targets()
    assert int((labels >= 0).sum()) == 8 * sum(q.stop - q.answer for q in x.questions)
    assert torch.equal(labels[labels >= 0], x.ids[labels >= 0])


def test_a_passkey_is_told_by_its_marker_and_its_tokens_are_unique():
    x = passkey(16, 128, decoys=7, seed=1)
    for row in x.ids:
        at = (row[: x.context] == t.NEEDLE).nonzero().flatten()
        assert len(at) == 1 and torch.equal(row[at + 1 : at + 5], row[-4:])
        codes = row[: x.context][(row[: x.context] >= t.VALUES.start) & (row[: x.context] < t.VALUES.stop)]
        assert len(codes) == len(codes.unique()) == 32
    assert torch.equal(x.ids.gather(1, x.evidence[:, 0])[:, 1:], x.answers(0))
    assert (x.ids[:, x.context] == t.NEEDLE).all()


@pytest.mark.parametrize("decoys", [0, 1, 5])
def test_a_passkey_stands_at_its_depth(decoys):
    for depth in (0.0, 0.3, 1.0):
        x = passkey(32, 128, depth=depth, decoys=decoys)
        at = x.evidence[:, 0, 0]
        assert (x.ids[torch.arange(32), at] == t.NEEDLE).all()
        assert ((at - (1 + depth * (x.context - 6))).abs() <= 4.5).all(), at
        assert ((x.ids[:, : x.context] >= t.DECOYS.start) & (x.ids[:, : x.context] < t.DECOYS.stop)).sum(
            1
        ).tolist() == [decoys] * 32
    assert passkey(256, 128).evidence[:, 0, 0].unique().numel() > 60


@pytest.mark.parametrize("gathered", [False, True])
def test_every_question_of_recall_needs_the_context(gathered):
    x = mqar(16, 128, pairs=20, turns=6, gathered=gathered)
    assert len(x.questions) == 6 and x.context == 128 - 18
    for row, evidence in zip(x.ids, x.evidence, strict=True):
        asked = row[x.context + 1 :: 3]
        assert len(asked.unique()) == 6
        for q, pair in zip(x.questions, evidence, strict=True):
            assert row[q.start] == t.ASK and torch.equal(row[pair], row[q.start + 1 : q.stop])
        body = row[: x.context]
        keys = body[(body >= t.KEYS.start) & (body < t.KEYS.stop)]
        assert len(keys) == len(keys.unique()) == 20
    assert (x.evidence.max() <= 41) == gathered


@pytest.mark.parametrize("marks, lead", [(40, 0.2), (13, 0.2), (8, 1.0)])
def test_the_majority_leads(marks, lead):
    x = majority(32, 128, marks=marks, lead=lead)
    counts = torch.stack([(x.ids[:, : x.context] == m).sum(1) for m in t.MARKS], dim=1)
    assert (counts.sum(1) == marks).all()
    best, second = counts.topk(2, dim=1).values.T
    assert (
        torch.equal(counts.argmax(1) + t.MARKS.start, x.answers(0)[:, 0])
        and (best - second >= lead * marks - 1e-9).all()
    )
    assert len(x.answers(0).unique()) == 4


def test_distractors_spare_what_is_asked_for():
    plain = mqar(8, 256, pairs=8, turns=4)
    x, marks = distract(plain, spans=3, size=16)
    assert marks.sum(1).tolist() == [48] * 8 and torch.equal(x.ids[marks == 0], plain.ids[marks == 0])
    assert not marks.gather(1, x.evidence.flatten(1)).any() and not marks[:, x.context :].any()
    assert (x.ids[marks == 1] != plain.ids[marks == 1]).all()


def test_what_does_not_fit_is_said():
    for make in (
        lambda: passkey(1, 8),
        lambda: passkey(1, 128, decoys=8),
        lambda: passkey(1, 128, depth=1.5),
        lambda: mqar(1, 32, pairs=16),
        lambda: mqar(1, 128, pairs=2, turns=3),
        lambda: mqar(1, 256, pairs=33),
        lambda: majority(1, 16, marks=40),
        lambda: majority(1, 128, lead=0.0),
        lambda: distract(mqar(1, 64, pairs=8), spans=20, size=16),
    ):
        with pytest.raises(BudgetError):
            make()
