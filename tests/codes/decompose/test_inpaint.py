from __future__ import annotations

import math

import pytest
import torch

import sparseworks as sw
from sparseworks.codes.decompose.inpaint import Spain, _analysis, _keep, _synthesis
from sparseworks.core.errors import BudgetError, NonFiniteError, ShapeError
from sparseworks.solve.penalty import soft

N, RATE = 1024, 16000


def tones(seed, n=N):
    g = torch.Generator().manual_seed(seed)
    t = torch.arange(n) / RATE
    f, a, p = (
        200 + 3000 * torch.rand(6, generator=g),
        0.3 + torch.rand(6, generator=g),
        6.28 * torch.rand(6, generator=g),
    )
    return (a[:, None] * torch.sin(2 * math.pi * f[:, None] * t + p[:, None])).sum(0).double()


def gap(n=N, at=470, size=80):
    mask = torch.ones(n, dtype=torch.bool)
    mask[at : at + size] = False
    return mask


def snr(true, found, mask):
    return float(10 * torch.log10(true[~mask].square().sum() / (true - found)[~mask].square().sum()))


def basis_pursuit(observed, mask, steps=500):
    """min ||z||_1 with a fitting synthesis, by Douglas-Rachford, on the same windowed frame of twice as many coefficients."""
    window = torch.hann_window(N + 2, periodic=False, dtype=torch.float64)[1:-1]
    y, size = (observed * window)[None], 2 * N
    w = _analysis(y, size)
    level = 0.05 * float(w.abs().max())
    fit = lambda z: z + _analysis(torch.where(mask, y - _synthesis(z, N, size), 0), size)  # noqa: E731
    for _ in range(steps):
        p = fit(w)
        w = w + soft(2 * p - w, level) - p
    return _synthesis(fit(w), N, size)[0] / window


@pytest.mark.parametrize("form", ["analysis", "synthesis"])
def test_a_gap_in_tones_is_filled_better_than_by_basis_pursuit(form):
    mask, ours, theirs = gap(), [], []
    for seed in range(4):
        signal = tones(seed)
        hidden = torch.where(mask, signal, torch.nan)
        ours.append(snr(signal, sw.method("spain", form=form, redundancy=2, frame=N)(hidden, mask), mask))
        theirs.append(snr(signal, basis_pursuit(torch.where(mask, signal, 0), mask), mask))
    assert sum(ours) / 4 > sum(theirs) / 4 + 1 and sum(ours) / 4 > 40


def test_long_signals_are_filled_frame_by_frame():
    signal = tones(3, 5000)
    mask = gap(5000, 1200, 60) & gap(5000, 4000, 60)
    found = Spain(frame=1024, hop=256)(signal, mask)
    assert torch.equal(found[mask], signal[mask]) and snr(signal, found, mask) > 25
    whole = torch.ones(5000, dtype=torch.bool)
    assert torch.equal(Spain()(signal, whole), signal)


def test_a_signal_of_odd_length_has_its_own_frame():
    signal, mask = tones(1, 333), gap(333, 150, 20)
    assert snr(signal, Spain(redundancy=1)(signal, mask), mask) > 5 and snr(signal, Spain()(signal, mask), mask) > 30


def test_frames_are_added_under_the_dual_window():
    """Frames that are off by one number each: what is added is the mean of them by the squares of the window."""
    n, off = 1300, iter(range(1, 100))

    class Shifted(Spain):
        def _frames(self, observed, reliable):
            return torch.stack([x * 0 + next(off) for x in observed])

    window = torch.hann_window(402, periodic=False, dtype=torch.float64)[1:-1]
    mask = gap(n, 600, 1)
    at = [s for s in range(0, n - 399, 100) if s <= 600 < s + 400]
    w = torch.stack([window[600 - s] for s in at])
    expected = (w * torch.arange(1, len(at) + 1)).sum() / w.square().sum()
    assert float(Shifted(frame=400, hop=100)(torch.zeros(n, dtype=torch.float64), mask)[600]) == pytest.approx(
        float(expected)
    )


def test_the_frame_is_parseval_and_selection_keeps_pairs():
    x = torch.randn(3, 64, dtype=torch.float64)
    z = _analysis(x, 128)
    assert torch.allclose(_synthesis(z, 64, 128), x)
    odd = torch.randn(2, 33, dtype=torch.float64)
    assert torch.allclose(_synthesis(_analysis(odd, 99), 33, 99), odd)
    kept = _keep(z, 5)
    assert ((kept != 0).sum(1) == 5).all() and _synthesis(kept, 64, 128).is_floating_point()
    one = torch.tensor([[1.5, 1.0, 0.2]], dtype=torch.complex128)
    assert torch.equal(_keep(one, 1), torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.complex128))


def test_bad_signals_are_refused():
    with pytest.raises(BudgetError):
        Spain(form="both")
    with pytest.raises(BudgetError):
        Spain(hop=0)
    with pytest.raises(BudgetError, match="no reliable sample"):
        Spain(frame=64, hop=16)(tones(0), gap(size=200))
    with pytest.raises(ShapeError):
        Spain()(tones(0), gap(5))
    with pytest.raises(NonFiniteError):
        Spain()(tones(0) * torch.nan, gap())
