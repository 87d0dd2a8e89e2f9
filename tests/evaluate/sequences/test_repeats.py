"""Rows that begin and end alike."""

from __future__ import annotations

import pytest
import torch

from sparseworks.core.errors import CalibrationError
from sparseworks.evaluate.sequences import repeats

PROSE = ["".join(chr(97 + (7 * i * i + 3 * j) % 26) for i in range(j, j + 120)) for j in range(20)]


def test_a_row_ends_as_it_begins_at_no_fixed_distance():
    x = repeats(PROSE, 96)
    sizes = x.again.sum(1)
    assert x.ids.shape == (20, 96) and len(sizes.unique()) > 8 and sizes.min() >= 16 and sizes.max() <= 48
    for row, again, size in zip(x.ids, x.again, sizes.tolist(), strict=True):
        assert again[-size:].all() and torch.equal(row[-size:], row[:size])
    assert torch.equal(x.ids, repeats(PROSE, 96).ids) and (repeats(PROSE, 96, size=30).again.sum(1) == 30).all()


def test_only_the_second_time_is_masked_and_counted():
    x = repeats(PROSE, 96)
    masked = x.masked(128, 0.5)
    hidden = masked == 128
    assert not (hidden & ~x.again).any() and abs(float(hidden[x.again].float().mean()) - 0.5) < 0.1
    assert x.accuracy(x.ids, masked) == 1 and x.accuracy(masked, masked) == 0 and x.accuracy(masked, x.ids) == 1
    found = x.ids.clone()
    found[:, :10] = 0  # shown, so not counted
    assert x.accuracy(found, masked) == 1 and x.masked(128, 1.0).eq(128).equal(x.again)
    for wrong in ({"length": 200}, {"length": 96, "size": 49}, {"length": 96, "size": 0}):
        with pytest.raises(CalibrationError):
            repeats(PROSE, **wrong)
