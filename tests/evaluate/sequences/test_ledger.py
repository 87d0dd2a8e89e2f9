"""Ledgers: the bottom repeats the top in another order."""

from __future__ import annotations

import pytest
import torch

from sparseworks.core.errors import BudgetError
from sparseworks.evaluate.sequences import ledger
from sparseworks.models.masked_lm import MASK, decode


def test_the_bottom_repeats_the_top_in_another_order():
    book = ledger(["some prose", "", "été " * 100], 128, entries=8, asked=5)
    for text in decode(book.ids):
        assert len(text) == 128
        top, bottom = text[:24].split(), text[book.start :].split()
        assert len(set(top)) == 8 and len(bottom) == 5 and set(bottom) <= set(top) and bottom != top[:5]
    assert int(book.asked.sum()) == 5 and not book.asked[: book.start].any()
    shown = decode(book.masked(MASK))[0][book.start :]
    assert all(entry[1:] == "_" for entry in shown.split())


def test_accuracy_counts_the_letters_asked_for():
    book = ledger(["prose"] * 2, 64, entries=4)
    assert book.accuracy(book.ids) == 1 and book.accuracy(book.masked(MASK)) == 0
    found = book.ids.clone()
    found[0, book.asked.nonzero()[0]] = 0
    assert book.accuracy(found) == 7 / 8
    assert torch.equal(ledger(["prose"], 64, entries=4, seed=1).ids, ledger(["prose"], 64, entries=4, seed=1).ids)
    for wrong in ({"entries": 11}, {"entries": 27, "length": 512}, {"entries": 2, "asked": 3}):
        with pytest.raises(BudgetError):
            ledger(["prose"], **{"length": 64, **wrong})
