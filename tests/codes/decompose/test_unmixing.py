from __future__ import annotations

import pytest
import torch

import sparseworks as sw
from sparseworks.codes.decompose.unmixing import (
    correntropy,
    even,
    group_bands,
    guided,
    l1,
    purest,
    root,
    spectral_angle,
    unmix,
)
from sparseworks.core.errors import BudgetError, NonFiniteError, ShapeError

BANDS, SIDE, BAD = 60, 20, (3, 11, 19, 27, 35, 43, 51, 59)


def scene(seed, corrupted=True):
    """(cube, endmembers): spectra, abundances of Dirichlet 0.3, and eight bands of strong noise."""
    g = torch.Generator().manual_seed(seed)
    m = torch.rand(BANDS, 4, generator=g)
    torch.manual_seed(seed)
    a = torch.distributions.Dirichlet(torch.full((4,), 0.3)).sample((SIDE * SIDE,)).T
    y = m @ a + 0.005 * torch.randn(BANDS, SIDE * SIDE, generator=g)
    if corrupted:
        y[list(BAD)] += torch.randn(len(BAD), SIDE * SIDE, generator=g).abs()
    return y.clamp(min=0), m


def angle(found, m):
    clean = [b for b in range(BANDS) if b not in BAD]
    return spectral_angle(found.endmembers[clean], m[clean])


@pytest.mark.parametrize("name", ["rrlbs", "correntropy_nmf"])
def test_corrupted_bands_are_turned_down_and_spectra_come_out_better(name):
    ours, plain = [], []
    for seed in range(3):
        cube, m = scene(seed)
        found = sw.method(name)(cube, 4)
        ours.append(angle(found, m))
        plain.append(angle(unmix(cube, 4, even, root(0.05), steps=1000), m))
        bad = torch.zeros(BANDS, dtype=torch.bool)
        bad[list(BAD)] = True
        assert found.bands[bad].max() < 0.2 * found.bands[~bad].median()
    assert max(o / p for o, p in zip(ours, plain, strict=True)) < 0.6


def test_without_corruption_it_is_as_good_as_plain():
    cube, m = scene(0, corrupted=False)
    plain, found = unmix(cube, 4, even, root(0.05), steps=1000), sw.method("correntropy_nmf")(cube, 4)
    assert angle(found, m) < angle(plain, m) + 0.02


def test_the_guidance_makes_pure_pixels_purer_and_leaves_mixed_ones():
    a = torch.tensor([[0.97, 0.26], [0.01, 0.25], [0.01, 0.25], [0.01, 0.24]], dtype=torch.float64)
    pull = guided(1.0)(a)
    assert (pull[1:, 0] > 2 * pull[1:, 1]).all()  # small entries of a pure pixel are pressed hardest
    flat = guided(1.0, (1, 2))(a)
    assert flat.shape == a.shape and not torch.allclose(flat, pull)


def test_abundances_sum_to_one_and_known_spectra_stay():
    cube, m = scene(1, corrupted=False)
    found = unmix(cube, m, group_bands, l1(0.0), steps=300, fixed=True)
    assert torch.allclose(found.endmembers, m, atol=1e-5)
    assert (found.abundances.sum(0) - 1).abs().mean() < 0.05


def test_weights_of_bands_are_their_formulas():
    r = torch.tensor([1.0, 4.0, 100.0])
    assert torch.allclose(group_bands(r, 0), torch.tensor([0.5, 0.25, 0.05]), atol=1e-5)
    assert torch.allclose(correntropy(r, 100), torch.exp(-r / 8).clamp(min=1e-12))
    assert torch.allclose(correntropy(r, 0), torch.exp(-r / 35))
    assert even(r, 0).tolist() == [1, 1, 1]


def test_bad_cubes_are_refused():
    cube, _ = scene(0)
    assert purest(cube, 4).shape == (BANDS, 4)
    with pytest.raises(BudgetError, match="negative"):
        unmix(-cube, 3, even, l1(0.0))
    with pytest.raises(BudgetError):
        unmix(cube, 61, even, l1(0.0))
    with pytest.raises(ShapeError):
        unmix(cube, cube[:5, :3], even, l1(0.0))
    with pytest.raises(ShapeError):
        unmix(cube[0], 3, even, l1(0.0))
    with pytest.raises(NonFiniteError):
        unmix(cube * torch.nan, 3, even, l1(0.0))
