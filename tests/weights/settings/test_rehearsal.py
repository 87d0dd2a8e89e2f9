"""A uniform reservoir, rehearsal losses by hand, and which examples are removed."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparseworks.core.errors import CalibrationError, ShapeError
from sparseworks.weights.settings import EasyExamples, Reservoir, rehearsal_loss


def test_a_reservoir_is_a_uniform_sample():
    held = torch.zeros(60)
    for seed in range(300):
        buffer = Reservoir(10, seed=seed)
        for part in torch.arange(60.0).split(7):
            buffer.add(part)
        assert len(buffer) == 10 and buffer.seen == 60
        held += torch.bincount(buffer.columns[0].long(), minlength=60)
    assert held.sum() == 3000  # 50 expected each, deviation 6.5
    assert float(held.min()) > 25 and float(held.max()) < 75
    assert abs(float(held[:30].mean()) - 50) < 4


def test_a_reservoir_gives_rows_that_belong_together_and_knows_its_size():
    buffer = Reservoir(5)
    buffer.add(torch.arange(8.0)[:, None].expand(8, 3), torch.arange(8))
    x, y = buffer.sample(99)
    assert len(x) == 5 and torch.equal(x[:, 0].long(), y) and len(y.unique()) == 5
    assert buffer.nbytes == 5 * (3 * 4 + 8)
    for columns in ((torch.zeros(2, 3), torch.zeros(3)), (torch.zeros(2, 4), torch.zeros(2))):
        with pytest.raises(ShapeError, match="same columns"):
            buffer.add(*columns)
    with pytest.raises(CalibrationError, match="empty"):
        Reservoir(3).sample(1)
    with pytest.raises(CalibrationError, match="at least one"):
        Reservoir(0)


def test_the_loss_on_a_reservoir_is_der_plus_plus():
    torch.manual_seed(0)
    model, buffer = nn.Linear(4, 3), Reservoir(6)
    assert float(rehearsal_loss(model, buffer, 6)) == 0.0
    x, y, z = torch.randn(6, 4), torch.randint(3, (6,)), torch.randn(6, 3)
    buffer.add(x, y, z)
    kept, both = (model(x) - z).square().mean(), F.cross_entropy(model(x), y)  # a draw of all has no order
    assert torch.allclose(rehearsal_loss(model, buffer, 6, logits=0.1, labels=0.5), 0.1 * kept + 0.5 * both)
    assert torch.allclose(rehearsal_loss(model, buffer, 6, logits=0.0, labels=2.0), 2 * both)
    assert torch.allclose(rehearsal_loss(model, buffer, 6, logits=2.0, labels=0.0), 2 * kept)


def test_examples_never_unlearned_go_first_and_never_learned_ones_last():
    easy, every = EasyExamples(5), torch.arange(5)
    histories = {0: (1, 1, 1, 1), 1: (0, 1, 0, 1), 2: (0, 0, 0, 0), 3: (1, 0, 1, 0), 4: (0, 0, 0, 1)}
    for step in range(4):
        easy.saw(every, torch.tensor([bool(histories[i][step]) for i in range(5)]))
    assert easy.forgotten.tolist() == [0, 1, 0, 2, 0]
    assert easy.remove(2).tolist() == [1, 2, 3] and not easy.forgotten.any()
    for right in (True, False):
        easy.saw(torch.tensor([1, 2, 3]), torch.tensor([right, True, True]))
    assert easy.remove(1).tolist() == [1, 3] and easy.left.tolist() == [1, 3]
