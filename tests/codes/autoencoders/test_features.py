"""What latents respond to: figures as a dense computation gives them, the same examples whatever the batches, logits by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparseworks.codes.autoencoders.features import (
    BINS_A_DOUBLING,
    LOWEST,
    FeatureTable,
    bin_edges,
    collect_features,
    logit_effects,
)
from sparseworks.core.codes import Codes
from sparseworks.core.errors import CalibrationError, ModelError, ShapeError

WIDTH, LENGTH = 7, 6


def _made(rows, seed):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 50, (rows, LENGTH), generator=g)
    z = torch.rand(rows, LENGTH, WIDTH, generator=g) * (torch.rand(rows, LENGTH, WIDTH, generator=g) < 0.3)
    z[..., 4] = 0  # dead
    return ids, z


def _added(table, ids, z, cut):
    for some, part in zip(ids.split(cut), z.split(cut), strict=True):
        table.add(some, Codes.from_dense(part.flatten(0, 1)))
    return table


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 3), st.integers(0, 99))
def test_figures_and_examples_are_those_of_the_dense_codes_however_batches_are_cut(cut, kept, around, seed):
    ids, z = _made(9, seed)
    table = _added(FeatureTable(WIDTH, examples=kept, around=around), ids, z, cut)
    flat = z.flatten(0, 1)
    assert torch.equal(table.fired, (flat > 0).sum(0)) and table.tokens == len(flat)
    assert torch.equal(table.largest, flat.amax(0))
    assert torch.allclose(table.mean, flat.double().sum(0) / (flat > 0).sum(0).clamp(min=1))
    assert torch.equal(table.histogram.sum(1), table.fired)
    for latent in range(WIDTH):
        found, peaks = table.examples.of(latent), z[..., latent].amax(1)
        want = peaks[peaks > 0].sort(descending=True).values[:kept]
        assert torch.equal(found.peaks, want)
        for i, peak in enumerate(want):
            row = int((peaks == peak).nonzero()[0])
            at = int(z[row, :, latent].argmax())
            for j, place in enumerate(range(at - around, at + around + 1)):
                inside = 0 <= place < LENGTH
                assert int(found.tokens[i, j]) == (int(ids[row, place]) if inside else -1)
                assert float(found.values[i, j]) == (float(z[row, place, latent]) if inside else 0)


def test_histograms_count_half_doublings():
    table = FeatureTable(1)
    values = torch.tensor([[1.0], [1.3], [1.5], [4.0], [1e-30]])
    table.add(torch.zeros(1, 5, dtype=torch.long), Codes(values, torch.zeros(5, 1, dtype=torch.long), 1))
    one = int((0 - LOWEST) * BINS_A_DOUBLING)
    assert table.histogram[0].nonzero().squeeze(1).tolist() == [0, one, one + 1, one + 4]
    assert table.histogram[0, one] == 2 and math.isclose(bin_edges()[one], 1) and math.isclose(bin_edges()[one + 2], 2)


def test_nothing_on_and_what_does_not_fit():
    table = FeatureTable(3)
    table.add(torch.zeros(2, 2, dtype=torch.long), Codes.from_dense(torch.zeros(4, 3)))
    assert table.tokens == 4 and not table.density.any() and not len(table.examples.latents)
    with pytest.raises(ShapeError, match="do not fit"):
        table.add(torch.zeros(2, 2, dtype=torch.long), Codes.from_dense(torch.zeros(3, 3)))
    with pytest.raises(ShapeError):
        FeatureTable(3, examples=0)


def test_effects_on_logits_are_the_ends_of_the_product():
    g = torch.Generator().manual_seed(0)
    atoms, readout = torch.randn(600, 5, generator=g), torch.randn(40, 5, generator=g)
    (up, most), (down, least) = logit_effects(atoms, readout, 3)
    logits = (atoms @ readout.T).sort(dim=1)
    assert torch.equal(up, logits.indices.flip(1)[:, :3]) and torch.allclose(most, logits.values.flip(1)[:, :3])
    assert torch.equal(down, logits.indices[:, :3]) and torch.allclose(least, logits.values[:, :3])
    assert logit_effects(atoms, readout, 99)[0][0].shape == (600, 40)
    with pytest.raises(ShapeError):
        logit_effects(atoms, readout[:, :4])


class Toy(nn.Module):
    """Token i becomes 10 times the unit vector i mod 4."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.embed.weight.data.copy_(10 * torch.eye(4).repeat(2, 1))

    def forward(self, input_ids):
        return self.embed(input_ids)


class Exact:
    """Codes that are the activations."""

    def encode(self, x):
        return Codes.from_dense(x.flatten(0, -2))


def test_a_model_is_read_once():
    model = Toy().train()
    batches = [{"input_ids": torch.tensor([[0, 1, 2, 5]])}, {"input_ids": torch.tensor([[3, 4, 1, 1]])}]
    found = collect_features(model, batches, "embed", Exact(), around=1)
    assert found.fired.tolist() == [2, 4, 1, 1] and model.training
    assert found.examples.of(2).tokens.tolist() == [[1, 2, 5]] and found.examples.of(2).values.tolist() == [[0, 10, 0]]
    with pytest.raises(CalibrationError):
        collect_features(model, [], "embed", Exact())
    with pytest.raises(ModelError):
        collect_features(model, batches, "nowhere", Exact())
