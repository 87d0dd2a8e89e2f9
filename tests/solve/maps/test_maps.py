"""What each linear map is, beside what all must hold: equal to scipy's or numpy's, tight, norms exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from scipy.signal import convolve2d

from sparseworks.core.errors import DtypeError, ShapeError
from sparseworks.solve.maps import (
    Adjoint,
    Atoms,
    Composed,
    Convolution,
    Cosine,
    Differences,
    Fourier,
    Sampled,
    Scaled,
    ShortTime,
)
from sparseworks.testing import check_operator

DOUBLE = torch.float64


@pytest.mark.parametrize(
    "make",
    [
        lambda t: Cosine((7,), t),
        lambda t: Cosine((1, 4), t),
        lambda t: Fourier(10, 1, t),
        lambda t: Fourier(7, 1, t),
        lambda t: Fourier(7, 3, t),
        lambda t: Fourier(1, 2, t),
        lambda t: ShortTime(37, torch.hamming_window(10), 5, 2, t),
        lambda t: Differences((9,), None, t),
        lambda t: Differences((6, 5), None, t),
        lambda t: Differences((4, 1, 3), (2,), t),
        lambda t: Convolution(torch.ones(3, dtype=t), (3,)),
        lambda t: Convolution(torch.arange(6, dtype=t).reshape(2, 3), (5, 4)),
        lambda t: Differences((3,), None, t) @ Cosine((3,), t),
    ],
)
def test_other_shapes_conform(make):
    check_operator(make)


def test_cosine_is_scipys():
    x = np.random.default_rng(0).standard_normal((3, 6, 7))
    ours = Cosine((6, 7), DOUBLE).adjoint(torch.from_numpy(x))
    np.testing.assert_allclose(ours.numpy(), dctn(x, axes=(1, 2), norm="ortho"), atol=1e-12)


@pytest.mark.parametrize("a", [Fourier(12, 2, DOUBLE), Fourier(9, 3, DOUBLE), ShortTime(70, 16, 4, 2, DOUBLE)])
def test_fourier_frames_are_tight(a):
    u = torch.randn(4, *a.codomain, dtype=DOUBLE)
    torch.testing.assert_close(a(a.adjoint(u)), u)
    torch.testing.assert_close(a.adjoint(u).abs().square().flatten(1).sum(1), u.square().sum(1))


def test_a_tone_is_one_coefficient():
    a = Fourier(64, 2, DOUBLE)
    tone = torch.cos(2 * torch.pi * 5 / 64 * torch.arange(64, dtype=DOUBLE) + 0.3)
    assert int(a.adjoint(tone).abs().argmax()) == 10


def test_convolution_is_scipys():
    rng = np.random.default_rng(0)
    x, k = rng.standard_normal((8, 9)), rng.standard_normal((3, 5))
    for circular, boundary in ((True, "wrap"), (False, "fill")):
        ours = Convolution(torch.from_numpy(k), (8, 9), circular)(torch.from_numpy(x))
        np.testing.assert_allclose(ours.numpy(), convolve2d(x, k, mode="same", boundary=boundary), atol=1e-12)


def test_differences_in_time_and_space():
    u = Differences((2, 3), (1,))(torch.tensor([[1.0, 4.0, 9.0], [0.0, 0.0, 5.0]]))
    assert u.tolist() == [[[3.0, 5.0, 0.0], [0.0, 5.0, 0.0]]]


def test_maps_join_and_scale():
    d = torch.randn(6, 9, dtype=DOUBLE)
    seen = torch.arange(9) % 2 == 0
    a = Sampled(seen, DOUBLE) @ Atoms(d)
    assert isinstance(a, Composed)
    z = torch.randn(3, 6, dtype=DOUBLE)
    torch.testing.assert_close(a @ z, (z @ d)[:, seen])
    torch.testing.assert_close(Scaled(a, 2.0).mT @ (a @ z), 2 * a.normal(z))
    assert isinstance(a.mT, Adjoint) and a.mT.squared_norm() == a.squared_norm()


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Composed(Cosine((3,)), Cosine((4,))), ShapeError),
        (lambda: Sampled(torch.zeros(4, dtype=torch.bool)), ShapeError),
        (lambda: Sampled(torch.zeros(4)), DtypeError),
        (lambda: Convolution(torch.ones(3), (2,)), ShapeError),
        (lambda: Convolution(torch.ones(3), (4, 4)), ShapeError),
        (lambda: Differences((3,), (1,)), ShapeError),
        (lambda: Fourier(0), ShapeError),
        (lambda: ShortTime(20, 8, 9), ShapeError),
        (lambda: ShortTime(20, 8, 8), ShapeError),
    ],
)
def test_what_makes_no_map_is_refused(make, error):
    with pytest.raises(error):
        make()
