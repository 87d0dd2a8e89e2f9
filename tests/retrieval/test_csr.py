from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparseworks.core.errors import BudgetError, CalibrationError, NonFiniteError, ShapeError
from sparseworks.models.digits import Digits
from sparseworks.retrieval.csr import CSR, CSRLoss, _loss, train_csr


@pytest.fixture(scope="module")
def digits():
    """(x, labels, held-out x, their labels): centred pixels."""
    d = Digits.load()
    x, held = (F.avg_pool2d(t.unsqueeze(1), 2).flatten(1) for t in (d.train, d.test))
    return x - x.mean(0), d.train_labels, held - x.mean(0), d.test_labels


def nearest(a, labels, b, held):
    """Accuracy of the nearest neighbour by cosine."""
    found = (F.normalize(b, dim=1) @ F.normalize(a, dim=1).T).argmax(1)
    return float((labels[found] == held).float().mean())


def matryoshka(x, seed):
    """A linear head whose prefixes of 4 ... 64 dimensions tell items from noisy copies."""
    torch.manual_seed(seed)
    head = nn.Linear(64, 64, bias=False)
    optimizer = torch.optim.Adam(head.parameters(), 4e-3)
    for _ in range(30):
        for rows in torch.randperm(len(x)).split(256):
            a, b = head(x[rows] + 0.2 * torch.randn(len(rows), 64)), head(x[rows])
            own = torch.arange(len(rows))
            loss = torch.stack(
                [
                    F.cross_entropy(10 * F.normalize(a[:, :d], dim=1) @ F.normalize(b[:, :d], dim=1).T, own)
                    for d in (4, 8, 16, 32, 64)
                ]
            ).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return head.requires_grad_(False)


@pytest.fixture(scope="module")
def judged(digits):
    """(weight of the contrastive term, seed) -> the model, its neighbours' accuracy and its relative error on held-out digits."""
    x, labels, held, truth = digits

    @cache
    def train(contrast, seed):
        loss = CSRLoss(contrast=contrast)
        csr = train_csr(x, k=8, epochs=30, batch_size=256, rate=8e-3, seed=seed, loss=loss).requires_grad_(False)
        codes = csr.encode(held, 8)
        error = float((csr.decode(codes) - held).square().mean() / held.square().mean())
        return csr, nearest(csr.encode(x, 8).dense(), labels, codes.dense(), truth), error

    return train


def test_neighbours_of_codes_with_8_entries_are_better_than_8_dimensions(digits, judged):
    x, labels, held, truth = digits
    axes = torch.linalg.svd(x, full_matrices=False)[2][:8].T
    short = nearest(x @ axes, labels, held @ axes, truth)
    head = matryoshka(x, 0)
    nested = nearest(head(x)[:, :8], labels, head(held)[:, :8], truth)
    for seed in range(2):
        csr, found, _ = judged(CSRLoss().contrast, seed)
        assert found > short + 0.01 and found > nested + 0.01
        assert csr.encode(held, 3).values.shape[1] == 3


def test_the_contrastive_term_helps_neighbours_and_not_reconstruction(judged):
    """0.962, 0.963, 0.968 against 0.947, 0.948, 0.957 with seeds 0 to 2; errors 0.116, 0.115, 0.112 against 0.112, 0.110, 0.108."""
    for seed in range(2):
        (_, found, error), (_, alone, less) = judged(CSRLoss().contrast, seed), judged(0.0, seed)
        assert found > alone + 0.006 and error > less


def test_the_same_seed_gives_the_same_codes_and_the_parts_of_the_loss_count(digits):
    x = digits[0][:300]
    made = [train_csr(x, k=4, epochs=2, batch_size=100, rate=1e-2, seed=1) for _ in range(2)]
    assert torch.equal(made[0].weight, made[1].weight)
    for part in ("wide", "contrast"):
        other = train_csr(x, k=4, epochs=2, batch_size=100, rate=1e-2, seed=1, loss=CSRLoss(**{part: 0.0}))
        assert not torch.equal(other.weight, made[0].weight)
    with_pairs = train_csr(x, x.flip(0), k=4, epochs=2, batch_size=100, rate=1e-2, seed=1)
    assert not torch.equal(with_pairs.weight, made[0].weight)
    codes = made[0].encode(x, 4)
    want = codes.dense() @ made[0].weight + made[0].centre
    assert torch.allclose(made[0].decode(codes), want, atol=1e-5)


def test_the_loss_is_that_of_dense_codes():
    torch.manual_seed(0)
    model, x, other, k = CSR(8, 4), torch.randn(12, 8), torch.randn(12, 8), 2
    silent = torch.zeros(32, dtype=torch.long)
    silent[::2] = 40  # those that fire now are silent no longer

    def best(v, kept):
        z = (v - model.centre) @ model.weight.T + model.bias
        values, at = z.topk(kept, dim=1)
        return torch.zeros_like(z).scatter(1, at, values.relu())

    def error(z):
        return ((z @ model.weight + model.centre - both) ** 2).mean() / ((both - both.mean(0)) ** 2).mean()

    both = torch.cat([x, other])
    codes = best(both, k)
    dead = (silent > 0) & ~(codes > 0).any(0)
    z = (both - model.centre) @ model.weight.T + model.bias
    left = both - codes @ model.weight - model.centre
    revived = (((z.relu() * dead) @ model.weight - left) ** 2).mean() / (left**2).mean()
    cosines = F.normalize(best(x, k), dim=1) @ F.normalize(best(other, k), dim=1).T
    contrast = -(cosines / 0.2).log_softmax(1).diagonal().mean()
    want = error(codes) + error(best(both, 4 * k)) / 8 + revived / 32 + 0.1 * contrast
    assert 0 < int(dead.sum()) < 16
    assert torch.allclose(_loss(model, x, other, k, CSRLoss(), silent), want, rtol=1e-5)


def test_latents_that_fell_silent_are_trained_again(digits):
    x = digits[0][:256]
    spent = {"k": 1, "epochs": 12, "batch_size": 64, "rate": 1e-2, "ratio": 8}
    torch.manual_seed(0)
    start = CSR(64, 8).weight
    revived = train_csr(x, loss=CSRLoss(wide=0, contrast=0, silent=5), **spent)
    left = train_csr(x, loss=CSRLoss(wide=0, contrast=0, dead=0), **spent)
    untouched = lambda m: int((m.weight == start).all(1).sum())  # noqa: E731
    assert untouched(left) > 100 and untouched(revived) == 0


def test_bad_input_is_refused():
    x = torch.randn(10, 4)
    for given, error in (
        (x[0], ShapeError),
        (x[:1], CalibrationError),
        (x * torch.inf, NonFiniteError),
    ):
        with pytest.raises(error):
            train_csr(given)
    with pytest.raises(ShapeError):
        train_csr(x, x[:3])
    for k in (0, 17):
        with pytest.raises(BudgetError):
            train_csr(x, k=k)
