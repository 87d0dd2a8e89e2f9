"""Hidden states of eight bits, neighbours that see a class through its own units, and the contrastive loss by hand."""

from __future__ import annotations

import pytest
import torch

from sparseworks.core.errors import CalibrationError
from sparseworks.weights.settings import HiddenReplay, Neighbours, contrastive_loss


def test_hidden_states_take_a_byte_each_and_only_the_last_episodes_stay():
    torch.manual_seed(0)
    memory, hidden = HiddenReplay(2), {c: 3 * torch.randn(20, 7) for c in range(6)}
    for first in (0, 2, 4):
        memory.close({c: hidden[c] for c in (first, first + 1)})
    assert memory.classes() == {4: 0, 5: 0, 2: 1, 3: 1} and memory.nbytes == 4 * 20 * 7
    spread = float(hidden[4].max() - hidden[4].min())
    error = (memory.of(4) - hidden[4]).abs().max()
    assert 0 < error <= spread / 510 * 1.001
    states, labels = memory.sample(10)
    assert states.shape == (10, 7) and labels.bincount(minlength=6).tolist() == [0, 0, 3, 3, 2, 2]
    assert all((memory.of(int(c)) == s).all(1).any() for s, c in zip(states, labels, strict=True))
    with pytest.raises(CalibrationError, match="class 0"):
        memory.of(0)
    with pytest.raises(CalibrationError, match="nothing to replay"):
        HiddenReplay().sample(3)


def test_neighbours_look_at_a_class_through_the_units_it_was_stored_with():
    near, far = torch.tensor([[1.0, 0.0, 9.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    own = torch.tensor([True, True, False])
    reader = Neighbours(1)
    reader.store(3, torch.tensor([[1.0, 0.1, 0.0]]), own)
    reader.store(7, torch.tensor([[0.1, 1.0, 0.0]]), own)
    assert reader.predict(torch.cat([near, far])).tolist() == [3, 7]
    blurred = Neighbours(1)
    blurred.store(3, torch.tensor([[1.0, 0.1, 0.0]]), torch.zeros(3, dtype=torch.bool))  # no valid unit: all of them
    blurred.store(7, torch.tensor([[0.1, 1.0, 0.5]]), torch.ones(3, dtype=torch.bool))
    assert blurred.predict(near).tolist() == [7]
    with pytest.raises(CalibrationError, match="No class"):
        Neighbours().predict(near)


def test_the_most_frequent_of_the_nearest_wins():
    reader, units = Neighbours(3), torch.ones(2, dtype=torch.bool)
    reader.store(0, torch.tensor([[1.0, 0.0]]), units)
    reader.store(1, torch.tensor([[1.0, 0.2], [1.0, 0.3], [-1.0, 0.0]]), units)
    assert reader.predict(torch.tensor([[1.0, 0.01]])).tolist() == [1]


def test_the_contrastive_loss_is_the_formula():
    torch.manual_seed(0)
    x, y = torch.randn(7, 5), torch.tensor([0, 0, 1, 1, 1, 0, 2])  # the last is alone
    z, terms = x / x.norm(dim=1, keepdim=True), []
    for i in range(6):
        others = [a for a in range(7) if a != i]
        below = sum((z[i] @ z[a] / 0.2).exp() for a in others)
        same = [a for a in others if y[a] == y[i]]
        terms.append(-sum(((z[i] @ z[p] / 0.2).exp() / below).log() for p in same) / len(same))
    assert torch.allclose(contrastive_loss(x, y, 0.2), torch.stack(terms).mean(), rtol=1e-5)
