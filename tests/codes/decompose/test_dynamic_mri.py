from __future__ import annotations

import pytest
import torch

import sparseworks as sw
from sparseworks.codes.decompose import dynamic_mri
from sparseworks.codes.decompose.dynamic_mri import rdledm, spectrum_mask
from sparseworks.core.errors import BudgetError, NonFiniteError, ShapeError

OFF = (0.0, 0.0)


def moving_disc(n=32, frames=12):
    """A textured body whose contrast comes and goes, and a bright disc that goes round in it and beats."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, n), torch.linspace(-1, 1, n), indexing="ij")
    g = torch.Generator().manual_seed(5)
    texture = torch.rand(1, 1, n // 2, n // 2, generator=g)
    texture = torch.nn.functional.interpolate(texture, size=(n, n), mode="bilinear")[0, 0]
    body = ((x / 0.85) ** 2 + (y / 0.7) ** 2 < 1) * (0.3 + 0.5 * texture)
    time = torch.arange(frames)[:, None, None] / frames * 2 * torch.pi
    disc = ((x - 0.3 * time.cos()) ** 2 + (y - 0.3 * time.sin()) ** 2 < (0.22 + 0.05 * time.cos()) ** 2) * 0.4
    return body * (1 + 0.3 * (time * 1.5).sin()) * 0.6 + disc


def measured(truth, seed=0, density=0.2, noise=0.01):
    frames, rows, cols = truth.shape
    mask = spectrum_mask(frames, rows, cols, density, seed=seed)
    g = torch.Generator().manual_seed(seed)
    k = torch.fft.fft2(truth.to(torch.complex64), norm="ortho")
    k = k + noise * torch.complex(torch.randn(k.shape, generator=g), torch.randn(k.shape, generator=g))
    return k * mask, mask


def psnr(images, truth):
    return float(10 * torch.log10(truth.max() ** 2 / (images.abs() - truth).square().mean()))


def test_two_variations_and_nuclear_norms_beat_each_prior_at_its_best_weight():
    truth = moving_disc()
    k, mask = measured(truth)
    both = psnr(sw.method("rdledm")(k, mask, steps=100).images, truth)
    best = lambda *runs: max(psnr(rdledm(k, mask, v, n, steps=100).images, truth) for v, n in runs)  # noqa: E731
    space = best(*(((w, 0.0), OFF) for w in (0.004, 0.01, 0.025)))
    time = best(*(((0.0, w), OFF) for w in (0.004, 0.01, 0.025)))
    low_rank = best((OFF, (0.1, 0.3)), (OFF, (0.0, 0.3)), (OFF, (0.0, 1.0)))
    zero_filled = psnr(torch.fft.ifft2(k, norm="ortho"), truth)
    seen = (both, space, time, low_rank, zero_filled)
    assert both > max(space, time, low_rank) + 0.7 and both > zero_filled + 5, seen


def test_the_error_is_what_the_samples_hold_beside_the_images():
    truth = moving_disc(16, 6)
    k, mask = measured(truth)
    found = rdledm(k, mask, error_weight=0.5, steps=20)
    rest = torch.fft.fft2(found.error, norm="ortho") * 2
    assert torch.allclose(rest * mask, k - torch.fft.fft2(found.images, norm="ortho") * mask, atol=1e-5)


def test_differences_and_their_adjoint_fit():
    g = torch.Generator().manual_seed(0)
    x, p = (torch.randn(3, 4, 5, generator=g, dtype=torch.float64) for _ in range(2))
    for axis in range(3):
        forward = dynamic_mri._difference(x, axis)
        assert torch.isclose((forward * p).sum(), (x * dynamic_mri._back(p, axis)).sum())


def test_all_samples_and_no_weights_give_the_images_back():
    truth = moving_disc(16, 4)
    k = torch.fft.fft2(truth.to(torch.complex64), norm="ortho")
    found = rdledm(k, torch.ones(k.shape, dtype=torch.bool), OFF, OFF, tolerance=1e-7)
    assert torch.allclose(found.images.real, truth, atol=1e-4)


def test_masks_have_their_density_and_centre():
    mask = spectrum_mask(3, 20, 20, 0.2)
    assert (mask.sum((1, 2)) == 80).all() and mask[:, 0, 0].all() and mask[:, 1, 1].all()
    assert (mask[0] != mask[1]).any()
    low = mask[:, :4, :4].double().mean()
    assert low > 0.5


def test_bad_operands_are_refused():
    k = torch.zeros(2, 4, 4, dtype=torch.complex64)
    with pytest.raises(ShapeError):
        rdledm(k.real, k.real > 0)
    with pytest.raises(ShapeError):
        rdledm(k, torch.zeros(2, 4, 4, dtype=torch.bool))
    with pytest.raises(NonFiniteError):
        rdledm(k * torch.nan, torch.ones(2, 4, 4, dtype=torch.bool))
    with pytest.raises(BudgetError):
        rdledm(k, torch.ones(2, 4, 4, dtype=torch.bool), (-1.0, 0.0))
    with pytest.raises(BudgetError):
        spectrum_mask(2, 4, 4, 0.0)
