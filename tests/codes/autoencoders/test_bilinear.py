"""Bilinear autoencoders: the tiled loss is the explicit one, in every variant; and few latents explain a circle."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import sparseworks as sw
from sparseworks.codes.autoencoders import BilinearAutoencoder, bilinear, hoyer_density
from sparseworks.codes.autoencoders.latent import Moment
from sparseworks.codes.autoencoders.stream import Batch
from sparseworks.core.errors import NonFiniteError, RecipeError, ShapeError


def _built(**options):
    torch.manual_seed(0)
    sae = BilinearAutoencoder(sw.method("bilinear_ae", **options), 5, 12, seed=1).double()
    return sae, torch.randn(7, 5, dtype=torch.float64)


def _explicit(sae, x):
    x = F.normalize(x, dim=1)
    return (torch.einsum("bi,bj->bij", x, x) - sae.reconstruction(x)).square().sum((1, 2))


@pytest.mark.parametrize("tile", [1024, 5])
@pytest.mark.parametrize("options", [{}, {"mixed": True}])
def test_the_tiled_loss_is_that_of_the_matrices(monkeypatch, tile, options):
    monkeypatch.setattr(bilinear, "_TILE", tile)
    sae, x = _built(**options)
    tiled, explicit = sae.errors(sae.latents(x)), _explicit(sae, x)
    assert torch.allclose(tiled, explicit, atol=1e-10)
    one = torch.autograd.grad(tiled.sum(), sae.left, retain_graph=True)[0]
    assert torch.allclose(one, torch.autograd.grad(explicit.sum(), sae.left)[0], atol=1e-10)
    single = sae.float()
    assert torch.allclose(single.errors(single.latents(x)), _explicit(single, x.float()), atol=1e-5)


def test_the_ordered_loss_is_the_mean_over_all_prefixes(monkeypatch):
    monkeypatch.setattr(bilinear, "_TILE", 5)
    sae, x = _built(ordered=True)
    f, total = sae.latents(x), torch.zeros(7, dtype=torch.float64)
    unit = F.normalize(x, dim=1)
    for end in range(1, 13):
        part = torch.einsum("bk,ki,kj->bij", f[:, :end], sae.left[:end], sae.right[:end])
        total += (torch.einsum("bi,bj->bij", unit, unit) - part).square().sum((1, 2)) / 12
    assert torch.allclose(sae.errors(f), total, atol=1e-10)


def test_density_is_zero_for_one_token_one_for_all():
    f = torch.zeros(16, 2)
    f[3, 0], f[:, 1] = 5, -2
    assert torch.allclose(hoyer_density(f), torch.tensor([0.0, 1.0]), atol=1e-6)
    assert torch.allclose(hoyer_density(3 * f), hoyer_density(f))


def test_factors_begin_with_orthonormal_columns_and_alpha_rises_over_the_first_quarter():
    sae, x = _built(alpha=0.5)
    sae.eval()
    assert torch.allclose(sae.left.T @ sae.left, torch.eye(5, dtype=torch.float64), atol=1e-5)
    batch, density = Batch(x), float(hoyer_density(sae.latents(x)).detach().mean())
    plain = float(sae.errors(sae.latents(x)).detach().mean())
    for progress, share in ((0.0, 0.0), (0.125, 0.5), (0.25, 1.0), (1.0, 1.0)):
        total = sae.loss(batch, Moment(progress)).total.item()
        assert total == pytest.approx(plain + share * 0.5 * density)


def test_refusals():
    sae, x = _built()
    with pytest.raises(ShapeError):
        sae.latents(torch.zeros(2, 4))
    with pytest.raises(NonFiniteError):
        sae.latents(x * torch.nan)
    with pytest.raises(RecipeError, match="dense"):
        sae.rule(sae, x, None)
