"""Shuffled supports, flow preservation, overlap, layer densities of another score."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import BudgetError, MissingStatError
from sparseworks.core.support import Support
from sparseworks.stream import couplings, sites
from sparseworks.weights.control import flowing, overlap, shuffled


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4))


@given(st.integers(0, 99), st.floats(0.0, 1.0))
def test_shuffling_keeps_counts_and_is_seeded(seed, density):
    torch.manual_seed(seed)
    supports = {n: Support.from_mask(torch.rand(7, 9) < density) for n in "ab"}
    found = shuffled(supports, seed)
    assert {n: s.count for n, s in found.items()} == {n: s.count for n, s in supports.items()}
    assert found == shuffled(supports, seed)


@given(st.integers(0, 99))
def test_every_unit_flows_and_counts_stay(seed):
    model = net()
    found = sw.prune(model, sw.method("random", density=0.35), seed=seed, progress=False).supports
    flows = flowing(found, sites(model), couplings(model), seed)
    assert {n: s.count for n, s in flows.items()} == {n: s.count for n, s in found.items()}
    assert flows["0"].mask().any(1).all() and flows["2"].mask().any(1).all()
    assert flows["2"].mask().any(0).all() and flows["4"].mask().any(0).all()


def test_what_cannot_flow_is_refused():
    model = net()
    few = {s.name: Support.from_mask(torch.zeros(s.shape, dtype=torch.bool)) for s in sites(model)}
    with pytest.raises(BudgetError, match="too few"):
        flowing(few, sites(model), couplings(model))
    with pytest.raises(MissingStatError):
        flowing({"0": few["0"]}, sites(model), couplings(model))


def test_random_snip_has_the_densities_of_snip_at_other_places():
    data = [(torch.randn(32, 12), torch.randint(0, 4, (32,)))]
    loss = lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1])  # noqa: E731
    snip = sw.prune(net(), sw.method("snip", density=0.2), data, loss=loss, progress=False).supports
    drawn = sw.prune(net(), sw.method("random_snip", density=0.2), data, loss=loss, progress=False).supports
    assert {n: s.count for n, s in snip.items()} == {n: s.count for n, s in drawn.items()}
    assert overlap(snip, drawn) < 0.7 and overlap(snip, snip) == 1.0
    uniform = sw.prune(net(), sw.method("random", density=0.2), progress=False).supports
    assert any(abs(uniform[n].density - snip[n].density) > 0.05 for n in snip)
