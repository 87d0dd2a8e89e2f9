"""Loss and entropy on training data, and what they say of sparse networks: a schedule that suffices the dense one is too short."""

from __future__ import annotations

from math import log
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import sparseworks as sw
from sparseworks.core.errors import CalibrationError, NonFiniteError, ShapeError
from sparseworks.weights.train import Fit, fit_of


class Fixed(nn.Module):
    """Gives back its input as logits, as Hugging Face does."""

    def forward(self, x):
        assert not self.training
        return SimpleNamespace(logits=x)


def test_loss_and_entropy_are_the_textbook_ones():
    logits, labels = torch.tensor([[0.0, 0.0], [0.0, log(3.0)], [5.0, 1.0]]), torch.tensor([0, 1, -100])
    model = Fixed().train()
    found = fit_of(model, [(logits[:1], labels[:1]), (logits[1:], labels[1:])])  # the last example does not count
    half, skewed = log(2), -(0.25 * log(0.25) + 0.75 * log(0.75))
    assert found.loss == pytest.approx((half - log(0.75)) / 2) and found.entropy == pytest.approx((half + skewed) / 2)
    assert model.training
    tokens = torch.zeros(2, 3, 7)
    assert fit_of(model, [(tokens, torch.zeros(2, 3, dtype=torch.long))]) == Fit(
        pytest.approx(log(7)), pytest.approx(log(7))
    )


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(CalibrationError, match="no examples"):
        fit_of(Fixed(), [])
    with pytest.raises(ShapeError, match="do not fit"):
        fit_of(Fixed(), [(torch.zeros(2, 3), torch.zeros(3, dtype=torch.long))])
    with pytest.raises(NonFiniteError, match="NaN"):
        fit_of(Fixed(), [(torch.full((1, 2), torch.nan), torch.zeros(1, dtype=torch.long))])


def fits(digits, method: sw.Method | None, steps: int, seed: int) -> tuple[Fit, float]:
    """Fit to the training data and held-out loss after `steps` at a learning rate that falls to zero."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    run = sw.Sparsifier(model, method, optimizer, steps=steps, seed=seed) if method else None
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        at = torch.randint(len(digits.x), (64,), generator=generator)
        optimizer.zero_grad()
        cross_entropy(model(digits.x[at]), digits.y[at]).backward()
        optimizer.step()
        schedule.step()
        if run:
            run.step()
    if run:
        run.finish()
    return fit_of(model, [(digits.x, digits.y)]), fit_of(model, [(digits.x_test, digits.y_test)]).loss


def test_four_times_the_steps_close_the_gap_of_a_sparse_network_and_give_the_dense_one_little(digits):
    """At 97 % by AC/DC (Kuznedelev et al., 2023): after the steps that suffice a dense network loss and entropy are still high."""
    steps, sparse = 250, sw.method("ac_dc", density=0.03)
    (dense, dense_test), (short, short_test) = (fits(digits, m, steps, 0) for m in (None, sparse))
    (_, dense_long_test), (long, long_test) = (fits(digits, m, 4 * steps, 0) for m in (None, sparse))
    assert short.loss > 3 * dense.loss and short.entropy > 2 * dense.entropy
    assert long.loss < 0.5 * short.loss and long.entropy < 0.7 * short.entropy  # it was still falling
    gap = short_test - dense_test
    assert short_test - long_test > 0.5 * gap and short_test - long_test > 5 * max(dense_test - dense_long_test, 0)
