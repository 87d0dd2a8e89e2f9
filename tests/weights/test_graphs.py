"""Random graphs as networks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparseworks.core.errors import BudgetError
from sparseworks.weights.graphs import GraphNet, barabasi_albert, depths, watts_strogatz
from sparseworks.weights.structure import graph_features


@given(st.integers(0, 50), st.integers(6, 20), st.floats(0.0, 1.0))
def test_generators_keep_their_counts_and_layers_follow_edges(seed, nodes, rewire):
    ring, hubs = watts_strogatz(nodes, 4, rewire, seed), barabasi_albert(nodes, 2, seed)
    assert len(ring) == len(set(ring)) == 2 * nodes and len(hubs) == len(set(hubs)) == 2 * (nodes - 2)
    for edges in (ring, hubs):
        layer = {v: i for i, members in enumerate(depths(edges, nodes)) for v in members}
        assert all(layer[a] < layer[b] for a, b in edges)


def test_a_ring_that_is_rewired_has_shorter_depth_and_hubs_have_larger_degrees():
    ring, hubs = graph_features(watts_strogatz(60, 4, 0.0)), graph_features(barabasi_albert(60, 2))
    mixed = graph_features(watts_strogatz(60, 4, 1.0))
    assert mixed["layers"] < ring["layers"]
    assert hubs["degree_variance"] > mixed["degree_variance"] > ring["degree_variance"] == 0


def test_dropped_edges_do_not_train():
    torch.manual_seed(0)
    model = GraphNet(watts_strogatz(20, 4, 0.5, seed=1), 5, 3)
    model(torch.randn(7, 5)).square().sum().backward()
    assert model.weight.grad is not None and not model.weight.grad[~model.mask].any() and model.weight.grad.any()
    with pytest.raises(BudgetError):
        GraphNet([], 2, 2)
    with pytest.raises(BudgetError):
        watts_strogatz(5, 3, 0.1)
    with pytest.raises(BudgetError):
        barabasi_albert(3, 3)
